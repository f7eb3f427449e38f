"""Fills the published tables: results.json files of ``run.py`` in, Markdown, CSV and a bar chart out.

    python finetuning/table.py results/MiniRBT/*/results.json results/RBT6/*/results.json --teacher RBT6

Every argument is a results.json. Its row has the name of the model's directory. If two results are of one model and task, the rows have
the names of the results' directories: results/NAME/TASK/results.json. NAME=results/x/*/results.json gives another name. The tables have
published and measured rows, each marked as such; "-" stands for what was not measured.
"""

from itertools import starmap
from pathlib import Path
from typing import Any

from finetuning.published import (
    CLUE_TASKS,
    PEERS,
    PEERS_SOURCES,
    PUBLISHED,
    PUBLISHED_LEARNING_RATES,
    PUBLISHED_RELATIVE,
    PUBLISHED_STAGES,
    RATE,
    Figures,
)
from finetuning.results import Results, expand, figures, name_apart, protocol_notes, rate_text, read_results
from finetuning.rows import UNDEFINED, Row, Table, to_csv, to_markdown
from finetuning.task_definitions import TASKS
from pretraining.corpus.files import atomic_write
from pretraining.utils import ArgumentParser, UserError, run_script

STAGE_TASKS = ("cmrc2018", "ocnli", "lcqmc", "bq", "tnews")
PUBLISHED_TEACHER = "RoBERTa"
PUBLISHED_TASKS = tuple(PUBLISHED[PUBLISHED_TEACHER])

# ---------------------------------------------------------------- tables


def published_rows(published: Figures, tasks: tuple[str, ...], source: str = "published") -> list[Row]:
    """The rows of a published table, with the published text in the cells of ``tasks``."""
    rows = []
    for model, figures_of in published.items():
        known = [task for task in tasks if task in figures_of]
        cells = {
            task: "/".join(text for metric in (*TASKS[task].metrics, RATE) if (text := figures_of[task].get(metric))) for task in known
        }
        rows.append(Row(model, source, cells))
    return rows


def measured_row(model: str, contents: dict[str, dict[str, Any]]) -> Row:
    """The figures of a model with two decimals."""
    cells = {task: "/".join(f"{figure:.2f}" for figure in figures(content)) for task, content in contents.items()}
    return Row(model, "measured", cells)


def rate_row(model: str, contents: dict[str, dict[str, Any]]) -> Row:
    """The best learning rate of a model for each task that it was searched for."""
    return Row(
        model, "measured", {task: rate_text(each["settings"]["learning_rate"]) for task, each in contents.items() if is_search(each)}
    )


def is_search(content: dict[str, Any]) -> bool:
    """True for the results of several learning rates."""
    return bool(content.get("by_learning_rate"))


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
    """The tables: absolute, relative to the teacher, two-stage against one-stage, best learning rates, and CLUE beside peers.

    The first two also have a column for each measured task of CLUE and for each own task.
    """
    metrics = {task: tuple(content["metrics"]) for contents in results.values() for task, content in contents.items()}
    own = {task: names for task, names in metrics.items() if task not in TASKS}
    all_tasks = (*PUBLISHED_TASKS, *(task for task in TASKS if task in metrics and task not in PUBLISHED_TASKS), *own)
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
            own,
        ),
        Table(
            "relative",
            f"Relative performance in percent ({of_what}; published rows: of {PUBLISHED_TEACHER}, published)",
            all_tasks,
            published_rows(PUBLISHED_RELATIVE, all_tasks) + relative,
            own,
        ),
        Table(
            "stages",
            "Two-stage against one-stage distillation",
            STAGE_TASKS,
            published_rows(PUBLISHED_STAGES, STAGE_TASKS) + stages,
        ),
        Table(
            "learning_rates",
            "Best learning rate (the small models are RBT3, RBT4-H312, MiniRBT-H256 and MiniRBT-H288)",
            all_tasks,
            published_rows(PUBLISHED_LEARNING_RATES, all_tasks) + [row for row in starmap(rate_row, results.items()) if row.cells],
            dict.fromkeys(all_tasks, (RATE,)),
        ),
        Table(
            "clue",
            "CLUE beside peers (dev sets; the peers' own protocols are below, they are not the one of the first table)",
            CLUE_TASKS,
            [row for source, peers in PEERS.items() for row in published_rows(peers, CLUE_TASKS, f"published {source}")]
            + [measured_row(model, contents) for model, contents in results.items() if set(contents) & set(CLUE_TASKS)],
        ),
    ]


def markdown_of(tables: list[Table], notes: list[str]) -> str:
    """All tables, and below them the sources of the peers and the notes."""
    text = "\n".join(to_markdown(table) for table in tables)
    text += "\n" + "".join(f"- {source} {where}\n" for source, where in PEERS_SOURCES.items())
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
    parser.add_argument(
        "--output_dir", default="tables", help="for tables.md, one CSV file per table, tables.png, and after searches learning_rates.png"
    )
    args = parser.parse_args(argv)
    results = read_results(name_apart(expand(args.results)))
    for name in ("teacher", "two_stage", "one_stage"):
        if getattr(args, name) not in (None, *results):
            raise UserError(f"--{name} {getattr(args, name)}: no results of that model are given, only of {', '.join(results)}")

    from finetuning.chart import (  # matplotlib takes half a second to import; wrong arguments and results are refused before
        draw,
        draw_learning_rates,
    )

    tables = make_tables(results, args.teacher, args.two_stage, args.one_stage)
    output_dir = Path(args.output_dir)
    write_text(output_dir / "tables.md", markdown_of(tables, protocol_notes(results)))
    for table in tables:
        write_text(output_dir / f"{table.name}.csv", to_csv(table))
    draw(tables[:2], output_dir / "tables.png")
    written = ["tables.md", *(f"{table.name}.csv" for table in tables), "tables.png"]
    searched = {model: {task: each for task, each in of.items() if is_search(each)} for model, of in results.items()}
    if any(searched.values()):
        draw_learning_rates(searched, output_dir / "learning_rates.png")
        written.append("learning_rates.png")
    print(f"written: {output_dir}/{', '.join(written)}")


if __name__ == "__main__":
    run_script(main)
