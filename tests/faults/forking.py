"""Runs of the scripts that start at once: each is forked from a process that has imported everything but has no threads yet."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
from tqdm import tqdm

from tests import workplace

IMPORTED = [
    "tests.workplace",
    "pretraining.run_chinese_ref",
    "pretraining.my_datasets",
    "pretraining.train",
    "pretraining.distillation.training",
    "datasets",
]


class Run:
    """A script at work in a process group of its own.

    Args:
        prepare: called in the process before the script.

    Attributes:
        log: file with all that it prints.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)

    def __init__(
        self,
        script: str,
        arguments: list[str],
        directory: Path,
        log: Path,
        prepare: Callable[[], None] | None = None,
        **environment: str,
    ):
        self.log = log
        with pytest.MonkeyPatch.context() as monkeypatch:  # the server looks for what it imports along PYTHONPATH alone
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
            monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")  # train.py sets it, but here torch is imported before
            forkserver.ensure_running()
        receiver, sender = self.context.Pipe(duplex=False)
        self.process = self.context.Process(target=_child, args=(script, arguments, directory, log, prepare, environment, sender))
        self.process.start()
        sender.close()
        receiver.recv()  # it has its group now
        self.begin = time.perf_counter()

    def kill_at(self, seconds: float) -> bool:
        """Kills the group with SIGKILL that long after its beginning; False if it had ended by itself."""
        self.process.join(max(0.0, self.begin + seconds - time.perf_counter()))
        return self.kill()

    def kill(self) -> bool:
        if self.process.exitcode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        return self.process.exitcode == -signal.SIGKILL

    def status(self, timeout: float = 300) -> int:
        """Waits for the end; returns the exit status."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise AssertionError(f"still at work after {timeout} s: {self.log.read_text()}")
        return self.process.exitcode


def _child(script: str, arguments: list[str], directory: Path, log: Path, prepare, environment: dict, sender) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(workplace.ENVIRONMENT, **environment)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind
    sender.send("ready")
    if prepare is not None:
        prepare()
    workplace.call(script, arguments, directory)
