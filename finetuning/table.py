"""Fills the published tables: results.json files of ``run.py`` in, Markdown, CSV and a bar chart out.

    python finetuning/table.py results/MiniRBT/*/results.json results/RBT6/*/results.json --teacher RBT6

Every argument is a results.json. Its row has the name of the model's directory. If two results are of one model and task, the rows have
the names of the results' directories: results/NAME/TASK/results.json. NAME=results/x/*/results.json gives another name. The tables have
published and measured rows, each marked as such; "-" stands for what was not measured.
"""

import glob
import math
import re
from pathlib import Path
from typing import Any

from finetuning.published import PUBLISHED, PUBLISHED_RELATIVE, PUBLISHED_STAGES, Figures
from finetuning.rows import UNDEFINED, Row, Table, to_csv, to_markdown
from finetuning.task_definitions import TASKS, Task
from finetuning.units import BATCH_SIZE, EPOCHS, SEEDS
from pretraining.corpus.files import atomic_write, read_json
from pretraining.utils import ArgumentParser, UserError, run_script

STAGE_TASKS = ("cmrc2018", "ocnli", "lcqmc", "bq", "tnews")
PUBLISHED_TEACHER = "RoBERTa"
PROTOCOL_SETTINGS = {"max_seq_length", "per_device_train_batch_size", "learning_rate", "teacher"}

Results = dict[str, dict[str, dict[str, Any]]]  # model -> task -> content of a results.json

# ---------------------------------------------------------------- what was measured


def expand(arguments: list[str]) -> list[str]:
    """Replaces ``NAME=PATTERN``, which a shell leaves as it is, by ``NAME=PATH`` of each file."""
    expanded: list[str] = []
    for argument in arguments:
        name, equals, pattern = argument.rpartition("=")
        if not equals or Path(argument).exists() or not glob.has_magic(pattern):
            expanded.append(argument)
            continue
        paths = sorted(glob.glob(pattern))
        if not paths:
            raise UserError(f"{argument}: no file has a name like that")
        expanded += [f"{name}={path}" for path in paths]
    return expanded


def name_apart(arguments: list[str]) -> list[str]:
    """Puts ``NAME=`` before the results of a model that has two for one task; NAME is the results' directory above the task's."""
    models: dict[str, str] = {}
    cells: dict[tuple[str, str], set[str]] = {}
    for argument in arguments:
        if "=" in argument and not Path(argument).exists():
            continue  # has a name
        content = read_json(_file(argument), "a results.json of run.py")
        models[argument] = model_name(str(content.get("model")))
        cells.setdefault((models[argument], str(content.get("task"))), set()).add(argument)
    twice = {model for (model, _), same in cells.items() if len({_file(path).resolve().parents[1] for path in same}) > 1}
    return [f"{_file(text).resolve().parents[1].name}={text}" if models.get(text) in twice else text for text in arguments]


def _file(path: str) -> Path:
    return Path(path) / "results.json" if Path(path).is_dir() else Path(path)


def read_results(arguments: list[str]) -> Results:
    """Reads the results.json files, by model and task.

    Raises:
        UserError: an unreadable file, one that run.py did not write, or two for the same model and task.
    """
    results: Results = {}
    paths: dict[tuple[str, str], str] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        if Path(argument).exists():
            name, path = "", argument
        content = read_json(Path(path) / "results.json" if Path(path).is_dir() else path, "a results.json of run.py")
        if wrong := wrong_field(content):
            raise UserError(f"{path}: is not a results.json of run.py, {wrong!r} is missing or not as run.py writes it")
        model, task = name or model_name(content["model"]), content["task"]
        if (model, task) in paths:
            raise UserError(f"{path}: {paths[model, task]} has results of {model} for {task} too; name the models apart with NAME={path}")
        paths[model, task] = path
        results.setdefault(model, {})[task] = content
    return results


def wrong_field(content: dict[str, Any]) -> str | None:
    """The first field of a results.json that is missing or of another kind than run.py writes, or None."""
    task = TASKS.get(content["task"]) if isinstance(content.get("task"), str) else None
    best, rows, settings = (content.get(name) for name in ("best", "by_epochs", "settings"))
    checks = {
        "task": task is not None,
        "model": isinstance(content.get("model"), str),
        "metrics": task is not None and content.get("metrics") == list(task.metrics),
        "best": task is not None and isinstance(best, dict) and all(_is_number(best.get(f"{name}_mean")) for name in task.metrics),
        "by_epochs": isinstance(rows, list) and bool(rows) and all(map(_is_row, rows)),
        "settings": isinstance(settings, dict) and PROTOCOL_SETTINGS <= settings.keys(),
    }
    return next((name for name, is_right in checks.items() if not is_right), None)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("num_train_epochs")) is int and isinstance(row.get("seeds"), list) and bool(row["seeds"])


def model_name(directory: str) -> str:
    """The last part of a model's path; of a checkpoint ``saves/NAME/gs<step>`` the NAME."""
    path = Path(directory)
    return path.parent.name if re.fullmatch(r"gs\d+", path.name) and path.parent.name else path.name


def figures(content: dict[str, Any]) -> list[float]:
    """The figures of one results.json by the protocol, in percent, one per metric."""
    return [content["best"][f"{name}_mean"] for name in content["metrics"]]


def protocol_notes(results: Results) -> list[str]:
    """One line for each figure that was not measured by the full protocol."""
    notes = []
    for model, tasks in results.items():
        for name, content in tasks.items():
            if differences := protocol_differences(TASKS[name], content):
                notes.append(f"{model}, {TASKS[name].title}: {'; '.join(differences)}.")
    return notes


def protocol_differences(task: Task, content: dict[str, Any]) -> list[str]:
    """How the runs of one results.json differ from the protocol."""
    differences, settings = [], content["settings"]
    epochs = [row["num_train_epochs"] for row in content["by_epochs"]]
    if not set(EPOCHS) <= set(epochs):
        differences.append(f"only {', '.join(map(str, epochs))} epochs instead of {', '.join(map(str, EPOCHS))}")
    elif more := sorted(set(epochs) - set(EPOCHS)):
        differences.append(f"{', '.join(map(str, more))} epochs as well")
    seeds = min(len(row["seeds"]) for row in content["by_epochs"])
    if seeds < len(SEEDS):
        differences.append(f"only {seeds} of {len(SEEDS)} seeds")
    for key, what in (("max_train_samples", "training"), ("max_eval_samples", "dev")):
        if settings.get(key):
            differences.append(f"only the first {settings[key]} {what} examples")
    standards: dict[str, list] = {
        "max_seq_length": [task.max_seq_length],
        "per_device_train_batch_size": [BATCH_SIZE],
        "learning_rate": [task.learning_rate_small, task.learning_rate_roberta],
        "teacher": [None],
    }
    differences += [f"{key} {settings[key]}" for key, standard in standards.items() if settings[key] not in standard]
    return differences


# ---------------------------------------------------------------- tables


def published_rows(published: Figures, tasks: tuple[str, ...]) -> list[Row]:
    """The rows of a published table, with the published text in the cells of ``tasks``."""
    rows = []
    for model, figures_of in published.items():
        known = [task for task in tasks if task in figures_of]
        cells = {task: "/".join(figures_of[task][metric] for metric in TASKS[task].metrics) for task in known}
        rows.append(Row(model, "published", cells))
    return rows


def measured_row(model: str, contents: dict[str, dict[str, Any]]) -> Row:
    """The figures of a model with two decimals."""
    cells = {task: "/".join(f"{figure:.2f}" for figure in figures(content)) for task, content in contents.items()}
    return Row(model, "measured", cells)


def relative_row(model: str, contents: dict[str, dict[str, Any]], teacher: dict[str, list[float]]) -> Row:
    """The figures of a model in percent of the teacher's, with one decimal."""
    cells = {}
    for task, content in contents.items():
        if task in teacher:
            pairs = zip(figures(content), teacher[task])
            cells[task] = "/".join(f"{100 * own / of_teacher:.1f}" if of_teacher else UNDEFINED for own, of_teacher in pairs)
    return Row(model, "measured", cells)


def teacher_figures(results: Results, teacher: str | None) -> dict[str, list[float]]:
    """By task: the figures that are 100 percent, of a measured model or of the published RoBERTa."""
    if teacher is not None:
        return {task: figures(content) for task, content in results[teacher].items()}
    published = PUBLISHED[PUBLISHED_TEACHER]
    return {task: [float(published[task][metric]) for metric in TASKS[task].metrics] for task in published}


def make_tables(results: Results, teacher: str | None, two_stage: str | None, one_stage: str | None) -> list[Table]:
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
            published_rows(PUBLISHED, all_tasks) + [measured_row(model, contents) for model, contents in results.items()],
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


def markdown_of(tables: list[Table], notes: list[str]) -> str:
    """All tables, and below them the notes."""
    text = "\n".join(to_markdown(table) for table in tables)
    if notes:
        text += "\nNot by the full protocol:\n\n" + "".join(f"- {note}\n" for note in notes)
    return text


# ---------------------------------------------------------------- command


def write_text(path: Path, text: str) -> None:
    """Prints a text and writes it to a file."""
    print(text)
    with atomic_write(path) as file:
        file.write(text)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("results", nargs="+", metavar="[NAME=]results.json")
    parser.add_argument("--teacher", help=f"the measured model that is 100 percent; default: the published {PUBLISHED_TEACHER}")
    parser.add_argument("--two_stage", help="the measured model that was distilled in two stages, for the third table")
    parser.add_argument("--one_stage", help="the measured model that was distilled in one stage")
    parser.add_argument("--output_dir", default="tables", help="for tables.md, one CSV file per table, and tables.png")
    args = parser.parse_args(argv)
    results = read_results(name_apart(expand(args.results)))
    for name in ("teacher", "two_stage", "one_stage"):
        if getattr(args, name) not in (None, *results):
            raise UserError(f"--{name} {getattr(args, name)}: no results of that model are given, only of {', '.join(results)}")

    from finetuning.chart import draw  # matplotlib takes half a second to import; wrong arguments and results are refused before

    tables = make_tables(results, args.teacher, args.two_stage, args.one_stage)
    output_dir = Path(args.output_dir)
    write_text(output_dir / "tables.md", markdown_of(tables, protocol_notes(results)))
    for table in tables:
        write_text(output_dir / f"{table.name}.csv", to_csv(table))
    draw(tables[:2], output_dir / "tables.png")
    print(f"written: {output_dir}/tables.md, absolute.csv, relative.csv, stages.csv, tables.png")


if __name__ == "__main__":
    run_script(main)
