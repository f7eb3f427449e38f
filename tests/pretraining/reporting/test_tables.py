"""tables.py: Markdown and figures."""

from matplotlib.figure import Figure

from pretraining.reporting.tables import escape_markdown, markdown_table, save_figure
from tests.pretraining.scripts.helpers import PNG


def test_the_first_columns_are_left_aligned():
    rows = [["a", "b", "c"], ["1", "2", "3"]]
    assert markdown_table(rows) == "| a | b | c |\n| :-- | --: | --: |\n| 1 | 2 | 3 |"
    assert markdown_table(rows, left=2).splitlines()[1] == "| :-- | :-- | --: |"


def test_markdown_signs_in_tokens_are_escaped():
    assert escape_markdown("a|b*_<c>`[MASK]") == "a\\|b\\*\\_\\<c\\>\\`[MASK]"


def test_a_figure_is_written_atomically(tmp_path):
    save_figure(Figure(), tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(PNG)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["figure.png"]
