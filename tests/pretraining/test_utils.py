"""utils.py: errors in one line; scripts of one clone do not run with the packages of another; NAME=PATH arguments."""

import ast
import errno
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from urllib.error import HTTPError

import pytest

from pretraining import COMMANDS, utils
from pretraining.utils import ArgumentParser, NamedPaths, UserError, cores_per_process, output_directory, run_script
from tests import tiny, workplace


@pytest.fixture
def outcome(capsys):
    """``outcome(main)``: the exit status of a command and what it printed on stderr; other errors pass."""
    handler = signal.getsignal(signal.SIGINT)

    def run(main) -> tuple[int, str]:
        with pytest.raises(SystemExit) as end:
            run_script(main)
        return end.value.code, capsys.readouterr().err

    yield run
    signal.signal(signal.SIGINT, handler)


def raises(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_an_error_about_a_file_by_its_name_is_one_line(outcome, tmp_path):
    assert outcome((tmp_path / "none").read_text) == (2, f"error: {tmp_path}/none: No such file or directory\n")
    assert outcome(lambda: os.listdir(os.fsencode(tmp_path / "none"))) == (2, f"error: {tmp_path}/none: No such file or directory\n")


def test_a_full_disk_and_missing_permissions_are_one_line(outcome):
    assert outcome(raises(OSError(errno.ENOSPC, "No space left on device"))) == (2, "error: No space left on device\n")
    assert outcome(raises(PermissionError(errno.EPERM, "Operation not permitted"))) == (2, "error: Operation not permitted\n")


def connect_to_nobody() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        socket.create_connection(free.getsockname()).close()


@pytest.mark.parametrize(
    ("main", "kind"),
    [
        (connect_to_nobody, ConnectionRefusedError),
        (lambda: os.waitpid(os.getpid(), 0), ChildProcessError),
        (lambda: os.read(99, 1), OSError),
        (raises(HTTPError("http://localhost/x", 404, "Not Found", None, None)), HTTPError),
        (raises(OSError("a library's text")), OSError),
    ],
)
def test_other_system_errors_are_faults_and_keep_their_traceback(main, kind, outcome):
    with pytest.raises(kind):
        outcome(main)


def test_a_command_whose_reader_has_read_enough_ends_without_a_word(tmp_path):
    code = "from pretraining.utils import run_script; run_script(lambda: [print('x' * 99) for _ in range(100_000)])"
    process = workplace.start([sys.executable, "-c", code], tmp_path)
    assert process.stdout and process.stderr and process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 128 + signal.SIGPIPE)


def test_a_traceback_of_every_error_if_asked_for(outcome, monkeypatch):
    def main() -> None:
        try:
            int("x")
        except ValueError:
            raise UserError("a.json:1: no number") from None

    assert outcome(main) == (2, "error: a.json:1: no number\n")
    monkeypatch.setenv("MINIRBT_TRACEBACK", "1")
    status, err = outcome(main)
    assert status == 2 and err.endswith("\nerror: a.json:1: no number\n")
    assert "ValueError: invalid literal" in err and "pretraining.utils.UserError: a.json:1: no number" in err
    status, err = outcome(raises(KeyboardInterrupt()))
    assert status == 130 and "Traceback" in err and err.endswith("\ninterrupted; run the same command again to resume\n")


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
from pretraining import COMMANDS
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


def test_help_shows_the_defaults(capsys):
    parser = ArgumentParser(None)
    parser.add_argument("--rounds", type=int, default=7, help="timed turns")
    parser.add_argument("--layers", nargs="+", default=[0, 2])
    parser.add_argument("--share", default="10%", help="of all")
    parser.add_argument("--work", default="x", help="a directory; default: where you are")
    parser.add_argument("--int8", action="store_true", help="also int8")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("--")] == [
        "--rounds ROUNDS timed turns; default: 7",
        "--layers LAYERS [LAYERS ...]",
        "--share SHARE of all; default: 10%",
        "--work WORK a directory; default: where you are",
        "--int8 also int8",
    ]
    assert "default: 0 2" in lines


def test_examples_in_docstrings_keep_their_line_ends():
    """A backslash at the end of a line of a docstring must be written twice, else Python joins the two lines."""
    modules = [path for package in COMMANDS for path in (workplace.PRETRAINING.parent / package).rglob("*.py")]
    documented = {path.name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "" for path in modules}
    assert " \\\n        --matches" in documented["train.py"]
    too_long = [name for name, text in documented.items() if any(len(line) > 140 for line in text.splitlines())]
    assert len(modules) > 80 and too_long == []


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
    monkeypatch.setattr(utils, "cores_per_process", lambda: cores)
    tiny.run_train([*corpus.arguments(tmp_path / "run"), "--check_only", "true"])
    assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == started
