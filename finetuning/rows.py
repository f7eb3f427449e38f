"""Rows and tables of results, and their text: Markdown and CSV."""

import csv
import io
from typing import NamedTuple

from finetuning.task_definitions import TASKS
from pretraining.reporting.tables import markdown_table

UNKNOWN = "-"  # the cell of what was not measured
UNDEFINED = "–"  # a percentage of 0


class Row(NamedTuple):
    """One line of a table.

    Attributes:
        model: its name.
        source: "published" or "measured".
        cells: the text of each known cell by task; with several metrics "78.47/56.27".
    """

    model: str
    source: str
    cells: dict[str, str]


class Table(NamedTuple):
    """A table with a column for each task; ``name`` is the name of its CSV file, without the ending."""

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: list[Row]


def to_markdown(table: Table) -> str:
    """A heading and a Markdown table."""
    lines = [["Model", "Source", *(TASKS[task].title for task in table.tasks)]]
    for row in table.rows:
        lines.append([row.model, row.source, *(row.cells.get(task, UNKNOWN) for task in table.tasks)])
    return f"### {table.title}\n\n{markdown_table(lines, left=2)}\n"


def to_csv(table: Table) -> str:
    """The same table with a column for each metric."""
    header, lines = ["model", "source"], [[row.model, row.source] for row in table.rows]
    for task in table.tasks:
        metrics = TASKS[task].metrics
        header += [f"{TASKS[task].title} {name}" for name in metrics]
        for line, row in zip(lines, table.rows):
            line += row.cells[task].split("/") if task in row.cells else [UNKNOWN] * len(metrics)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
