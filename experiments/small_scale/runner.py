"""Runs stages of jobs, several jobs of a stage side by side. Started again, it repeats only what is unfinished.

In the work directory: ``done/JOB`` marks a finished job, ``logs/JOB.log`` has its output, ``commands.tsv`` its command.
``history.tsv`` has a line for each begin, end and failure, with the time in seconds since 1970.
"""

import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pretraining.utils import STOP_SIGNALS

POLL_SECONDS = 0.1


class Job(NamedTuple):
    """A process to run.

    Attributes:
        name: unique; the name of its log and of its completion marker.
        command: program and arguments.
        blocking: the jobs after it need its result and wait for it.
    """

    name: str
    command: list[str]
    blocking: bool = False


class JobStage(NamedTuple):
    """Jobs of which up to ``jobs_at_once`` run side by side; the next stage begins when all have ended."""

    name: str
    jobs_at_once: int
    jobs: list[Job]


class JobFailed(Exception):
    """A job ended with another status than 0; ``status`` is what a shell would report (128 + signal number for a signal)."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class Interrupted(Exception):
    """SIGINT, SIGTERM or SIGHUP arrived; ``status`` is 130, 143 or 129."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by {signal.Signals(signal_number).name}; run the same command again to resume")
        self.status = 128 + signal_number


class Runner:
    """Runs the jobs of one work directory.

    Args:
        work: the work directory, with ``done/`` and ``logs/`` in it.
        directory: where the jobs run.
    """

    def __init__(self, work: Path, directory: Path):
        self.work = work
        self.directory = directory
        self.running: dict[str, subprocess.Popen] = {}
        self.signal_number: int | None = None

    def run(self, stages: list[JobStage], report: list[str]) -> None:
        """Runs all stages, then the command of the report, whose output goes to the terminal.

        Raises:
            JobFailed: a job failed. Interrupted: a stop signal arrived. In both cases all other jobs were stopped.
        """
        listened = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores SIGHUP
        handlers = {number: signal.signal(number, self._note_signal) for number in listened}
        try:
            for stage in stages:
                self.run_stage(stage)
            self.running["report"] = subprocess.Popen(report, cwd=self.directory, stdin=subprocess.DEVNULL)
            if status := self.wait_for_any()["report"]:
                message = f"the report ended with status {status}, see above"
                print(f"error: {message}", file=sys.stderr)
                raise JobFailed(message, status)
        finally:
            self.stop_all()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def run_stage(self, stage: JobStage) -> None:
        """Runs the unfinished jobs of a stage in their order."""
        unfinished = [job for job in stage.jobs if not self._marker(job.name).exists()]
        if not unfinished:
            return
        self.note("begin", f"stage {stage.name}")
        print(f"{_now()} ==== {stage.name}", flush=True)
        for job in unfinished:
            while len(self.running) >= stage.jobs_at_once:
                self.finish_any()
            self.start(job)
            while job.blocking and self.running:
                self.finish_any()
        while self.running:
            self.finish_any()
        self.note("done", f"stage {stage.name}")

    def start(self, job: Job) -> None:
        """Starts a job; its output is appended to its log."""
        with open(self.work / "commands.tsv", "a", encoding="utf-8") as file:
            file.write(f"{job.name}\t{shlex.join(job.command)}\n")
        self.note("begin", job.name)
        print(f"{_now()} {job.name} begins; to see its progress: tail -f {self._log(job.name)}", flush=True)
        with open(self._log(job.name), "ab") as log:
            process = subprocess.Popen(job.command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.running[job.name] = process

    def finish_any(self) -> None:
        """Waits until at least one job has ended, and marks as done what ended well.

        Raises:
            JobFailed: a job ended with another status than 0.
        """
        ended = self.wait_for_any()
        for name, status in ended.items():
            if status == 0:
                self._marker(name).touch()
                self.note("done", name)
                print(f"{_now()} {name} is done", flush=True)
        failed = {name: status for name, status in ended.items() if status != 0}
        for name in failed:
            self.note("failed", name)
        for name, status in failed.items():
            log = self._log(name)
            message = f"{name} ended with status {status}: {last_line(log)} (log: {log}); fix it and run the same command again"
            print(f"error: {message}", file=sys.stderr, flush=True)  # before the other jobs are stopped, which may take minutes
            raise JobFailed(message, status)

    def wait_for_any(self) -> dict[str, int]:
        """Waits until at least one running job has ended; returns the exit status of each that has.

        Raises:
            Interrupted: a signal arrived.
        """
        while True:
            if self.signal_number is not None:
                raise Interrupted(self.signal_number)
            statuses = {name: process.poll() for name, process in self.running.items()}
            ended = {name: status if status >= 0 else 128 - status for name, status in statuses.items() if status is not None}
            if ended:
                for name in ended:
                    del self.running[name]
                return ended
            time.sleep(POLL_SECONDS)

    def stop_all(self) -> None:
        """Sends SIGTERM to all running jobs and waits for them; train.py writes a checkpoint before it ends."""
        for process in self.running.values():
            process.terminate()
        for process in self.running.values():
            process.wait()
        self.running.clear()

    def note(self, event: str, name: str) -> None:
        """Appends a line to history.tsv."""
        with open(self.work / "history.tsv", "a", encoding="utf-8") as file:
            file.write(f"{int(time.time())}\t{event}\t{name}\n")

    def _note_signal(self, number: int, frame: object) -> None:
        """Does not raise: a job that is just being started would be lost."""
        self.signal_number = number

    def _marker(self, name: str) -> Path:
        return self.work / "done" / name

    def _log(self, name: str) -> Path:
        return self.work / "logs" / f"{name}.log"


def last_line(log: Path) -> str:
    """The last line of a job's output."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return lines[-1] if lines else "no output"


def _now() -> str:
    return time.strftime("%H:%M:%S")
