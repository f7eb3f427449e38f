"""What export.py --task and prune_vocabulary.py --task print: the scores of run.py again, losses, times; what they refuse."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from finetuning import deployment
from finetuning.deployment import PYTORCH, Score, deployment_table, dev_metrics, load_dev_set, lost_points, prove
from finetuning.heads import load_fine_tuned
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.exporting import onnx_check, onnx_export
from pretraining.scripts import export, prune_vocabulary
from pretraining.utils import UserError
from tests.finetuning.helpers import BAD, GOOD, results_of, run_main
from tests.finetuning.test_own_tasks import own_arguments, tagged_sentences, write
from tests.pretraining.scripts.helpers import cells


@pytest.fixture(autouse=True)
def one_core(monkeypatch):
    """For models this small a second thread only waits."""
    monkeypatch.setattr(deployment, "cores_per_process", lambda: 1)
    for module in (deployment, onnx_check):
        monkeypatch.setattr(module, "core_counts", lambda: [1])


@pytest.fixture(scope="module")
def labeller(world, tmp_path_factory) -> Path:
    """The directory of a run of an own task: the places in a sentence; some need two rows."""
    place = tmp_path_factory.mktemp("labeller")
    run_main(*own_arguments(world, write(place, "tags", tagged_sentences(), max_seq_length=16), place / "out"))
    return place / "out"


@pytest.fixture
def reviews(world, undisturbed):
    """The dev set of chnsenticorp, and the model that was fine-tuned on it."""
    model = undisturbed["chnsenticorp"] / "model"
    return load_dev_set("chnsenticorp", str(world / "chnsenticorp"), model, load_tokenizer(model)), model


def dev_set(run: Path, task: str, data_dir: Path | None) -> deployment.DevSet:
    return load_dev_set(task, data_dir and str(data_dir), run / "model", load_tokenizer(run / "model"))


def best_of(run: Path) -> dict[str, float]:
    """The metrics of the run whose model was kept."""
    results, _ = results_of(run)
    return next(each["metrics"] for each in results["runs"] if each["seed"] == results["predictions_and_model_of"]["seed"])


def test_a_model_scores_as_run_py_said(world, undisturbed, labeller):
    for run, task, data_dir in (
        (undisturbed["chnsenticorp"], "chnsenticorp", world / "chnsenticorp"),
        (undisturbed["cmrc2018"], "cmrc2018", world / "cmrc2018"),
        (labeller, str(labeller.parent / "mine.json"), None),
    ):
        assert dev_metrics(dev_set(run, task, data_dir), run / "model") == pytest.approx(best_of(run), abs=1e-9)


def test_rows_have_the_length_of_the_fine_tuning(labeller):
    task = json.loads((labeller.parent / "mine.json").read_text())
    (labeller.parent / "wide.json").write_text(json.dumps({**task, "max_seq_length": 40}))
    dev = dev_set(labeller, str(labeller.parent / "wide.json"), None)
    assert max(len(feature["input_ids"]) for feature in dev.features) == 16 and len(dev.features) > len(dev.examples)


def test_a_file_that_loses_too_much_is_refused_with_its_loss(reviews, monkeypatch):
    dev, model_dir = reviews
    model = load_fine_tuned(str(model_dir), dev.task, dev.labels, "the model")
    expected = dev_metrics(dev, model_dir)["accuracy"]
    worst = lambda batch: [-array for array in deployment.pytorch_run(model)(batch)]  # noqa: E731
    monkeypatch.setattr(deployment, "onnx_run", lambda path, *_: worst if path.name == "bad" else deployment.pytorch_run(model))
    files = {"float32": Path("good"), "int8": Path("bad")}
    scores = prove(dev, model, files, max_loss=100.0)
    assert [scores[name].metrics["accuracy"] for name in scores] == [expected, expected, 100 - expected] and expected > 90
    lost = lost_points(dev.task, scores, "onnxruntime int8")
    assert lost == 2 * expected - 100 and all(each.rows_per_second > 0 for each in scores.values())
    with pytest.raises(UserError) as caught:
        prove(dev, model, files, max_loss=lost - 0.01)
    assert f"onnxruntime int8 loses {lost:.2f} points of accuracy on chnsenticorp ({expected:.2f} -> {100 - expected:.2f})" in str(
        caught.value
    )
    prove(dev, model, {"float32": Path("good")}, max_loss=0.01)


def test_the_table_has_the_loss_and_the_percentiles(reviews, monkeypatch):
    monkeypatch.setattr(deployment, "core_counts", lambda: [1, 2])
    dev, _ = reviews
    int8 = "onnxruntime int8"
    scores = {PYTORCH: Score({"accuracy": 92.5}, 10.04), int8: Score({"accuracy": 92.25}, 31.0)}
    latencies = {
        (name, cores): np.arange(101) * milliseconds / cores / 1e3 for name, milliseconds in ((PYTORCH, 1), (int8, 0.5)) for cores in (1, 2)
    }
    table = deployment_table(dev, scores, latencies, {PYTORCH: 41_500_000, int8: 10_400_000})
    assert table.splitlines()[0] == (
        "| Runtime | accuracy | accuracy lost | Size | p50, 1 core | p99, 1 core | p50, 2 cores | p99, 2 cores | Rows/s |"
    )
    assert cells(table, PYTORCH)[1:] == ["92.50", "–", "41.5 MB", "50.0 ms", "99.0 ms", "25.0 ms", "49.5 ms", "10.0"]
    assert cells(table, int8)[1:] == ["92.25", "0.25", "10.4 MB", "25.0 ms", "49.5 ms", "12.5 ms", "24.8 ms", "31.0"]


def test_models_of_another_task_are_refused(world, undisturbed, labeller, tmp_path):
    with pytest.raises(UserError, match="is BertForQuestionAnswering, but chnsenticorp is a task of classification"):
        dev_set(undisturbed["cmrc2018"], "chnsenticorp", world / "chnsenticorp")
    with pytest.raises(UserError, match="tnews needs --data_dir"):
        dev_set(undisturbed["chnsenticorp"], "tnews", None)
    (tmp_path / "tags").mkdir()
    task = write(tmp_path / "tags", "tags", tagged_sentences().replace("LOC", "PER"), max_seq_length=16)
    with pytest.raises(UserError, match="its labels are O, B-LOC, I-LOC, those of mine O, B-PER, I-PER"):
        dev_set(labeller, str(task), None)
    with pytest.raises(UserError, match="--data_dir: is for --task"):
        export.main([str(labeller / "model"), "--data_dir", "x", "--output_dir", str(tmp_path / "x")])


def test_pruning_prints_the_score_before_and_after(world, undisturbed, tmp_path, capsys):
    run = undisturbed["chnsenticorp"]
    model = shutil.copytree(run / "model", tmp_path / "model")
    task = ["--task", "chnsenticorp", "--data_dir", str(world / "chnsenticorp")]
    text, few = tmp_path / "all.txt", tmp_path / "few.txt"
    text.write_text(f"{GOOD}{BAD}{'车' * 300}北\n", encoding="utf-8")  # longer than a row of the task
    few.write_text("北北\n", encoding="utf-8")
    expected = f"{best_of(run)['accuracy']:.2f}"

    prune_vocabulary.main([str(model), "--texts", str(text), "--min_count", "1", *task])
    out = capsys.readouterr().out
    assert f"| {model} | {expected} | {expected} |" in out and "| chnsenticorp dev | accuracy before | accuracy after |" in out
    assert f"| all.txt | {len(GOOD + BAD) + 301} | {len(GOOD + BAD) + 301} | 0.000% | 0.000% |" in out
    assert (tmp_path / "model-pruned" / "task.json").read_bytes() == (model / "task.json").read_bytes()
    prune_vocabulary.main([str(model), "--texts", str(few), "--min_count", "1", *task])
    assert f"| {model} | {expected} | 50.00 |" in capsys.readouterr().out  # all is [UNK] but for the lengths


@pytest.mark.slow
def test_exported_files_prove_themselves(world, undisturbed, tmp_path, capsys, monkeypatch):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    import onnx
    import onnxruntime

    monkeypatch.setattr(onnx_check, "TURN_SECONDS", 0.0)
    monkeypatch.setattr(onnx_check, "ROUNDS", 1)
    monkeypatch.setattr(deployment, "TIMED_SENTENCES", 3)
    run = undisturbed["chnsenticorp"]
    arguments = ["--int8", "--task", "chnsenticorp", "--data_dir", str(world / "chnsenticorp"), "--output_dir", str(tmp_path / "onnx")]
    export.main([str(run / "model"), *arguments])
    table = capsys.readouterr().out.split("\n\n")[3]
    expected = f"{best_of(run)['accuracy']:.2f}"
    assert cells(table, PYTORCH)[1:3] == [expected, "–"]
    assert cells(table, "onnxruntime float32")[1:3] == [expected, "0.00"]
    assert cells(table, "onnxruntime int8")[1] == expected and len(cells(table, "onnxruntime int8")) == 5 + 2 * len(
        onnx_check.core_counts()
    )
    for name in ("model.onnx", "model_int8.onnx"):
        model = onnx.load(tmp_path / "onnx" / name)
        opset = [str(entry.version) for entry in model.opset_import if not entry.domain]
        assert {entry.key: entry.value for entry in model.metadata_props} == {
            "input_shapes": "batch x length, both free, length at most 64",
            "opset": opset[0],
            "onnxruntime": onnxruntime.__version__,
        }

    monkeypatch.setattr(onnx_export, "export_onnx", lambda module, path: shutil.copy(tmp_path / "onnx" / "model.onnx", path))
    bad = lambda path, *given: lambda batch: [np.eye(2)[np.zeros(len(batch["input_ids"]), int)]]  # noqa: E731
    monkeypatch.setattr(deployment, "onnx_run", bad)
    with pytest.raises(UserError, match="onnxruntime float32 loses .* points of accuracy"):
        export.main([str(run / "model"), *arguments[:-1], str(tmp_path / "refused")])
    assert not (tmp_path / "refused").exists()
    assert json.loads((tmp_path / "onnx" / "task.json").read_text())["name"] == "chnsenticorp"
