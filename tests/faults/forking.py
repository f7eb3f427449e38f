"""Processes that start at once: each is forked from a process that has imported everything but has no threads yet."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

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
    "tests.faults.readers",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a process that calls ``target``."""
    with pytest.MonkeyPatch.context() as monkeypatch:  # the server looks for what it imports along PYTHONPATH alone
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        forkserver.ensure_running()
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


class Run:
    """A script at work in a process group of its own.

    Attributes:
        log: file with all that it prints.
    """

    def __init__(self, script: str, arguments: list[str], directory: Path, log: Path, **environment: str):
        self.log = log
        receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = start(_child, script, arguments, directory, log, environment, sender)
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


def _child(script: str, arguments: list[str], directory: Path, log: Path, environment: dict, sender) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(workplace.ENVIRONMENT, **environment)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind
    sender.send("ready")
    workplace.call(script, arguments, directory)
