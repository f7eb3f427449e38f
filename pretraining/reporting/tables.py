"""Markdown tables and figure files, for every report of the project."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.corpus.files import atomic_write

if TYPE_CHECKING:  # matplotlib takes a second to import, and tables do not need it
    from matplotlib.figure import Figure

DOTS_PER_INCH = 120


def markdown_table(rows: list[list[str]], left: int = 1) -> str:
    """Formats rows of cells as a Markdown table without a newline at its end.

    Args:
        rows: the header first; all rows have the same length.
        left: the number of left-aligned columns; the columns after them are right-aligned.
    """
    header, *body = rows
    rule = [":--"] * left + ["--:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *body])


def escape_markdown(text: str) -> str:
    """Puts a backslash before the characters that Markdown would interpret."""
    return re.sub(r"([\\`*_<>|~])", r"\\\1", text)


def save_figure(figure: "Figure", path: str | Path) -> None:
    """Writes a matplotlib figure to ``path`` as PNG.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format="png", dpi=DOTS_PER_INCH)
