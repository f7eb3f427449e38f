"""The processes of a run watch each other: one that fails or is lost ends all of them, each machine with one line.

The engines notice less: a collective of NCCL waits for a killed process for ever, one of gloo for a frozen one until its timeout, and
torchrun ends the processes of its own machine only.
"""

import json
import os
import socket
import sys
import threading
import time
import traceback
from argparse import ArgumentTypeError
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from pretraining.utils import UserError, first_line, positive_float

BEAT = 1.0  # seconds between two signs of life
LOST_AFTER = "60"  # seconds without one; torchrun takes up to 30 more to end a frozen process
AGAIN = "run the same command again to resume"


def lost_after() -> float:
    """Seconds after which a process without a sign of life is lost: MINIRBT_LOST_AFTER, for clusters that start slowly."""
    try:
        return positive_float(os.environ.get("MINIRBT_LOST_AFTER", LOST_AFTER))
    except ArgumentTypeError as error:
        raise UserError(f"MINIRBT_LOST_AFTER={error}") from None


class Watch:
    """A thread that shows the other processes that this one lives, and ends this one when another has failed or is lost.

    The main thread may be anywhere meanwhile: in a collective, in the compiler, in a checkpoint that takes an hour to write.

    Attributes:
        shared_store: at ``MASTER_ADDR`` and ``MASTER_PORT``; torchrun on machine 0 keeps it, or process 0 where there is no torchrun.

    Raises:
        UserError: another process did not start.
    """

    def __init__(self, rank: int, world_size: int):
        self.limit = lost_after()
        self.rank, self.others = rank, [other for other in range(world_size) if other != rank]
        self.machine = os.environ.get("GROUP_RANK") or socket.gethostname()  # torchrun numbers the machines
        self.last_beats: dict[int, tuple[bytes, float]] = {}  # of the others: the last one and when it was new
        self.over, self.stopped = threading.Event(), threading.Event()
        self.ending, self.asking = threading.Lock(), threading.Lock()
        self.failure: str = ""  # the first of the run, when it is known
        self.prints: bool | None = None  # whether this process prints it
        self.last_answer = time.monotonic() + self.limit  # of the store; the others may take that long to start
        self.is_connected = False
        self.thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        threading.Thread(target=self._watch_the_store, name="watch of the store", daemon=True).start()
        try:
            self._connect(world_size)
        except dist.DistError as error:
            self.stopped.set()
            raise UserError(f"{self._store_lost()} ({first_line(error)})") from None
        except BaseException:
            self.stopped.set()
            raise
        self.thread.start()

    def _connect(self, world_size: int) -> None:
        timeout = timedelta(seconds=self.limit)
        self.shared_store = next(dist.rendezvous("env://", self.rank, world_size, timeout=timeout))[0]
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = dist.PrefixStore("watch", dist.TCPStore(address, port, is_master=False, timeout=timeout))  # for the other thread
        self.store.set(f"place {self.rank}", json.dumps([socket.gethostname(), self.machine]))
        self.store.set(f"beat {self.rank}", "0")
        self.is_connected = True
        self._wait_for_the_others()

    def _wait_for_the_others(self) -> None:
        end = time.monotonic() + self.limit
        while missing := [other for other in self.others if not self.store.check([f"beat {other}"])]:
            if time.monotonic() > end:
                raise UserError(f"process {missing[0]} did not start within {self.limit:.0f} s of process {self.rank}; {AGAIN}")
            time.sleep(0.1)

    # ---- the thread

    def _watch(self) -> None:
        beat = 0
        try:
            while not self.over.wait(BEAT):
                beat += 1
                self.store.set(f"beat {self.rank}", str(beat))
                self._read_beats()
                if lost := [other for other in self.others if self._silence(other) > self.limit]:
                    self._first_failure(f"{self._name(lost[0])} was lost: no sign of life for {self.limit:.0f} s; {AGAIN}")
                if self.store.check(["failed"]):
                    line = self._first_failure("")
                    self._prints_for_its_machine()
                    self.store.add("heard", 1)  # from here on the store may end
                    if not self.over.wait(BEAT):  # unless the main thread ends this process for the same reason
                        self.end(line)
        except dist.DistError:
            if not self.over.is_set():
                self.end(self._store_lost())

    def _watch_the_store(self) -> None:
        """For a store whose process is frozen: it would let the other thread wait for ever."""
        last = time.monotonic()
        while not self.stopped.wait(BEAT):
            now = time.monotonic()
            if now - last > 5 * BEAT:  # this process was frozen itself, perhaps together with the others
                self.last_answer, self.last_beats = now, {}
            elif now - self.last_answer > self.limit:
                self.end(self._store_lost(), ask=False)
            last = now

    def _read_beats(self) -> None:
        beats = self.store.multi_get([f"beat {other}" for other in self.others])
        for other, beat in zip(self.others, beats):
            if self.last_beats.get(other, (b"",))[0] != beat:
                self.last_beats[other] = beat, time.monotonic()
        self.last_answer = time.monotonic()

    def _silence(self, other: int) -> float:
        return time.monotonic() - self.last_beats.get(other, (b"", time.monotonic()))[1]

    # ---- how it ends

    def stop(self) -> None:
        """Ends the thread; the processes have agreed to end."""
        self.over.set()
        self.thread.join()
        self.stopped.set()

    def fail(self, error: BaseException, at_once: bool = False) -> None:
        """Tells the others that this process ends because of ``error``; they end with its line.

        Args:
            at_once: prints the error and ends this process here.

        Raises:
            SystemExit: status 2; a process of this machine has printed the line.
        """
        self.over.set()
        if _is_broken_connection(error):
            self._end_after_broken_connection(error)
        line = str(error) if isinstance(error, UserError) else _name_of(error)
        try:
            self._first_failure(f"{self._name(self.rank)}: {line}")
            prints, heard = self._prints_for_its_machine(), self.store.add("heard", 1)
            end = time.monotonic() + 3 * BEAT
            while heard <= len(self.others) and time.monotonic() < end:  # the store may end with this process
                time.sleep(BEAT / 10)
                heard = self.store.add("heard", 0)
        except dist.DistError:  # the store ended before
            prints = True
        if at_once and isinstance(error, UserError):
            self.end(line)
        if at_once:
            traceback.print_exception(error)
            self.end("", status=1)
        if isinstance(error, UserError) and not prints:
            sys.exit(2)

    def end(self, line: str, status: int = 2, ask: bool = True) -> NoReturn:
        """Ends this process at once, whatever its main thread does: to end the process group would wait for the lost process.

        Args:
            ask: the store, whether another process of this machine has printed a line.
        """
        self.ending.acquire(timeout=-1 if ask else BEAT)  # of several threads the first one prints; it may wait for a frozen store
        try:
            prints = not ask or self._prints_for_its_machine()
        except dist.DistError:
            prints = True
        if prints and line:
            print(f"\nerror: {' '.join(line.split())}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _end_after_broken_connection(self, error: BaseException) -> NoReturn:
        """Finds out which process is gone: one that told why, or one that shows no life any more."""
        if os.environ.get("MINIRBT_TRACEBACK") == "1":
            traceback.print_exception(error)
        try:
            end = time.monotonic() + 5 * BEAT
            while time.monotonic() < end and not self.store.check(["failed"]):
                time.sleep(BEAT / 5)
                self._read_beats()
            lost = max(self.others, key=self._silence)
            if self.store.check(["failed"]) or self._silence(lost) < 3 * BEAT:
                self.end(self._first_failure(f"the connection between the processes broke ({_name_of(error)}); {AGAIN}"))
            line = self._first_failure(f"{self._name(lost)} was lost: its connections broke; {AGAIN}")
            if "GROUP_RANK" in os.environ and json.loads(self.store.get(f"place {lost}"))[1] == self.machine:
                self.end("", status=143)  # torchrun saw it end, and reports how
            self.end(line)
        except dist.DistError:
            self.end(self._store_lost())

    def _first_failure(self, line: str) -> str:
        """The line of the first failure of the run; ``line``, if there was none before."""
        self.failure = self.store.compare_set("failed", "", line).decode()
        return self.failure

    def _prints_for_its_machine(self) -> bool:
        """True in one process of each machine; the store is asked once."""
        with self.asking:
            if self.prints is None:
                self.prints = self.store.add(f"lines of {self.machine}", 1) == 1
        return self.prints

    def _name(self, rank: int) -> str:
        return f"process {rank} on {json.loads(self.store.get(f'place {rank}'))[0]}"

    def _store_lost(self) -> str:
        if self.failure:
            return self.failure
        if not self.is_connected:
            where = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
            return f"{where}: the {len(self.others) + 1} processes did not find each other within {self.limit:.0f} s"
        who = "machine 0" if "GROUP_RANK" in os.environ else "process 0"
        return f"{who} ({os.environ['MASTER_ADDR']}) was lost: its connections broke or it shows no life; {AGAIN}"


def _name_of(error: BaseException) -> str:
    """The type of an error and the first line of its message."""
    return "interrupted" if isinstance(error, KeyboardInterrupt) else f"{type(error).__name__}: {first_line(error)}"


def _is_broken_connection(error: BaseException) -> bool:
    """gloo raises a plain RuntimeError that names its own source file."""
    return isinstance(error, dist.DistError) or isinstance(error, RuntimeError) and "gloo/" in str(error)
