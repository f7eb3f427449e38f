"""The bar chart of the tables, and the plot of scores against learning rates."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finetuning.results import Results, rate_text
from finetuning.rows import UNDEFINED, Row, Table
from finetuning.task_definitions import TASKS
from pretraining.reporting.tables import save_figure


def draw(tables: list[Table], path: Path) -> None:
    """Draws the figures of every task, one panel per table, and writes them as PNG.

    A model has the same colour in all panels; published rows are pale and hatched.
    """
    figure = Figure(figsize=(14, 4.5 * len(tables)), layout="constrained")
    panels = figure.subplots(len(tables), 1, squeeze=False)[:, 0]
    models = dict.fromkeys(row.model for table in tables for row in table.rows)
    colours = {model: f"C{index % 10}" for index, model in enumerate(models)}
    for panel, table in zip(panels, tables):
        draw_panel(panel, table, colours)
    save_figure(figure, path)


def draw_panel(panel: Axes, table: Table, colours: dict[str, str]) -> None:
    """Draws the bars of one table, by task and then by row; a line across a bar is the second metric."""
    width = 0.8 / len(table.rows)
    lowest = 100.0
    for index, row in enumerate(table.rows):
        heights, seconds = metric_figures(row, table.tasks, 0), metric_figures(row, table.tasks, 1)
        lowest = min([lowest, *heights.values(), *seconds.values()])
        shift = (index - (len(table.rows) - 1) / 2) * width  # the rows of a task stand side by side around its tick
        panel.bar(
            [position + shift for position in heights],
            list(heights.values()),
            width,
            label=f"{row.model} ({row.source})",
            color=colours[row.model],
            hatch="//" if row.source == "published" else None,
            alpha=0.5 if row.source == "published" else 1.0,
        )
        ends = [position + shift for position in seconds]
        panel.hlines(
            list(seconds.values()), [end - width / 2 for end in ends], [end + width / 2 for end in ends], colors="black", linewidth=2
        )
    panel.set_title(table.title, fontsize=10)
    panel.set_xticks(range(len(table.tasks)), [f"{table.title_of(task)}\n{metrics_label(table.metrics_of(task))}" for task in table.tasks])
    bottom = max(0.0, lowest - 10)
    panel.set_ylim(bottom, None)
    panel.set_ylabel("percent" + (" (the axis does not begin at 0)" if bottom else ""))
    panel.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def metrics_label(metrics: tuple[str, ...]) -> str:
    """``accuracy``, or ``bar: F1, line: EM``."""
    return metrics[0] if len(metrics) == 1 else f"bar: {metrics[0].upper()}, line: {metrics[1].upper()}"


def metric_figures(row: Row, tasks: tuple[str, ...], metric: int) -> dict[int, float]:
    """The figures of metric 0 or 1 by the position of their task, for the cells that have one."""
    figures = {}
    for position, task in enumerate(tasks):
        parts = row.cells.get(task, UNDEFINED).split("/")
        if metric < len(parts) and parts[metric] != UNDEFINED:
            figures[position] = float(parts[metric])
    return figures


def draw_learning_rates(results: Results, path: Path) -> None:
    """Draws score against learning rate, one panel per task and one line per model, and writes it as PNG.

    The score is the first metric, the best over the epoch counts of the mean over the seeds; the bars are the standard deviation over them.

    Args:
        results: by model and task the results of searches alone.
    """
    tasks = list(dict.fromkeys(task for contents in results.values() for task in contents))
    figure = Figure(figsize=(6 * len(tasks), 4.5), layout="constrained")
    for panel, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks):
        metric, rates = "", set[float]()
        for number, (model, contents) in enumerate(results.items()):
            if task not in contents:
                continue
            rows, metric = contents[task]["by_learning_rate"], contents[task]["metrics"][0]
            scores, bars = [row[f"{metric}_mean"] for row in rows], [row.get(f"{metric}_std") or 0.0 for row in rows]
            panel.errorbar(
                [row["learning_rate"] for row in rows], scores, bars, marker="o", capsize=3, color=f"C{number % 10}", label=model
            )
        panel.set_xscale("log")
        panel.set_xticks(sorted(rates), map(rate_text, sorted(rates)))
        panel.set_xticks([], minor=True)
        panel.set_title(TASKS[task].title if task in TASKS else task, fontsize=10)
        panel.set_xlabel("learning rate")
        panel.set_ylabel(f"{metric}, percent")
        panel.legend(fontsize=8)
    save_figure(figure, path)
