"""Fills the published tables: results.json files of ``run.py`` in, Markdown, CSV and a bar chart out.

    python finetuning/table.py results/MiniRBT/*/results.json results/RBT6/*/results.json --teacher RBT6

Every argument is a results.json, or NAME=results.json where the model's directory has no telling name. The published rows stand
beside the measured ones, marked as published; "-" stands for what was not measured.
"""

import argparse
import csv
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))
from run import BATCH_SIZE, EPOCHS, SEEDS
from tasks import TASKS
from utils import UserError, parse_one_line_errors, read_json, run_script, whole_file

TITLES = dict(zip(TASKS, ("CMRC 2018", "DRCD", "OCNLI", "LCQMC", "BQ Corpus", "TNEWS", "ChnSentiCorp")))
STAGE_TASKS = ("cmrc2018", "ocnli", "lcqmc", "bq", "tnews")
PUBLISHED_TEACHER = "RoBERTa"

# The tables of the MiniRBT README (github.com/iflytek/MiniRBT), F1/EM for the first two tasks, else accuracy; dev sets.
PUBLISHED = {
    "RoBERTa": "87.3/68 94.4/89.4 76.58 89.07 85.76 57.66 94.89",
    "RBT6 (KD)": "84.4/64.3 91.27/84.93 72.83 88.52 84.54 55.52 93.42",
    "RBT3": "80.3/57.73 85.87/77.63 69.80 87.3 84.47 55.39 93.86",
    "RBT4-H312": "77.9/54.93 84.13/75.07 68.50 85.49 83.42 54.15 93.31",
    "MiniRBT-H256": "78.47/56.27 86.83/78.57 68.73 86.81 83.68 54.45 92.97",
    "MiniRBT-H288": "80.53/58.83 87.1/78.73 68.32 86.38 83.77 54.62 92.83",
}
PUBLISHED_RELATIVE = {
    "RBT6 (KD)": "96.7/94.6 96.7/95 95.1 99.4 98.6 96.3 98.5",
    "RBT3": "92/84.9 91/86.8 91.1 98 98.5 96.1 98.9",
    "RBT4-H312": "89.2/80.8 89.1/84 89.4 96 97.3 93.9 98.3",
    "MiniRBT-H256": "89.9/82.8 92/87.9 89.7 97.5 97.6 94.4 98",
    "MiniRBT-H288": "92.2/86.5 92.3/88.1 89.2 97 97.7 94.7 97.8",
}
PUBLISHED_STAGES = {
    "MiniRBT-H256 (two-stage)": "77.97/54.6 69.11 86.58 83.74 54.12",
    "MiniRBT-H256 (one-stage)": "77.57/54.27 68.32 86.39 83.55 53.94",
}


class Row(NamedTuple):
    """One line of a table; ``cells`` gives the text of each column that is known, by task ("78.47/56.27")."""

    model: str
    source: str
    cells: dict[str, str]


class Table(NamedTuple):
    """``name`` is the file name of its CSV."""

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: list[Row]


# ---------------------------------------------------------------- what was measured


def read_results(arguments: list[str]) -> dict[str, dict[str, dict]]:
    """The contents of the results.json files, by model and task.

    Raises:
        UserError: an unreadable file, one that run.py did not write, or two for the same model and task.
    """
    results: dict[str, dict[str, dict]] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        if Path(argument).exists():
            name, path = "", argument
        content = read_json(Path(path) / "results.json" if Path(path).is_dir() else path, "a results.json of run.py")
        if (
            content.get("task") not in TASKS
            or not {"model", "metrics", "best", "by_epochs", "settings"} <= content.keys()
            or not isinstance(content["best"], dict)
        ):
            raise UserError(f"{path}: is not a results.json of run.py")
        model = name or model_name(content["model"])
        if content["task"] in results.setdefault(model, {}):
            raise UserError(f"{path}: {model} has two results for {content['task']}; name the models apart with NAME={path}")
        results[model][content["task"]] = content
    return results


def model_name(directory: str) -> str:
    """The last part of a model's path; of a checkpoint ``saves/NAME/gs<step>`` the NAME."""
    path = Path(directory)
    return path.parent.name if re.fullmatch(r"gs\d+", path.name) and path.parent.name else path.name


def figures(content: dict) -> list[float]:
    """The protocol's figures of one results.json, in percent, one a metric."""
    return [content["best"][f"{name}_mean"] for name in content["metrics"]]


def protocol_notes(results: dict[str, dict[str, dict]]) -> list[str]:
    """One line for each figure that was not measured by the whole protocol."""
    notes = []
    for model, tasks in results.items():
        for name, content in tasks.items():
            task, missing = TASKS[name], []
            epochs = [row["num_train_epochs"] for row in content["by_epochs"]]
            if not set(EPOCHS) <= set(epochs):
                missing.append(f"only {', '.join(map(str, epochs))} epochs instead of {', '.join(map(str, EPOCHS))}")
            elif more := sorted(set(epochs) - set(EPOCHS)):
                missing.append(f"{', '.join(map(str, more))} epochs as well")
            seeds = min(len(row["seeds"]) for row in content["by_epochs"])
            if seeds < len(SEEDS):
                missing.append(f"only {seeds} of {len(SEEDS)} seeds")
            for key, what in (("max_train_samples", "training"), ("max_eval_samples", "dev")):
                if content["settings"].get(key):
                    missing.append(f"only the first {content['settings'][key]} {what} examples")
            for key, standard in (
                ("max_seq_length", [task.max_seq_length]),
                ("per_device_train_batch_size", [BATCH_SIZE]),
                ("learning_rate", [task.learning_rate_small, task.learning_rate_roberta]),
                ("teacher", [None]),
            ):
                if content["settings"][key] not in standard:
                    missing.append(f"{key} {content['settings'][key]}")
            if missing:
                notes.append(f"{model}, {TITLES[name]}: {'; '.join(missing)}.")
    return notes


# ---------------------------------------------------------------- tables


def published_rows(published: dict[str, str], tasks: tuple[str, ...]) -> list[Row]:
    return [Row(model, "published", dict(zip(tasks, cells.split()))) for model, cells in published.items()]


def measured_row(model: str, contents: dict[str, dict]) -> Row:
    return Row(model, "measured", {task: "/".join(f"{value:.2f}" for value in figures(content)) for task, content in contents.items()})


def relative_row(model: str, contents: dict[str, dict], teacher: dict[str, list[float]]) -> Row:
    """Percent of the teacher's figure, one decimal."""
    cells = {}
    for task, content in contents.items():
        if task in teacher:
            cells[task] = "/".join(
                f"{100 * own / reference:.1f}" if reference else "–" for own, reference in zip(figures(content), teacher[task])
            )
    return Row(model, "measured", cells)


def teacher_figures(results: dict[str, dict[str, dict]], teacher: str | None) -> dict[str, list[float]]:
    """By task: the figures all others are divided by, of a measured model or of the published RoBERTa."""
    if teacher is None:
        return {task: [float(part) for part in cell.split("/")] for task, cell in zip(TASKS, PUBLISHED[PUBLISHED_TEACHER].split())}
    return {task: figures(content) for task, content in results[teacher].items()}


def make_tables(results: dict[str, dict[str, dict]], teacher: str | None, two_stage: str | None, one_stage: str | None) -> list[Table]:
    """The three tables: absolute, relative to the teacher, two-stage against one-stage."""
    all_tasks = tuple(TASKS)
    reference = teacher_figures(results, teacher)
    relative = [relative_row(model, contents, reference) for model, contents in results.items() if model != teacher]
    stages = [
        measured_row(f"{model} ({kind})", results[model])
        for model, kind in ((two_stage, "two-stage"), (one_stage, "one-stage"))
        if model is not None
    ]
    of_what = f"measured rows: of {teacher}, measured" if teacher else f"measured rows: of {PUBLISHED_TEACHER}, published"
    return [
        Table(
            "absolute",
            "Results on the dev sets (F1/EM or accuracy, best over epochs of the mean over seeds)",
            all_tasks,
            published_rows(PUBLISHED, all_tasks) + [measured_row(*item) for item in results.items()],
        ),
        Table(
            "relative",
            f"Relative performance in percent ({of_what}; published rows: of {PUBLISHED_TEACHER}, published)",
            all_tasks,
            published_rows(PUBLISHED_RELATIVE, all_tasks) + relative,
        ),
        Table(
            "stages",
            "Two-stage against one-stage distillation",
            STAGE_TASKS,
            published_rows(PUBLISHED_STAGES, STAGE_TASKS) + stages,
        ),
    ]


def to_markdown(table: Table) -> str:
    """A heading and a Markdown table."""
    lines = ["Model", "Source", *(TITLES[task] for task in table.tasks)], ["---", "---"] + ["---:"] * len(table.tasks)
    rows = [[row.model, row.source, *(row.cells.get(task, "-") for task in table.tasks)] for row in table.rows]
    return f"### {table.title}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in [*lines, *rows])


def to_csv(table: Table) -> str:
    """The same table with F1 and EM in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header, rows = ["model", "source"], [[row.model, row.source] for row in table.rows]
    for task in table.tasks:
        metrics = TASKS[task].metrics
        header += [f"{TITLES[task]} {name}" for name in metrics]
        for line, row in zip(rows, table.rows):
            line += row.cells[task].split("/") if task in row.cells else ["-"] * len(metrics)
    writer.writerows([header, *rows])
    return text.getvalue()


# ---------------------------------------------------------------- chart


def draw(tables: list[Table], path: Path) -> None:
    """Bars of the first metric of every task, a panel a table; a model has one colour, published rows are pale and hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(tables), 1, figsize=(14, 4.5 * len(tables)), layout="constrained")
    colours = {model: f"C{index % 10}" for index, model in enumerate(dict.fromkeys(row.model for table in tables for row in table.rows))}
    for panel, table in zip(panels, tables):
        width = 0.8 / len(table.rows)
        lowest = 100.0
        for index, row in enumerate(table.rows):
            known = [
                (place, float(row.cells[task].split("/")[0]))
                for place, task in enumerate(table.tasks)
                if row.cells.get(task, "–")[0] != "–"
            ]
            lowest = min([lowest, *(value for _, value in known)])
            panel.bar(
                [place + (index - (len(table.rows) - 1) / 2) * width for place, _ in known],
                [value for _, value in known],
                width,
                label=f"{row.model} ({row.source})",
                color=colours[row.model],
                hatch="//" if row.source == "published" else None,
                alpha=0.5 if row.source == "published" else 1.0,
            )
        panel.set_title(table.title, fontsize=10)
        panel.set_xticks(range(len(table.tasks)), [f"{TITLES[task]}\n{TASKS[task].metrics[0]}" for task in table.tasks])
        panel.set_ylim(max(0, lowest - 10), None)
        panel.set_ylabel("percent (the axis does not begin at 0)")
        panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("results", nargs="+", metavar="[NAME=]results.json")
    parser.add_argument("--teacher", help=f"the measured model that is 100 percent; default: the published {PUBLISHED_TEACHER}")
    parser.add_argument("--two_stage", help="the measured model that was distilled in two stages, for the third table")
    parser.add_argument("--one_stage", help="the measured model that was distilled in one")
    parser.add_argument("--output_dir", default="tables", help="gets tables.md, a CSV a table, and tables.png")
    args = parse_one_line_errors(parser)
    results = read_results(args.results)
    for name in ("teacher", "two_stage", "one_stage"):
        if getattr(args, name) not in (None, *results):
            raise UserError(f"--{name} {getattr(args, name)}: no results of that model are given, only of {', '.join(results)}")
    tables = make_tables(results, args.teacher, args.two_stage, args.one_stage)
    markdown = "\n".join(to_markdown(table) for table in tables)
    notes = protocol_notes(results)
    if notes:
        markdown += "\nNot by the whole protocol:\n\n" + "".join(f"- {note}\n" for note in notes)
    print(markdown)
    output_dir = Path(args.output_dir)
    with whole_file(output_dir / "tables.md") as file:
        file.write(markdown)
    for table in tables:
        print(to_csv(table))
        with whole_file(output_dir / f"{table.name}.csv") as file:
            file.write(to_csv(table))
    draw(tables[:2], output_dir / "tables.png")
    print(f"written: {output_dir}/tables.md, absolute.csv, relative.csv, stages.csv, tables.png")


if __name__ == "__main__":
    run_script(main)
