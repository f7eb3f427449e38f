"""Runs commands one after another and passes stop signals on to them."""

import signal
import subprocess
import sys

from pretraining.utils import STOP_SIGNALS


class CommandRunner:
    """Runs commands one after another; a stop signal or a failed command ends this process.

    SIGTERM, SIGINT, SIGHUP and SIGUSR1 are passed on to the running command, which writes its checkpoint before it ends.
    """

    def __init__(self) -> None:
        self.process: subprocess.Popen | None = None
        self.stop_signal = 0
        for number in STOP_SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self.stop)

    def stop(self, number: int, frame: object) -> None:
        """Signal handler. After Ctrl-C in a terminal the command gets SIGINT twice: from the terminal and from here."""
        self.stop_signal = number
        if self.process is not None:
            self.process.send_signal(number)

    def run(self, command: list[str]) -> None:
        """Runs one command to its end.

        Raises:
            SystemExit: with 128 + the signal's number after a stop signal, else with the status of a command that failed.
        """
        self.exit_if_stopped()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        if self.stop_signal:  # arrived while the process was started
            self.process.send_signal(self.stop_signal)
        status = self.process.wait()
        self.process = None
        self.exit_if_stopped()
        if status:
            sys.exit(status if status > 0 else 128 - status)  # a negative status: a signal killed the command

    def exit_if_stopped(self) -> None:
        """Exits with the signal's status; the command's own may be another, as torchrun's is 1."""
        if self.stop_signal:
            sys.exit(128 + self.stop_signal)
