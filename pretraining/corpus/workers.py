"""What a worker does, in any process on any machine: it makes the parts of a task and notes how far it is and what went wrong."""

import json
import os
import resource
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loguru import logger

from pretraining.corpus.locks import exclusive
from pretraining.utils import UserError, user_error_line

logger.disable("datatrove")  # its lines would come between the bar and the errors of the command

NOTE_SECONDS = 0.5
_held_gpus = ExitStack()  # until the process ends


class StoppedError(Exception):
    """The command has ended, or another task has failed."""


@dataclass
class Worker:
    """A step of a datatrove pipeline.

    Attributes:
        make: makes an item; called with the item and a function that takes numbers of finished lines.
        tasks: the items of each task.
        folder: of this run, on a disk that all workers share.
        directory: the working directory of the command; paths are relative to it.
        threads: of this worker.
        gpus: ids of the GPUs that the workers of one machine share.
        gpus_per_worker: how many of them this worker takes; 0: it sees what it is given.
    """

    make: Callable[[Any, Callable[[int], object]], None]
    tasks: list[list[Any]]
    folder: Path
    directory: str
    threads: int
    gpus: tuple[str, ...] = ()
    gpus_per_worker: int = 0

    def __call__(self, data: object, rank: int, world_size: int) -> None:
        """Makes the items of task ``rank``."""
        os.chdir(self.directory)
        for variable in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):  # read by LTP and the tokenizer, and by torch, at their first use
            os.environ.setdefault(variable, str(self.threads))
        progress = Progress(self.folder, rank)
        progress.note()
        try:
            if self.gpus and self.gpus_per_worker:
                _take_gpus(self.folder, self.gpus, self.gpus_per_worker)
            for item in self.tasks[rank]:
                self.make(item, progress.add)
        except StoppedError:
            return
        except Exception as error:
            line = user_error_line(error)
            _write(self.folder / "errors" / f"{rank:05d}", {"line": line, "traceback": None if line else traceback.format_exc()})
        progress.note()


class Progress:
    """Counts the finished lines of a task for the command that waits."""

    def __init__(self, folder: Path, rank: int):
        self.folder, self.file, self.lines, self.noted = folder, folder / "progress" / f"{rank:05d}", 0, 0.0

    def add(self, lines: int) -> None:
        """Raises StoppedError if the command wants no more."""
        self.lines += lines
        if time.monotonic() - self.noted > NOTE_SECONDS:
            self.note()
            if (self.folder / "stop").exists():
                raise StoppedError

    def note(self) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        _write(self.file, {"lines": self.lines, "pid": os.getpid(), "host": socket.gethostname(), "peak_kilobytes": peak})
        self.noted = time.monotonic()


def _write(path: Path, note: dict[str, Any]) -> None:
    with suppress(OSError):  # the command was killed, and its successor has removed the folder
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(note), encoding="utf-8")
        partial.replace(path)


@cache
def _take_gpus(folder: Path, gpus: tuple[str, ...], count: int) -> None:
    """Lets this process see ``count`` GPUs that no other worker of the run has; they are free when it ends, however it ends."""
    taken: list[str] = []
    for gpu in gpus:
        if len(taken) < count:
            with suppress(UserError):
                _held_gpus.enter_context(exclusive(folder / f"gpu-{gpu}.lock", f"GPU {gpu}"))
                taken.append(gpu)
    if len(taken) < count:
        raise UserError(f"no {count} of the GPUs {', '.join(gpus)} are free for a worker; use fewer --workers")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
