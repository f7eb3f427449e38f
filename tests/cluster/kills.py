"""Kills what makes the references of a corpus, somewhere in its work; the same command must then end as if nothing had been.

    python -m tests.cluster.kills --kills 20 --seed 0          prints a table

Executors: local, Slurm (two nodes of its own) and Ray, two workers each. It needs Slurm and Ray: see make cluster.
"""

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests import tiny, workplace
from tests.cluster.keeper import NODES
from tests.cluster.two_nodes import TwoNodes, two_nodes

SCRIPT = "run_chinese_ref.py"
PARTS = 6
PART_BYTES = 400_000
EXECUTORS = {
    "local": ["--executor", "local", "--workers", "2"],
    "slurm": ["--executor", "slurm", "--workers", "2", "--partition", "debug", "--time", "00:10:00"],
    "ray": ["--executor", "ray", "--workers", "2"],
}
VICTIMS = {"local": ("worker", "command"), "slurm": ("worker", "command", "scancel", "slurmd"), "ray": ("worker", "command")}


class Kill(NamedTuple):
    """What is killed, and when: so many parts are finished, and some seconds later."""

    executor: str
    victim: str
    finished: int
    later: float = 0.0


class Outcome(NamedTuple):
    """What a kill has led to.

    Attributes:
        finished: parts that were finished when it was killed.
        line: the last line of the command; of a killed command, none.
        again: parts that the next command has made.
        lost: finished parts that it has made again.
        is_same: whether its files are those of an undisturbed command.
    """

    finished: int
    line: str
    again: int
    lost: int
    is_same: bool


def build(place: Path) -> None:
    """A pretraining directory whose text has ``PARTS`` parts, without references."""
    workplace.build(place)
    lines, size = [], 0
    for line in tiny.paragraphs(PARTS * PART_BYTES // 60, seed=5):
        lines.append(line)
        size += len(f"{line}\n".encode())
        if size > (PARTS - 0.5) * PART_BYTES:
            break
    (place / "a.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    workplace.write_data_json(place, ["a.txt"], [])
    for references in place.glob("*.refs"):
        references.unlink()


def command(executor: str, *more: str) -> list[str]:
    parts = ["--part_megabytes", str(PART_BYTES / 1e6)]
    return [sys.executable, SCRIPT, *workplace.command_line(SCRIPT), *parts, *EXECUTORS[executor], *more]


def references(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.glob("*.refs*")}


def finished_parts(place: Path) -> int:
    """Parts that wait for the others, or all of them in the file."""
    if (place / "a.refs").exists():
        return PARTS
    return len([path for path in place.glob(".a.refs.parts/*") if re.fullmatch(r"\d{5}-[0-9a-f]{16}", path.name)])


def kill(wanted: Kill, place: Path, cluster: TwoNodes | None) -> tuple[int, str]:
    """Runs the command and kills; returns the finished parts at that moment, and the command's last line."""
    environment = cluster.environment if cluster else {}
    with (place / "out").open("wb") as out:
        settings = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out, "start_new_session": True}
        process = subprocess.Popen(command(wanted.executor), cwd=place, env={**workplace.ENVIRONMENT, **environment}, **settings)
    wait_for(lambda: finished_parts(place) >= wanted.finished and workers(place), process, place)
    time.sleep(wanted.later)
    wait_for(lambda: workers(place), process, place)
    finished = finished_parts(place)
    victims: dict[str, Callable[[], object]] = {
        "worker": lambda: kill_worker(place),
        "command": process.kill,
        "scancel": lambda: cluster and cluster.run("scancel", *cluster.jobs()),
        "slurmd": lambda: cluster and (cluster.kill_slurmd(NODES[1]), cluster.start_node(NODES[1])),
    }
    victims[wanted.victim]()
    process.wait(timeout=300)
    return finished, workplace.on_a_terminal((place / "out").read_text()).strip().split("\n")[-1]


def workers(place: Path) -> list[int]:
    """Process numbers of the workers that are at work."""
    found = []
    for path in place.glob(".workers/run-*/progress/?????"):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_text())["pid"])
    return [process for process in found if Path("/proc", str(process)).exists()]


def kill_worker(place: Path) -> None:
    with suppress(ProcessLookupError):
        for process in workers(place)[-1:]:
            os.kill(process, signal.SIGKILL)


def wait_for(condition: Callable[[], object], process: subprocess.Popen, place: Path) -> None:
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, (place / "out").read_text()
        time.sleep(0.01)


def kill_and_run_again(wanted: Kill, place: Path, expected: dict[str, bytes], cluster: TwoNodes | None) -> Outcome:
    """Raises AssertionError if the next command fails."""
    finished, line = kill(wanted, place, cluster)
    ended = workplace.run_there(command(wanted.executor), place, **(cluster.environment if cluster else {}))
    assert ended.status == 0, ended.err
    made = re.search(r"lines in (\d+) parts?", ended.out)
    again = int(made[1]) if made else 0
    is_same = references(place) == expected and not list(place.rglob(".workers")) and not list(place.glob(".a.refs.parts"))
    return Outcome(finished, line, again, max(0, finished + again - PARTS), is_same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--executors", nargs="+", default=list(EXECUTORS), choices=EXECUTORS)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as directory, two_nodes() as cluster:
        built, alone = Path(directory, "built"), Path(directory, "alone")
        build(built)
        shutil.copytree(built, alone)
        ended = workplace.run_there(command("local"), alone)
        assert ended.status == 0 and f" in {PARTS} parts" in ended.out, ended
        expected = references(alone)
        print(
            "| executor | killed | finished parts | the command's last line | parts made by the next command | finished parts made again | same files |"
        )
        print("|---|---|---|---|---|---|---|")
        for number in range(args.kills):
            executor = args.executors[number % len(args.executors)]
            wanted = Kill(executor, draw.choice(VICTIMS[executor]), draw.randrange(PARTS), draw.uniform(0, 0.5))
            place = Path(shutil.copytree(built, Path(directory, f"kill{number}")))
            outcome = kill_and_run_again(wanted, place, expected, cluster)
            line = "" if wanted.victim == "command" else re.sub(re.escape(str(place)) + "/|[^ ]*/run-[^ ,]*", "", outcome.line)
            print(
                f"| {executor} | {wanted.victim} | {outcome.finished} of {PARTS} | {line} | {outcome.again} | {outcome.lost} | {'yes' if outcome.is_same else 'NO'} |",
                flush=True,
            )
            shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    main()
