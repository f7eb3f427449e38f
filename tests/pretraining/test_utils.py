"""utils.py: scripts of one clone do not run with the packages of another; NAME=PATH arguments."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from pretraining import train
from pretraining.utils import ArgumentParser, NamedPaths, UserError, cores_per_process, output_directory
from tests import tiny, workplace


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


def run_with_modules(directory: Path, script: str, **modules: str) -> workplace.Ended:
    """Runs a command with modules of a test's own in place of others; pretraining/ is the working directory."""
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(text)
    return workplace.run_there([sys.executable, script, "--help"], workplace.PRETRAINING, PYTHONPATH=str(directory))


INTERRUPT = "import os, signal; os.kill(os.getpid(), signal.SIGINT)\n"


@pytest.mark.parametrize("script", ["train.py", "my_datasets.py", "scripts/report.py", "../finetuning/run.py"])
def test_ctrl_c_during_the_imports_is_one_line(script, tmp_path):
    ended = run_with_modules(tmp_path, script, tqdm=INTERRUPT)
    assert ended[:3] == (130, "", "interrupted; run the same command again to resume\n")


SECOND_INTERRUPT = """
import atexit, os, signal
from pretraining.utils import run_script

def main():
    raise KeyboardInterrupt

atexit.register(os.kill, os.getpid(), signal.SIGINT)
run_script(main)
"""


def test_a_second_ctrl_c_changes_nothing(tmp_path):
    """It comes while the process ends, where it gave a traceback."""
    ended = workplace.run_there([sys.executable, "-c", SECOND_INTERRUPT], tmp_path)
    assert ended[:3] == (130, "", "interrupted; run the same command again to resume\n")


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


@pytest.mark.parametrize(("processes", "cores"), [(None, 24), ("8", 3), ("64", 1)])
def test_the_processes_of_a_machine_share_the_cores_that_a_scheduler_left_them(processes, cores, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(24)))
    monkeypatch.setattr(os, "cpu_count", lambda: 208)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if processes:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)  # torchrun sets it
    assert cores_per_process() == cores


@pytest.mark.parametrize(("cores", "started"), [(208, "32"), (4, "4")])
def test_train_starts_at_most_as_many_compiler_processes_as_torch_would(cores, started, corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "")  # so that it is put back
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS")
    monkeypatch.setattr(train, "cores_per_process", lambda: cores)
    tiny.run_train([*corpus.arguments(tmp_path / "run"), "--check_only", "true"])
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == started
