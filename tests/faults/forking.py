"""Processes that start at once: each is forked from a process that has imported everything but has no threads yet."""

import multiprocessing
import os
import signal
import sys
import threading
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
    "finetuning.training",
    "datasets",
    "tests.faults.readers",
]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


def start(target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Starts a process that calls ``target``."""
    with pytest.MonkeyPatch.context() as monkeypatch:  # the server looks for what it imports along PYTHONPATH alone
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        monkeypatch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")  # train.py sets it, but here torch is imported before
        forkserver.ensure_running()
    process = CONTEXT.Process(target=target, args=arguments)
    process.start()
    return process


class Run:
    """A script at work in a process group of its own.

    Args:
        prepare: called in the process before the script.

    Attributes:
        log: file with all that it prints.
    """

    def __init__(
        self,
        script: str,
        arguments: list[str],
        directory: Path,
        log: Path,
        prepare: Callable[[], None] | None = None,
        **environment: str,
    ):
        """``prepare`` runs in the process before the script."""
        self.log = log
        receiver, sender = CONTEXT.Pipe(duplex=False)
        self.process = start(_child, script, arguments, directory, log, prepare, environment, sender)
        sender.close()
        receiver.recv()  # it has its group now

    def wait(self, seconds: float) -> None:
        """Waits so long, or until it ends."""
        self.process.join(seconds)

    def signal(self, number: int) -> None:
        """Sends a signal to the group; nothing if it has ended."""
        if self.process.exitcode is None:
            os.killpg(self.process.pid, number)

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

    def end(self) -> tuple[int, str]:
        """Waits for the end; returns the exit status and all that it printed."""
        return self.status(), self.log.read_text()


def _child(script: str, arguments: list[str], directory: Path, log: Path, prepare, environment: dict, sender) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the script handles it
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(workplace.ENVIRONMENT, **environment)
    tqdm.set_lock(threading.RLock())  # tqdm's own is a semaphore of the system, which a killed process leaves behind
    if prepare is not None:
        prepare()
    sender.send("ready")
    workplace.call(script, arguments, directory)
