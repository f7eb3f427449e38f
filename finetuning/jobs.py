"""Runs of fine-tuning side by side, each a process of ``run.py``, on one GPU each where there are several."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from tqdm import tqdm

from pretraining.utils import UserError, cores_per_process, progress_bar

POLL_SECONDS = 0.1
PARENT = "MINIRBT_JOB_OF"  # environment of a job: the process that started it
RUN = Path(__file__).with_name("run.py")


class Job(NamedTuple):
    """One run.

    Attributes:
        name: for the messages.
        arguments: of run.py.
        log: the file for its output.
        result: the file that it writes in the end.
    """

    name: str
    arguments: list[str]
    log: Path
    result: Path


def run_side_by_side(jobs: list[Job], at_once: int, gpus: list[str]) -> None:
    """Runs all jobs, up to ``at_once`` at the same time. Names each that fails at once; the others go on.

    Args:
        gpus: values for CUDA_VISIBLE_DEVICES, which the places of the jobs take in turn; empty: the jobs have this process's.

    Raises:
        UserError: at least one failed, after all have ended. KeyboardInterrupt, SystemExit: a signal came; all were stopped.
    """
    handler = signal.signal(signal.SIGTERM, _exit)
    waiting, failed = list(jobs), 0
    running: dict[int, tuple[Job, subprocess.Popen]] = {}  # by place
    try:
        with progress_bar(total=len(jobs), desc="runs", unit=" runs") as bar:
            while waiting or running:
                for place in set(range(at_once)) - running.keys():
                    if waiting:
                        job = waiting.pop(0)
                        running[place] = job, _start(job, at_once, gpus[place % len(gpus)] if gpus else None)
                for place, (job, process) in list(running.items()):
                    if (status := process.poll()) is not None:
                        del running[place]
                        failed += _report(job, status)
                        bar.update()
                time.sleep(POLL_SECONDS)
    finally:
        for _, process in running.values():
            process.terminate()  # its checkpoint is on the disk already
        for _, process in running.values():
            process.wait()
        signal.signal(signal.SIGTERM, handler)
    if failed:
        raise UserError(f"{failed} of {len(jobs)} runs failed, see above; the same command repeats these alone")


def _exit(number: int, frame: Any) -> NoReturn:
    sys.exit(128 + number)


def _start(job: Job, at_once: int, gpu: str | None) -> subprocess.Popen:
    environment = {"OMP_NUM_THREADS": str(max(1, cores_per_process() // at_once)), **os.environ, PARENT: str(os.getpid())}
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "wb") as log:
        return subprocess.Popen(
            [sys.executable, str(RUN), *job.arguments], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _report(job: Job, status: int) -> bool:
    """Prints that a job is done, or what failed; returns whether it failed."""
    if status == 0 and job.result.is_file():
        tqdm.write(f"{job.name}: done")
        return False
    lines = job.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    tqdm.write(f"error: {job.name} ended with status {status}: {last.removeprefix('error: ')} (log: {job.log})", file=sys.stderr)
    return True


def end_with_parent() -> None:
    """In a job: ends this process when the one that started it has ended, however it ended. Its units are then free for a new command."""
    parent = os.environ.get(PARENT)
    if parent is not None:
        threading.Thread(target=_wait_for_end_of, args=(int(parent),), daemon=True).start()


def _wait_for_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)  # no handler, no output: nobody is there to read it
