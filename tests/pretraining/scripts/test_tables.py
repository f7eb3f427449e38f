"""tables.py and arguments.py: Markdown, figures, NAME=PATH arguments."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from pretraining.scripts.arguments import NamedPaths, output_directory
from pretraining.scripts.tables import escape_markdown, markdown_table, save_figure
from pretraining.utils import ArgumentParser, UserError
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


def parse(*arguments: str):
    parser = ArgumentParser(None)
    parser.add_argument("--models", action=NamedPaths, default={})
    parser.add_argument("--output_dir", type=output_directory)
    return parser.parse_args(arguments)


def test_named_paths_keep_their_order():
    assert parse().models == {}
    assert list(parse("--models", "b (2)=x", "a=y=z").models.items()) == [("b (2)", Path("x")), ("a", Path("y=z"))]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x"], "--models x: write NAME=PATH"),
        (["a="], "--models a=: write NAME=PATH"),
        (["a|b=x"], "--models a|b=x: write NAME=PATH"),
        (["a=x", "b=x", "a=y"], "--models a=y: the name a occurs twice"),
    ],
)
def test_names_are_unique_and_safe(values, message):
    with pytest.raises(UserError) as error:
        parse("--models", *values)
    assert message in str(error.value)


def test_an_output_directory_may_be_new_but_is_no_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert parse("--output_dir", str(tmp_path / "new")).output_dir == tmp_path / "new"
    with pytest.raises(UserError, match=f"--output_dir {tmp_path}/file: is a file, not a directory"):
        parse("--output_dir", str(tmp_path / "file"))
