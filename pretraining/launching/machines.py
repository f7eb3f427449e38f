"""What the machines of a run tell each other through the ``saves`` that they share, before torchrun connects them.

Each machine keeps one file there and renews it every two seconds. A file of an earlier start is thus told from one of this start without
a look at the machines' clocks: it does not change.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pretraining.corpus.files import write_json
from pretraining.launching.variables import SettingError
from pretraining.utils import UserError

BEAT = 2.0  # seconds between two renewals of a machine's file
LOST_AFTER = 60.0  # seconds without one
RECENT_FAILURE = 600.0  # a failure older than this before this machine's start belongs to an earlier one
GRACE = 60.0  # seconds in which a machine that has just failed may start again
NOTICE_AFTER, NOTICE_EVERY = 10.0, 600.0


def require_address(address: str) -> None:
    """Refuses an address of machine 0 that this machine cannot resolve; torchrun would try it for 100 s.

    Raises:
        UserError: no such name or address.
    """
    try:
        socket.getaddrinfo(address, None)
    except (OSError, UnicodeError):  # the latter: no host can have such a name
        raise SettingError(f"master_addr={address}: this machine finds no such address; give the name or address of machine 0") from None


class Machines:
    """This machine among those of a run.

    Args:
        directory: of the machines' files; all machines see it.
        rank, count: this machine and how many there are. A single one keeps no file.
    """

    def __init__(self, directory: Path, rank: int, count: int):
        self.directory, self.rank = directory, rank
        self.others = [other for other in range(count) if other != rank]
        self.start = f"{socket.gethostname()} {os.getpid()} {time.time_ns()}"
        self.told: dict[str, Any] = {"start": self.start, "host": socket.gethostname(), "place": 0, "beat": 0}
        self.over = threading.Event()
        self.first_seen: dict[int, Any] = {}
        self.last_new: dict[int, tuple[Any, float]] = {}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Renews this machine's file while the block runs; tells the others if it fails."""
        if not self.others:
            yield
            return
        self.first_seen = {other: self._read(other) for other in self.others}
        self._tell()
        thread = threading.Thread(target=self._renew, name="machines", daemon=True)
        thread.start()
        try:
            yield
        except UserError as error:
            self.told["failed"] = str(error)
            raise
        except SystemExit as ended:
            self.told["stopped"] = isinstance(ended.code, int) and ended.code > 128  # by a signal, so that it may start again
            self.told["failed"] = self.told.get("line") or f"ended with status {ended.code}"
            raise
        finally:
            self.over.set()
            thread.join()  # it writes the last words

    def meet(self, place: int, exit_if_stopped: Callable[[], None]) -> None:
        """Returns when all machines are at this place of the run, counted from 1, or past it. Prints for which machine it waits.

        Args:
            exit_if_stopped: ends this process if a stop signal has come.

        Raises:
            UserError: another machine has failed or was lost; two machines have one number.
        """
        if not self.others:
            return
        self.told["place"] = place  # with the next renewal
        begin = time.monotonic()
        next_notice = begin + NOTICE_AFTER
        while waiting := [other for other in self.others if not self._has_come(other, place, time.monotonic() - begin)]:
            if (self._read(self.rank) or {}).get("start") != self.start:
                raise UserError(
                    f"node_rank={self.rank}: another machine or command uses this number in {self.directory}; give each its own"
                )
            if time.monotonic() > next_notice:
                print(f"waiting for machine {waiting[0]}{self._doing(waiting[0])}", flush=True)
                next_notice += NOTICE_EVERY
            exit_if_stopped()
            time.sleep(BEAT / 4)

    @property
    def note_error(self) -> Callable[[str], None] | None:
        """Takes the line of a command's error, which the others get if this machine fails; None if there are no others."""
        return self._note_line if self.others else None

    def _note_line(self, line: str) -> None:
        self.told["line"] = line

    # ---- files

    def _path(self, rank: int) -> Path:
        return self.directory / f"{rank}.json"

    def _read(self, rank: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._path(rank).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _tell(self) -> None:
        self.told["beat"] += 1
        write_json(self._path(self.rank), dict(self.told))  # the main thread adds to it

    def _renew(self) -> None:
        is_over = False
        while not is_over:
            is_over = self.over.wait(BEAT)
            with suppress(UserError):  # a full disk, or another machine of this number; the next renewal may succeed
                self._tell()

    # ---- the others

    def _has_come(self, other: int, place: int, waited: float) -> bool:
        """Whether another machine is at a place; ``waited``: seconds for it here."""
        told = self._read(other)
        if told is None:
            return False
        is_of_this_start = told != self.first_seen[other]
        failed_before = waited > GRACE and not told.get("stopped") and self._seconds_before_this_start(other) < RECENT_FAILURE
        if "failed" in told and (is_of_this_start or failed_before):
            raise UserError(f"machine {other} ({told['host']}): {told['failed']}")
        if not is_of_this_start:
            return False
        if told["place"] >= place:
            return True
        if self.last_new.get(other, (None, 0.0))[0] != told:
            self.last_new[other] = told, time.monotonic()
        if time.monotonic() - self.last_new[other][1] > LOST_AFTER:
            raise UserError(f"machine {other} ({told['host']}) was lost: no sign of life for {LOST_AFTER:.0f} s")
        return False

    def _seconds_before_this_start(self, other: int) -> float:
        """By the clock of the disk that both files are on."""
        return self._path(self.rank).stat().st_mtime - self._path(other).stat().st_mtime

    def _doing(self, other: int) -> str:
        told = self._read(other)
        if told is None or told == self.first_seen[other]:
            return f": start it with node_rank={other} and the same saves"
        return f" ({told['host']}): " + ("it writes the first weights and the shards" if other == 0 else "it checks its files")
