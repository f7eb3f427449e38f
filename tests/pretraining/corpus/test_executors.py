"""Executors: the same files by any number of workers; the first error in one line; a killed worker is noticed; nothing is left behind."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from pretraining.corpus import executors
from pretraining.corpus.executors import group_by_size
from pretraining.utils import UserError
from tests import tiny, workplace

REFERENCES, SHARDS = "run_chinese_ref.py", "my_datasets.py"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("executors") / "place"
    workplace.build(place)
    (place / "a.txt").write_text("".join(f"{line}\n" for line in tiny.paragraphs(400, seed=5)), encoding="utf-8")
    for references in place.glob("*.refs"):
        references.unlink()
    return place


@pytest.fixture
def place(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "place")


def command(script: str, *more: str) -> list[str]:
    return [sys.executable, script, *workplace.command_line(script), "--part_megabytes", "0.01", *more]


def test_small_items_share_a_task():
    assert group_by_size([3, 4, 5, 1, 9, 2], lambda size: size, limit=9) == [[3, 4], [5, 1], [9], [2]]
    assert group_by_size([], lambda size: size, limit=9) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--no_wait",), "--no_wait: a Slurm job works on after the command has ended, --executor local does not; leave it out"),
        (("--workers", "2", "--gpus_per_worker", "1"), "--workers 2: with 1 GPUs each they need more than the 0 of this machine"),
        (("--executor", "slurm"), r"--executor slurm: (sbatch is not on this machine|name the --partition of the jobs)"),
        (("--executor", "other"), "--executor: invalid choice: 'other'"),
        (("--workers", "0"), "--workers 0: must be a whole number above 0"),
        (("--part_megabytes", "0"), "--part_megabytes 0: must be a number above 0"),
    ],
)
@pytest.mark.parametrize("script", [REFERENCES, SHARDS])
def test_what_is_missing_is_named_before_anything_is_read(script, arguments, says, built, capfd):
    before = workplace.entries(built)
    ended = workplace.run_here(script, [*workplace.command_line(script), *arguments], built, capfd)
    assert ended.status == 2 and re.match(f"error: {says}", ended.err) and ended.err.count("\n") == 1
    assert workplace.entries(built) == before


def made(place: Path) -> dict[str, bytes]:
    """References, notes and shards; not what is known of files, which depends on their times."""
    shards = (path for path in place.glob("shards/[a-z]*/**/*") if path.is_file() and not tiny.is_lock(path))
    names = (*place.glob("*.refs*"), *shards)
    return {str(path.relative_to(place)): path.read_bytes() for path in names}


@pytest.mark.slow
def test_two_workers_make_what_one_makes(place, built, tmp_path):
    alone = shutil.copytree(built, tmp_path / "alone")
    for script, unit in ((REFERENCES, "lines/s"), (SHARDS, "fingerprint")):
        one = workplace.run_there(command(script), alone)
        two = workplace.run_there(command(script, "--workers", "2"), place)
        assert (one.status, two.status) == (0, 0), one.err + two.err
        assert unit in two.out and "100%" in two.err
        assert {line for line in two.err.split("\n") if line and "lines/s" not in line} == set()  # no log of a library
    assert made(place) == made(alone) and "shards/a/00003/data.arrow" in made(place)
    assert not list(place.rglob(".workers"))


@pytest.mark.slow
def test_the_error_of_a_worker_is_the_commands_own_line(place):
    assert workplace.run_there(command(REFERENCES), place).status == 0
    references = (place / "a.refs").read_text().split("\n")
    line = next(number for number, text in enumerate(references, 1) if number > 300 and text != "[]")
    references[line - 1] = "[9999]"
    (place / "a.refs").write_text("\n".join(references))
    (place / "a.refs.json").unlink()
    errors = [workplace.run_there(command(SHARDS, *more), place) for more in ((), ("--workers", "2"))]
    assert [ended.status for ended in errors] == [2, 2]
    assert [ended.err.strip().split("\n")[-1] for ended in errors] == [
        f"error: a.refs:{line}: position 9999 lies outside the line's tokens that can continue a word "
        f"(2 to {errors[0].err.split('(2 to ')[1].split(')')[0]}); make it again with run_chinese_ref.py and the same vocabulary as here"
    ] * 2


def slow_down(place: Path) -> None:
    """Lets each worker wait in its first part until the file "go" is there."""
    (place / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "import importlib.abc, importlib.util\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name != 'pretraining.corpus.workers': return None\n"
        "        sys.meta_path.remove(self)\n"
        "        spec = importlib.util.find_spec(name)\n"
        "        execute = spec.loader.exec_module\n"
        "        def exec_module(module):\n"
        "            execute(module)\n"
        "            add = module.Progress.add\n"
        "            def waiting(progress, lines):\n"
        "                add(progress, lines)\n"
        "                while not os.path.exists('go'):\n"
        "                    time.sleep(0.05)\n"
        "                    add(progress, 0)\n"
        "            module.Progress.add = waiting\n"
        "        spec.loader.exec_module = exec_module\n"
        "        return spec\n"
        "sys.meta_path.insert(0, Finder())\n"
    )


def started(place: Path, *more: str) -> tuple[subprocess.Popen, list[int]]:
    """A run of two workers, and their process numbers when both are at work."""
    slow_down(place)
    process = workplace.start(command(REFERENCES, "--workers", "2", *more), place, PYTHONPATH=str(place))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        notes = [json.loads(path.read_text()) for path in place.glob(".workers/run-*/progress/?????")]
        if len(notes) == 2:
            return process, [note["pid"] for note in notes]
        time.sleep(0.05)
    raise AssertionError(process.communicate(timeout=5))


def end_of(process: subprocess.Popen) -> workplace.Ended:
    out, err = (output.decode() for output in process.communicate(timeout=60))
    return workplace.Ended(process.returncode, out, workplace.on_a_terminal(err), 0.0)


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path("/proc", str(pid)).exists()]


def children_of_group(group: int) -> list[int]:
    """The processes of a process group that are still there."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.getpgid(int(path.name)) == group and path.joinpath("stat").read_text().split(") ")[1][0] != "Z":
                found.append(int(path.name))
        except OSError:
            continue
    return found


def wait_until(condition, seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.fixture
def whole(built, tmp_path) -> dict[str, bytes]:
    alone = shutil.copytree(built, tmp_path / "alone")
    assert workplace.run_there(command(REFERENCES), alone).status == 0
    return made(alone)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "command", "Ctrl-C"])
def test_after_a_kill_nothing_is_left_and_the_same_command_ends_as_if_nothing_had_been(victim, place, whole):
    process, pids = started(place)
    if victim == "worker":
        os.kill(pids[0], signal.SIGKILL)
        ended = end_of(process)
        assert ended.status == 2
        assert ended.err.strip().endswith(
            f"error: worker process {pids[0]} was killed; out of memory? Run again, perhaps with fewer --workers"
        )
    elif victim == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
        ended = end_of(process)
        assert (ended.status, ended.err.strip().split("\n")[-1]) == (130, "interrupted; run the same command again to resume")
        assert "Traceback" not in ended.err
    else:
        process.kill()
        process.wait()
    (place / "go").touch()
    assert wait_until(lambda: not children_of_group(process.pid)), children_of_group(process.pid)
    assert not (place / "a.refs").exists()
    ended = workplace.run_there(command(REFERENCES, "--workers", "2"), place)
    assert ended.status == 0 and made(place) == whole
    assert not list(place.rglob(".workers"))


@pytest.mark.parametrize(("kind", "done", "is_lost"), [("local", 1, True), ("local", 2, False), ("ray", 1, False), ("ray", 0, True)])
def test_a_worker_that_was_killed_between_its_tasks(kind, done, is_lost, tmp_path):
    """On one machine it may hold the queue, so that no other worker gets a task; in Ray a process ends with its task."""
    for name in ("progress", "errors", "completions"):
        (tmp_path / name).mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "progress" / "00000").write_text(json.dumps({"lines": 1, "pid": ended.pid, "host": socket.gethostname()}))
    for number in range(done):
        (tmp_path / "completions" / f"{number:05d}").touch()
    run = executors.Run(tmp_path, kind, lambda: True, lambda: None, tasks=2)
    with pytest.raises(UserError, match=f"worker process {ended.pid} was killed") if is_lost else nullcontext():
        executors._raise_first_error(run)


def test_a_job_that_is_still_at_work_is_not_submitted_again(place, tmp_path, capfd, monkeypatch):
    """With a squeue that names one job until it was asked three times."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "squeue").write_text("#!/bin/sh\n[ -e asked2 ] && exit 0\n[ -e asked ] && touch asked2\ntouch asked\necho 7\n")
    for name in ("sbatch", "scancel"):
        (tools / name).write_text("#!/bin/sh\necho must not be called >&2\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    folder = place / ".workers" / "run-earlier"
    (folder / "progress").mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps({"name": "minirbt-earlier", "tasks": 1, "lines": 10}))
    slurm = [*workplace.command_line(REFERENCES), "--executor", "slurm", "--partition", "cpu", "--no_wait"]
    ended = workplace.run_here(REFERENCES, slurm, place, capfd)
    assert (ended.status, ended.out) == (
        0,
        "the Slurm job minirbt-earlier of an earlier command is still at work (squeue --name minirbt-earlier)\n",
    )
    ended = workplace.run_here(REFERENCES, [argument for argument in slurm if argument != "--no_wait"], place, capfd)
    assert ended.status == 2 and "1 of 1 tasks ended without a result" in ended.err
