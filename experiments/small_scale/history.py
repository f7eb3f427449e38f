"""How the experiment ran: stages, repetitions and commands, read from what runner.py wrote into the work directory."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

from pretraining.corpus.files import read_lines, require_file

STAGE = "stage "
COMMIT = "commit "


class Event(NamedTuple):
    """A line of history.tsv: the time in seconds since 1970, what happened (begin, done, failed, "commit X"), to what."""

    time: int
    event: str
    name: str


class StageTime(NamedTuple):
    """The wall time of a stage; of an interrupted stage that of its last part."""

    seconds: int
    interrupted: bool


def read_history(work: Path) -> list[Event]:
    return [Event(int(time), event, name) for time, event, name in _read_tsv(work / "history.tsv")]


def stage_times(history: list[Event]) -> dict[str, StageTime]:
    """The wall times by the names of the stages, in order."""
    times: dict[str, StageTime] = {}
    begun: dict[str, list[int]] = {}
    for time, event, name in history:
        if not name.startswith(STAGE):
            continue
        if event == "begin":
            begun.setdefault(name, []).append(time)
        else:
            times[name.removeprefix(STAGE)] = StageTime(time - begun[name][-1], interrupted=len(begun[name]) > 1)
    return times


def repeated_jobs(history: list[Event]) -> str:
    """A list of the jobs that failed or began more than once, or a sentence that there are none."""
    begun = Counter(name for _, event, name in history if event == "begin" and not name.startswith(STAGE))
    lines = [f"- {name}: began {count} times" for name, count in begun.items() if count > 1]
    lines += [f"- {name}: failed" for _, event, name in history if event == "failed"]
    return "\n".join(lines) if lines else "No job failed, and none was repeated."


def commits(history: list[Event]) -> list[str]:
    """The commits that it ran with, each once."""
    return list(dict.fromkeys(event.removeprefix(COMMIT) for _, event, _ in history if event.startswith(COMMIT)))


def first_and_last(history: list[Event]) -> tuple[int, int]:
    """The times of the first and the last event of a job."""
    times = [time for time, event, _ in history if not event.startswith(COMMIT)]
    return times[0], times[-1]


def commands_block(work: Path) -> str:
    """The command of every job once, in order, with names in the place of this machine's paths."""
    paths = dict(line.split("=", 1) for line in read_lines(require_file(work / "paths.txt", "the experiment's paths, written by run.py")))
    python = paths.pop("python")
    names = {path: "../experiments/small_scale" if name == "here" else f"${name}" for name, path in paths.items()}
    commands = {}
    for job, command in _read_tsv(work / "commands.tsv"):
        command = "python " + command.removeprefix(python).strip()
        for path in sorted(names, key=len, reverse=True):  # a path inside another one comes later
            command = command.replace(path, names[path])
        commands[job] = f"# {job}\n{command}"
    return "\n".join(commands.values())


def _read_tsv(path: Path) -> list[list[str]]:
    return [line.split("\t") for line in read_lines(require_file(path, "written by run.py"))]
