"""The published tables with measured rows."""

import json
import re
from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetuning import chart, table
from finetuning.published import PEERS
from finetuning.tasks import TASKS
from pretraining.utils import UserError

PUBLISHED_LINES = [
    "| RoBERTa | published | 87.3/68 | 94.4/89.4 | 76.58 | 89.07 | 85.76 | 57.66 | 94.89 |",
    "| RBT6 (KD) | published | 84.4/64.3 | 91.27/84.93 | 72.83 | 88.52 | 84.54 | 55.52 | 93.42 |",
    "| RBT3 | published | 80.3/57.73 | 85.87/77.63 | 69.80 | 87.3 | 84.47 | 55.39 | 93.86 |",
    "| RBT4-H312 | published | 77.9/54.93 | 84.13/75.07 | 68.50 | 85.49 | 83.42 | 54.15 | 93.31 |",
    "| MiniRBT-H256 | published | 78.47/56.27 | 86.83/78.57 | 68.73 | 86.81 | 83.68 | 54.45 | 92.97 |",
    "| MiniRBT-H288 | published | 80.53/58.83 | 87.1/78.73 | 68.32 | 86.38 | 83.77 | 54.62 | 92.83 |",
    "| RBT6 (KD) | published | 96.7/94.6 | 96.7/95 | 95.1 | 99.4 | 98.6 | 96.3 | 98.5 |",
    "| RBT3 | published | 92/84.9 | 91/86.8 | 91.1 | 98 | 98.5 | 96.1 | 98.9 |",
    "| RBT4-H312 | published | 89.2/80.8 | 89.1/84 | 89.4 | 96 | 97.3 | 93.9 | 98.3 |",
    "| MiniRBT-H256 | published | 89.9/82.8 | 92/87.9 | 89.7 | 97.5 | 97.6 | 94.4 | 98 |",
    "| MiniRBT-H288 | published | 92.2/86.5 | 92.3/88.1 | 89.2 | 97 | 97.7 | 94.7 | 97.8 |",
    "| MiniRBT-H256 (two-stage) | published | 77.97/54.6 | 69.11 | 86.58 | 83.74 | 54.12 |",
    "| MiniRBT-H256 (one-stage) | published | 77.57/54.27 | 68.32 | 86.39 | 83.55 | 53.94 |",
    "| RoBERTa | published | 3e-5 | 3e-5 | 2e-5 | 2e-5 | 3e-5 | 2e-5 | 2e-5 |",
    "| the small models | published | 1e-4 | 1e-4 | 5e-5 | 1e-4 | 1e-4 | 1e-4 | 1e-4 |",
]
PEER_LINES = [
    "| ERNIE 3.0 Medium (6L, 768H) | published ¹ | 73.37 | 57.00 | 60.67 | 80.64 | 76.88 | 79.28 | 81.60 | 87.30/65.83 |",
    "| RBT6 (6L, 768H) | published ¹ | 73.45 | 56.82 | 59.64 | 79.36 | 73.32 | 76.64 | 80.67 | 84.77/62.72 |",
    "| TinyBERT6 (6L, 768H) | published ¹ | 72.22 | 55.70 | 54.48 | 79.12 | 74.07 | 77.63 | 80.17 | 83.75/63.03 |",
    "| ERNIE 3.0 Mini (6L, 384H) | published ¹ | 71.85 | 55.24 | 54.48 | 77.19 | 73.08 | 71.05 | 79.30 | 81.97/58.53 |",
    "| ERNIE 3.0 Micro (4L, 384H) | published ¹ | 71.15 | 55.05 | 53.83 | 74.81 | 70.41 | 69.08 | 76.50 | 77.82/53.77 |",
    "| ERNIE 3.0 Nano (4L, 312H) | published ¹ | 70.51 | 54.57 | 48.36 | 74.97 | 70.61 | 68.75 | 75.93 | 76.35/52.00 |",
    "| TinyBERT4 (4L, 312H) | published ¹ | 69.07 | 54.02 | 39.71 | 73.94 | 69.59 | 70.07 | 75.07 | 69.34/46.04 |",
    "| RBT3 (3L, 768H) | published ¹ | 70.95 | 55.53 | 59.18 | 76.20 | 70.71 | 67.11 | 76.63 | 78.63/55.73 |",
    "| PP-MiniLM (6L, 768H) | published ² | 74.14 | 57.43 | 61.75 | 81.01 | 76.17 | 86.18 | 79.17 | - |",
]


def write_results(path: Path, task: str, model: str, best: dict, epochs=(2, 3, 5, 10), seeds=(1, 2, 3), **settings) -> str:
    rows = [{"num_train_epochs": n, "seeds": list(seeds)} for n in epochs]
    defaults = {"max_seq_length": TASKS[task].max_seq_length, "per_device_train_batch_size": 32, "teacher": None}
    content = {"task": task, "model": model, "metrics": list(TASKS[task].metrics), "best": best, "by_epochs": rows}
    content["settings"] = {**defaults, "learning_rate": TASKS[task].learning_rate_small, **settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_tables_hold_published_and_measured_rows(tmp_path, capsys):
    cmrc = write_results(tmp_path / "1.json", "cmrc2018", "saves/mini/gs30000", {"f1_mean": 79.996, "em_mean": 50.0})
    ocnli = write_results(
        tmp_path / "2.json",
        "ocnli",
        "saves/mini/gs30000",
        {"accuracy_mean": 60.0},
        epochs=(2, 3),
        seeds=(1,),
        max_train_samples=9,
        teacher="big/model",
    )
    big = write_results(tmp_path / "3.json", "cmrc2018", "big/", {"f1_mean": 90.0, "em_mean": 75.0})
    given = [cmrc, ocnli, f"TA={big}", "--teacher", "TA", "--two_stage", "mini", "--output_dir", str(tmp_path / "tables")]
    table.main(given)
    printed = capsys.readouterr().out
    for line in (
        "| :-- | :-- | --: | --: | --: | --: | --: | --: | --: |",
        "| MiniRBT-H256 | published | 78.47/56.27 | 86.83/78.57 | 68.73 | 86.81 | 83.68 | 54.45 | 92.97 |",
        "| mini | measured | 80.00/50.00 | - | 60.00 | - | - | - | - |",
        "| TA | measured | 90.00/75.00 | - | - | - | - | - | - |",
        "| RBT6 (KD) | published | 96.7/94.6 | 96.7/95 | 95.1 | 99.4 | 98.6 | 96.3 | 98.5 |",
        "| mini | measured | 88.9/66.7 | - | - | - | - | - | - |",
        "| MiniRBT-H256 (one-stage) | published | 77.57/54.27 | 68.32 | 86.39 | 83.55 | 53.94 |",
        "| mini (two-stage) | measured | 80.00/50.00 | 60.00 | - | - | - |",
        "- mini, OCNLI: only 2, 3 epochs instead of 2, 3, 5, 10; only 1 of 3 seeds; only the first 9 training examples; teacher big/model.",
        "| mini | measured | - | - | - | - | 60.00 | - | - | 80.00/50.00 |",
        "mini,measured,80.00,50.00,-,-,60.00,-,-,-,-",
        "RBT3,published,92,84.9,91,86.8,91.1,98,98.5,96.1,98.9",
    ):
        assert line in printed.splitlines(), line
    names = {"tables.md", "absolute.csv", "relative.csv", "stages.csv", "learning_rates.csv", "clue.csv", "tables.png"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
    assert (tmp_path / "tables" / "absolute.csv").read_text().splitlines()[-2:] == [
        "mini,measured,80.00,50.00,-,-,60.00,-,-,-,-",
        "TA,measured,90.00,75.00,-,-,-,-,-,-,-",
    ]
    assert (tmp_path / "tables" / "tables.png").read_bytes().startswith(b"\x89PNG")


def test_the_published_figures_are_printed_as_published():
    tables = table.make_tables({}, None, None, None)
    assert [line for each in tables for line in table.to_markdown(each).splitlines() if "| published |" in line] == PUBLISHED_LINES
    assert table.to_markdown(tables[4]).splitlines()[4:] == PEER_LINES


# The means that their source prints, over the seven classification tasks, EM of CMRC 2018, CHID and C3; of PP-MiniLM over the first seven.
PRINTED_MEANS = {
    "ERNIE 3.0 Medium (6L, 768H)": (72.49, 79.91, 69.73),
    "RBT6 (6L, 768H)": (70.06, 78.17, 59.85),
    "TinyBERT6 (6L, 768H)": (69.62, 77.64, 62.11),
    "ERNIE 3.0 Mini (6L, 384H)": (66.90, 69.71, 58.60),
    "ERNIE 3.0 Micro (4L, 384H)": (64.24, 62.26, 55.53),  # printed as 64.21, which its figures do not give
    "ERNIE 3.0 Nano (4L, 312H)": (62.97, 58.91, 55.11),
    "TinyBERT4 (4L, 312H)": (60.82, 58.53, 52.18),
    "RBT3 (3L, 768H)": (65.72, 70.26, 54.93),
    "PP-MiniLM (6L, 768H)": (73.69,),
}


def test_the_peers_figures_have_the_means_that_their_sources_print():
    rows = {model: row for peers in PEERS.values() for model, row in peers.items()}
    assert list(rows) == list(PRINTED_MEANS)
    for model, (mean, *others) in PRINTED_MEANS.items():
        figures = [float(metrics.get("accuracy") or metrics["em"]) for metrics in rows[model].values()] + others
        assert sum(figures) / len(figures) == pytest.approx(mean, abs=0.0051), model


def test_without_a_teacher_the_published_one_is_100_percent(tmp_path):
    results = table.read_results([write_results(tmp_path / "r.json", "lcqmc", "m", {"accuracy_mean": 44.535})])
    absolute, relative, stages, *_ = table.make_tables(results, None, None, None)
    assert relative.rows[-1] == table.Row("m", "measured", {"lcqmc": "50.0"})
    assert relative.title.startswith("Relative performance in percent (measured rows: of RoBERTa, published;")
    assert [row.source for row in stages.rows] == ["published", "published"] and len(absolute.rows) == 7


def test_a_teacher_without_a_right_answer_has_no_percent(tmp_path):
    zero = write_results(tmp_path / "0.json", "cmrc2018", "zero", {"f1_mean": 0.0, "em_mean": 0.0})
    results = table.read_results([zero, write_results(tmp_path / "1.json", "cmrc2018", "m", {"f1_mean": 5.0, "em_mean": 1.0})])
    tables = table.make_tables(results, "zero", None, None)
    assert tables[1].rows[-1] == table.Row("m", "measured", {"cmrc2018": "–/–"})
    chart.draw(tables, tmp_path / "tables.png")
    assert (tmp_path / "tables.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name, message",
    [("missing.json", "no such file"), ("list.json", "must be a JSON object"), ("other.json", "is not a results.json of run.py")],
)
def test_a_wrong_results_file_is_named(tmp_path, name, message):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        table.read_results([str(tmp_path / name)])


def test_two_results_for_one_cell_are_refused(tmp_path):
    paths = [write_results(tmp_path / f"{n}.json", "bq", "m", {"accuracy_mean": 50.0}) for n in (1, 2)]
    first, second = map(re.escape, paths)
    with pytest.raises(UserError, match=f"{second}: {first} has results of m for bq too; name the models apart with NAME={second}"):
        table.read_results(paths)


@pytest.mark.parametrize(
    "field, value",
    [
        ("task", ["bq"]),
        ("task", "sst2"),
        ("model", 3),
        ("metrics", []),
        ("metrics", ["f1", "em"]),
        ("best", {}),
        ("best", None),
        ("best", {"accuracy_mean": None}),
        ("best", {"accuracy_mean": float("nan")}),
        ("by_epochs", []),
        ("by_epochs", {}),
        ("by_epochs", [3]),
        ("by_epochs", [{"num_train_epochs": 2, "seeds": []}]),
        ("by_epochs", [{"num_train_epochs": "2", "seeds": [1]}]),
        ("settings", {}),
        ("settings", []),
        ("by_learning_rate", {}),
        ("by_learning_rate", [{"learning_rate": 1e-4}]),
        ("by_learning_rate", [{"learning_rate": "1e-4", "accuracy_mean": 50.0}]),
    ],
)
def test_a_results_file_without_figures_is_one_line(tmp_path, field, value):
    path = write_results(tmp_path / "r.json", "bq", "m", {"accuracy_mean": 50.0})
    content = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**content, field: value}))
    with pytest.raises(UserError, match=f"r.json: is not a results.json of run.py, '{field}' is missing or not as run.py writes it"):
        table.main([path, "--output_dir", str(tmp_path / "tables")])
    assert not (tmp_path / "tables").exists()


def test_results_of_one_model_are_named_by_their_directories_or_by_a_pattern(tmp_path, capsys, monkeypatch):
    """results/mini and results/mini-kd are of one model, fine-tuned without and with a teacher."""
    monkeypatch.chdir(tmp_path)
    for directory, accuracy in (("mini", 50.0), ("mini-kd", 51.0)):
        for task in ("bq", "lcqmc"):
            write_results(Path("results", directory, task, "results.json"), task, "saves/mini/gs9", {"accuracy_mean": accuracy})
    write_results(Path("results/other/bq/results.json"), "bq", "saves/other/gs9", {"accuracy_mean": 52.0})

    def rows(*arguments: str) -> list[str]:
        table.main([*arguments, "--output_dir", "tables"])
        return [line.split(" |")[0] for line in capsys.readouterr().out.split("###")[1].splitlines() if "| measured |" in line]

    paths = [str(path) for path in sorted(Path("results").glob("*/*/results.json"))]
    assert rows(*paths) == ["| mini", "| mini-kd", "| other"]
    assert rows("results/mini/bq", "results/mini-kd/bq", "--teacher", "mini-kd") == ["| mini", "| mini-kd"]
    assert rows("plain=results/mini/*/results.json", "kd=results/mini-kd/*/results.json") == ["| plain", "| kd"]
    with pytest.raises(UserError, match=r"^x=results/none/\*/results.json: no file has a name like that$"):
        rows("x=results/none/*/results.json")


def test_a_search_has_its_best_learning_rate_in_the_table_and_a_plot(tmp_path, capsys, monkeypatch):
    rows = [{"learning_rate": rate, "accuracy_mean": score, "accuracy_std": 1.0} for rate, score in ((2e-5, 50.0), (1.5e-4, 60.0))]
    path = write_results(tmp_path / "r.json", "tnews", "m", {"accuracy_mean": 60.0}, learning_rate=1.5e-4)
    content = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**content, "by_learning_rate": rows}))
    plain = write_results(tmp_path / "p.json", "bq", "other", {"accuracy_mean": 50.0})
    drawn, errorbar = [], Axes.errorbar

    def noted(self, rates, scores, bars, **options):
        drawn.append((rates, scores, bars))
        return errorbar(self, rates, scores, bars, **options)

    monkeypatch.setattr(Axes, "errorbar", noted)
    table.main([path, plain, "--output_dir", str(tmp_path / "tables")])
    printed = capsys.readouterr().out
    rates = printed.split("### Best learning rate")[1].split("###")[0]
    assert [line for line in rates.splitlines() if "measured" in line] == ["| m | measured | - | - | - | - | - | 1.5e-4 | - |"]
    assert "- m, TNEWS: the best of the learning rates 2e-5, 1.5e-4.\n" in printed
    assert drawn == [([2e-5, 1.5e-4], [50.0, 60.0], [1.0, 1.0])]
    assert (tmp_path / "tables" / "learning_rates.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tables" / "learning_rates.csv").read_text().splitlines()[-1] == "m,measured,-,-,-,-,-,1.5e-4,-"


def axes_of(rows: list[table.Row]) -> Axes:
    axes = Figure().subplots()
    chart.draw_panel(axes, table.Table("absolute", "Results", ("cmrc2018", "bq"), rows), {"m": "C0"})
    return axes


def test_the_chart_has_both_metrics_and_says_where_its_axis_begins():
    axes = axes_of([table.Row("m", "measured", {"cmrc2018": "80.00/61.50", "bq": "70.00"})])
    assert [bar.get_height() for bar in axes.patches] == [80.0, 70.0]
    assert [segment[0][1] for lines in axes.collections for segment in lines.get_segments()] == [61.5]
    assert axes.get_xticklabels()[0].get_text().endswith("bar: F1, line: EM")
    assert axes.get_ylim()[0] == 51.5 and axes.get_ylabel() == "percent (the axis does not begin at 0)"
    axes = axes_of([table.Row("m", "measured", {"cmrc2018": "80.00/3.00", "bq": "70.00"})])
    assert axes.get_ylim()[0] == 0 and axes.get_ylabel() == "percent"
