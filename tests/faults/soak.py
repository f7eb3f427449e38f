"""Trains under one fault after the other: each time the plain rerun resumes, and the weights are those of an undisturbed run, byte by byte.

    python -m tests.faults.soak --minutes 60 --seed 0

The faults come in random order from the seed, each kind once a round. Meanwhile the memory, threads and files of the process are
sampled once a second. The undisturbed run trains beside it, with the same arguments. Ends with status 1 and the reason if anything differs.
"""

import argparse
import logging
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from pretraining.distillation.checkpoint import STATE_FILE, checkpoints
from tests import tiny, workplace
from tests.faults.disks import CannotMountError, Tmpfs

CKPT_STEPS = 300
CHANGES = {
    "num_train_steps": 100_000_000,
    "official_schedule": "const",
    "warmup_proportion": 0,
    "ckpt_steps": CKPT_STEPS,
    "train_batch_size": 16,
    "resume_from_checkpoint": "latest",
}
DISK_KILOBYTES = 512 << 10  # the scalars of an hour take up to 200 MB
PATIENCE = 300  # seconds until a step, a checkpoint or an end counts as lost
SETTLED = 30  # seconds after the first checkpoint of a life that are left out of the statistics
SLOPE_SECONDS, SLOPE_LIMIT = 600, 20.0  # the memory of shorter lives is not judged; MB an hour

# The clock of the process alone: Python runs this file before everything else.
CLOCK = """
import os, time
_path = os.path.join(os.path.dirname(__file__), "offset")
def _shifted(real, unit):
    def shifted():
        with open(_path) as file:
            return real() + int(file.read()) * unit
    return shifted
time.time, time.time_ns = _shifted(time.time, 1), _shifted(time.time_ns, 10**9)
"""


class WrongError(Exception):
    """Something that must not be."""


class Sample(NamedTuple):
    seconds: float
    rss: float
    threads: int
    files: int


def sample(pid: int, seconds: float) -> Sample:
    """Memory in MB, threads and open files of a process now."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return Sample(seconds, int(status["VmRSS"].split()[0]) / 1024, int(status["Threads"]), len(os.listdir(f"/proc/{pid}/fd")))


def step_of(directory: Path) -> int:
    return int(directory.name.removeprefix("gs"))


class Life:
    """One process of a run, from its start to its end; what it prints goes to files ``NAME.out`` and ``NAME.err``."""

    def __init__(self, work: Path, name: str, output_dir: str, **changes):
        self.name, self.begin = name, time.monotonic()
        self.samples: list[Sample] = []
        self.settled = float("inf")
        self.out, self.err = work / f"{name}.out", work / f"{name}.err"
        command = [sys.executable, "train.py", *workplace.command_line("train.py", **{**CHANGES, "output_dir": output_dir, **changes})]
        environment = {**workplace.ENVIRONMENT, "PYTHONPATH": str(work / "clock")}
        with open(self.out, "wb") as out, open(self.err, "wb") as err:
            self.process = subprocess.Popen(
                command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
            )
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while self.process.poll() is None:
            with suppress(OSError, KeyError):  # it has just ended
                self.samples.append(sample(self.process.pid, time.monotonic() - self.begin))
            time.sleep(1)

    def saved(self) -> list[int]:
        """The steps of the checkpoints that it has written."""
        return [int(step) for step in re.findall(r"(?m)^checkpoint: \S+/gs(\d+)$", self.out.read_text())]

    def errors(self) -> list[str]:
        return [line for line in workplace.on_a_terminal(self.err.read_text()).split("\n") if line.strip()]

    def live(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._second()

    def wait_for_checkpoints(self, count: int) -> None:
        """Waits until it has written so many."""
        end = time.monotonic() + PATIENCE
        while len(self.saved()) < count:
            if time.monotonic() > end:
                raise WrongError(f"{self.name}: only {len(self.saved())} checkpoints, no more for {PATIENCE} s")
            self._second()

    def settle(self) -> None:
        """Its samples count from now on, but for half a minute."""
        self.settled = time.monotonic() - self.begin + SETTLED

    def _second(self) -> None:
        time.sleep(1)
        if self.process.poll() is not None:
            raise WrongError(f"{self.name}: ended by itself with status {self.process.returncode}: {self.errors()[-5:]}")

    def wait(self, expected: int) -> None:
        """Waits for the end, with this status and without a traceback."""
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise WrongError(f"{self.name}: does not end") from None
        if status != expected or "Traceback" in self.err.read_text():
            raise WrongError(f"{self.name}: status {status} instead of {expected}: {self.errors()[-5:]}")

    def wait_for_error(self) -> str:
        """Waits for the end with status 2 and one line; returns the line."""
        self.wait(2)
        lines = self.errors()
        if [line for line in lines if line.startswith("error: ")] != lines[-1:]:
            raise WrongError(f"{self.name}: more or less than one line: {lines[-5:]}")
        return lines[-1]

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Soak:
    """The disturbed run: ``life`` is its process now."""

    def __init__(self, work: Path, disk: Tmpfs | None, draw: random.Random):
        self.work, self.disk, self.draw = work, disk, draw
        self.run, self.offset = work / "run", 0
        self.lives: list[Life] = []
        self.set_clock(0)

    @property
    def life(self) -> Life:
        return self.lives[-1]

    def set_clock(self, offset: int) -> None:
        """Sets the clock of all processes so many seconds after the machine's."""
        self.offset = offset
        (self.work / "clock" / "new").write_text(str(offset))
        os.replace(self.work / "clock" / "new", self.work / "clock" / "offset")

    def start(self, resumed: int) -> str:
        """Starts the plain rerun; it must resume from this step."""
        begin = time.monotonic()
        self.lives.append(Life(self.work, f"life{len(self.lives) + 1}", "run"))
        self.life.wait_for_checkpoints(1)
        first, expected = self.life.saved()[0], (resumed // CKPT_STEPS + 1) * CKPT_STEPS
        self.life.settle()
        if first != expected:
            raise WrongError(f"{self.life.name}: its first checkpoint is gs{first}; resumed from gs{resumed} it would be gs{expected}")
        return f"resumed from gs{resumed}, gs{first} after {time.monotonic() - begin:.0f} s"

    def newest(self) -> list[Path]:
        return checkpoints(self.run)

    # ---- the faults; each returns what was seen

    def stop(self, number: signal.Signals) -> str:
        os.kill(self.life.process.pid, number)
        self.life.wait(128 + number)
        line = self.life.errors()[-1]
        step = step_of(self.newest()[0])
        if line != f"stopped by {number.name} after step {step}; the checkpoint is written":
            raise WrongError(f"{self.life.name}: {line}, the newest checkpoint is gs{step}")
        return f"status {128 + number}, gs{step}; {self.start(step)}"

    def kill(self) -> str:
        self.life.kill()
        return f"killed; {self.start(step_of(self.newest()[0]))}"

    def fill_disk(self) -> str:
        assert self.disk is not None
        filler = self.disk.fill()
        line = self.life.wait_for_error()
        refused = self.refused_start()
        filler.unlink()
        return f"status 2, {line!r}; a start on the full disk: {refused!r}; {self.start(step_of(self.newest()[0]))}"

    def make_read_only(self) -> str:
        assert self.disk is not None
        self.disk.make_read_only()
        line = self.life.wait_for_error()
        refused = self.refused_start()
        self.disk.make_writable()
        return f"status 2, {line!r}; a start on the read-only disk: {refused!r}; {self.start(step_of(self.newest()[0]))}"

    def refused_start(self) -> str:
        return Life(self.work, f"life{len(self.lives)}-refused", "run").wait_for_error()

    def suspend(self) -> str:
        os.killpg(self.life.process.pid, signal.SIGSTOP)
        time.sleep(60)
        os.killpg(self.life.process.pid, signal.SIGCONT)
        return self.goes_on()

    def jump(self) -> str:
        """Forward by hours, then back to before the beginning; there the clock stays."""
        hours = self.draw.randint(2, 12), -self.draw.randint(2, 12)
        for jump in hours:
            self.set_clock(jump * 3600)
            seen = self.goes_on()
        return f"{hours[0]:+} h, {hours[1]:+} h: {seen}"

    def goes_on(self) -> str:
        self.life.wait_for_checkpoints(len(self.life.saved()) + 2)
        return f"the same process writes gs{self.life.saved()[-1]}"

    def damage(self) -> str:
        self.life.kill()
        newest, before = self.newest()[:2]
        path = newest / self.draw.choice(["model.safetensors", STATE_FILE, "checksums.json", "config.json"])
        size = path.stat().st_size
        how = self.draw.choice(["cut", "changed", "removed"])
        if how == "cut":
            os.truncate(path, self.draw.randrange(size))
        elif how == "changed":
            with open(path, "r+b") as file:
                place = self.draw.randrange(size)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1 << self.draw.randrange(8)]))
        else:
            path.unlink()
        seen = self.start(step_of(before))
        if not any(f"taking the checkpoint before {newest.name}" in line for line in self.life.errors()):
            raise WrongError(f"{self.life.name}: says nothing of the damaged {path}")
        return f"{newest.name}/{path.name} {how}; {seen}"

    def faults(self) -> dict[str, Callable[[], str]]:
        disk_faults = {"full disk": self.fill_disk, "read-only disk": self.make_read_only} if self.disk else {}
        return {
            "SIGTERM": lambda: self.stop(signal.SIGTERM),
            "SIGINT": lambda: self.stop(signal.SIGINT),
            "SIGKILL": self.kill,
            "SIGSTOP for a minute": self.suspend,
            "clock jump": self.jump,
            "damaged checkpoint": self.damage,
            **disk_faults,
        }


# ---------------------------------------------------------------- what is compared


def slope(lives: list[list[Sample]]) -> float:
    """MB an hour, by linear regression over all lives, each with its own beginning."""
    centred = [(np.array(life)[:, :2] - np.array(life)[:, :2].mean(0)) for life in lives]
    seconds, rss = np.concatenate(centred).T
    return float((seconds * rss).sum() / (seconds * seconds).sum() * 3600)


def statistics_of(who: str, lives: list[Life]) -> None:
    """Prints memory, threads and files; raises if one of them grows."""
    settled = [[one for one in life.samples if one.seconds > life.settled] for life in lives]
    settled = [samples for samples in settled if len(samples) > 10]
    if not settled:
        print(f"{who}: no life was long enough to measure memory, threads and files")
        return
    seconds, growth = sum(map(len, settled)), slope(settled)
    every = [one for samples in settled for one in samples]
    ranges = {name: sorted({getattr(one, name) for one in every}) for name in ("rss", "threads", "files")}
    print(
        f"{who}: {seconds} s of {len(settled)} lives; RSS {ranges['rss'][0]:.0f} to {ranges['rss'][-1]:.0f} MB, slope {growth:+.1f} MB an hour; "
        f"threads {ranges['threads'][0]} to {ranges['threads'][-1]}; open files {ranges['files'][0]} to {ranges['files'][-1]}"
    )
    if seconds >= SLOPE_SECONDS and growth > SLOPE_LIMIT:
        raise WrongError(f"{who}: the memory grows by {growth:.1f} MB an hour")
    for samples in settled:
        for name in ("threads", "files"):
            first, last = (statistics.median(getattr(one, name) for one in part) for part in (samples[:10], samples[-10:]))
            if last > first:
                raise WrongError(f"{who}: {name} grow from {first} to {last} within a life")


def equal(left: object, right: object) -> bool:
    """Whether two training states are equal, their tensors bit by bit."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))  # type: ignore[arg-type]
    return left == right


def compare(left: Path, right: Path) -> None:
    """Compares two checkpoints: weights byte by byte, the training state by value, for torch.save notes its file name in it."""
    if (left / "model.safetensors").read_bytes() != (right / "model.safetensors").read_bytes():
        raise WrongError(f"{left} and {right}: other weights")
    states = [torch.load(directory / STATE_FILE, weights_only=True) for directory in (left, right)]
    if not equal(*states):
        raise WrongError(f"{left} and {right}: another training state")


def compare_scalars(left: Path, right: Path, last: int) -> int:
    """Compares the TensorBoard scalars up to a step; returns their number."""
    found = [{(tag, *point) for tag, points in tiny.scalars(run).items() for point in points if point[0] <= last} for run in (left, right)]
    if different := sorted(found[0] ^ found[1]):
        raise WrongError(f"{left} and {right}: {len(different)} scalars differ, the first is {different[0]}")
    return len(found[1])


# ---------------------------------------------------------------- the run


def soak(work: Path, disk: Tmpfs | None, minutes: float, seed: int) -> None:
    """Runs the faults for so long.

    Raises:
        WrongError: a rerun did not resume, something grew, or the weights differ.
    """
    draw = random.Random(seed)
    end = time.monotonic() + 60 * minutes
    disturbed, undisturbed = Soak(work, disk, draw), None
    seen: dict[str, list[str]] = {name: [] for name in disturbed.faults()}
    try:
        disturbed.start(0)  # it makes the shards
        undisturbed = Life(work, "undisturbed", "undisturbed", keep_checkpoints=0)
        undisturbed.wait_for_checkpoints(1)
        undisturbed.settle()
        waiting: list[str] = []
        while time.monotonic() < end:
            life = disturbed.life
            life.live(draw.uniform(0.5, 1.5) * min(120, 60 * minutes / 12))
            life.wait_for_checkpoints(2)
            waiting = waiting or draw.sample(list(seen), len(seen))
            name, age = waiting.pop(), time.monotonic() - life.begin
            what = disturbed.faults()[name]()
            seen[name].append(what)
            print(f"{time.strftime('%H:%M:%S')} {name} after {age:.0f} s of {life.name}: {what}", flush=True)
        disturbed.life.wait_for_checkpoints(2)
        os.kill(disturbed.life.process.pid, signal.SIGTERM)
        disturbed.life.wait(143)
        last = next(path for path in disturbed.newest() if step_of(path) % CKPT_STEPS == 0)
        while step_of(last) not in undisturbed.saved():
            undisturbed.live(1)
        os.kill(undisturbed.process.pid, signal.SIGTERM)
        undisturbed.wait(143)
    finally:
        for process in [*disturbed.lives, *([undisturbed] if undisturbed else [])]:
            process.kill()

    print(f"\nfaults, seed {seed}: {', '.join(f'{name} {len(found)}' for name, found in seen.items())}")
    statistics_of("disturbed run", disturbed.lives)
    statistics_of("undisturbed run", [undisturbed])
    compare(last, work / "undisturbed" / last.name)
    points = compare_scalars(disturbed.run, work / "undisturbed", step_of(last))
    if left := [path.name for path in disturbed.run.iterdir() if path.suffix in (".partial", ".previous")]:
        raise WrongError(f"{disturbed.run}: left behind {left}")
    print(f"step {step_of(last)}: weights, training state and {points} scalars are those of the undisturbed run")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it reports each resume
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes and its disk go with it
    place = Path(tempfile.mkdtemp(prefix="soak-"))
    work, disk = place / "work", None
    workplace.build(work)
    (work / "clock").mkdir()
    (work / "clock" / "sitecustomize.py").write_text(CLOCK)
    try:
        disk = Tmpfs(work / "run", DISK_KILOBYTES)
    except CannotMountError as error:
        print(f"left out the full disk and the read-only disk: {error}")
    wrong = None
    try:
        soak(work, disk, args.minutes, args.seed)
    except WrongError as error:
        wrong = error
    finally:
        if disk:
            if wrong:
                shutil.copytree(work / "run", place / "run")
            disk.close()
        if not wrong:
            shutil.rmtree(place)
    if wrong:
        print(f"FAILED: {wrong}\nfiles: {place}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
