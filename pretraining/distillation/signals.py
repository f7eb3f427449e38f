"""Signals: the training loop finishes its step, writes a checkpoint and stops."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from pretraining.utils import STOP_SIGNALS


class StopRequest:
    """Remembers the first SIGTERM, SIGINT, SIGHUP or SIGUSR1; later ones change nothing.

    Attributes:
        number: the signal, or 0.
    """

    def __init__(self) -> None:
        self.number = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals while the block runs; a signal that the parent process ignores stays ignored."""

        def remember(number: int, frame: object) -> None:
            self.number = self.number or number

        handled = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        previous = {number: signal.signal(number, remember) for number in handled}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def exit_stopped(number: int, step: int, rank: int) -> NoReturn:
    """Ends the process with status 128 + ``number``, as a shell reports a signal."""
    if rank == 0:
        print(f"stopped by {signal.Signals(number).name} after step {step}; the checkpoint is written", file=sys.stderr)
    sys.exit(128 + number)
