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
        source: "published", with a mark if it is not from the MiniRBT README, or "measured".
        cells: the text of each known cell by task; with several metrics "78.47/56.27".
    """

    model: str
    source: str
    cells: dict[str, str]


class Table(NamedTuple):
    """A table with a column for each task.

    Attributes:
        name: the name of its CSV file, without the ending.
        metrics: the names of the figures in a task's cells, where they are not the metrics of a task of the project.
    """

    name: str
    title: str
    tasks: tuple[str, ...]
    rows: list[Row]
    metrics: dict[str, tuple[str, ...]] = {}

    def title_of(self, task: str) -> str:
        """The head of a task's column."""
        return TASKS[task].title if task in TASKS else task

    def metrics_of(self, task: str) -> tuple[str, ...]:
        """The names of the figures in a task's cells."""
        return self.metrics[task] if task in self.metrics else TASKS[task].metrics


def to_markdown(table: Table) -> str:
    """A heading and a Markdown table."""
    lines = [["Model", "Source", *map(table.title_of, table.tasks)]]
    for row in table.rows:
        lines.append([row.model, row.source, *(row.cells.get(task, UNKNOWN) for task in table.tasks)])
    return f"### {table.title}\n\n{markdown_table(lines, left=2)}\n"


def to_csv(table: Table) -> str:
    """The same table with a column for each metric."""
    header, lines = ["model", "source"], [[row.model, row.source] for row in table.rows]
    for task in table.tasks:
        metrics = table.metrics_of(task)
        header += [f"{table.title_of(task)} {name}" for name in metrics]
        for line, row in zip(lines, table.rows):
            line += row.cells[task].split("/") if task in row.cells else [UNKNOWN] * len(metrics)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()
