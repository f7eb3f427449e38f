"""Scripts of one clone do not run with the packages of another."""

import shutil
import sys

from tests import workplace


def test_a_second_clone_that_is_not_installed_is_refused(work, tmp_path):
    """Its own config.py and matches.py would be ignored without a word."""
    clone = tmp_path / "clone"
    shutil.copytree(work, clone / "pretraining")
    shutil.copy(workplace.PRETRAINING.parent / "pyproject.toml", clone)
    ended = workplace.run_there([sys.executable, "train.py", "--help"], clone / "pretraining")
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert f"the packages in use are those of {workplace.PRETRAINING.parent}; run pip install -e . in {clone}" in ended.err
    (clone / "pyproject.toml").unlink()  # a plain copy of the folder, as for data on another disk, is no clone
    assert workplace.run_there([sys.executable, "train.py", "--help"], clone / "pretraining").status == 0
