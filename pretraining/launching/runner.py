"""Runs commands one after another and passes stop signals on to them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable

from pretraining.utils import STOP_SIGNALS


def torchrun_arguments(ngpu: int, nnodes: int, node_rank: int, master_addr: str, master_port: int) -> list[str]:
    """What follows ``python`` for several processes, on one machine or more."""
    return [
        *("-m", "pretraining.launching.torchrun"),
        f"--nproc_per_node={ngpu}",
        f"--nnodes={nnodes}",
        f"--node_rank={node_rank}",
        f"--master_addr={master_addr}",
        f"--master_port={master_port}",
        "--shutdown-timeout=1800",  # seconds after a signal, to finish a step and write a checkpoint
        "--rdzv-conf=timeout=100",  # seconds to wait for the others, which have met before
    ]


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

    def run(self, command: list[str], note_error: Callable[[str], None] | None = None) -> None:
        """Runs one command to its end.

        Args:
            note_error: called with the line of the command's error; without it the command has the terminal for itself.

        Raises:
            SystemExit: with 128 + the signal's number after a stop signal, else with the status of a command that failed.
        """
        self.exit_if_stopped()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE if note_error else None)
        if self.stop_signal:  # arrived while the process was started
            self.process.send_signal(self.stop_signal)
        if note_error:
            pass_on_and_note(self.process, note_error)
        status = self.process.wait()
        self.process = None
        self.exit_if_stopped()
        if status:
            sys.exit(status if status > 0 else 128 - status)  # a negative status: a signal killed the command

    def exit_if_stopped(self) -> None:
        """Exits with the signal's status; the command's own may be another, as torchrun's is 1."""
        if self.stop_signal:
            sys.exit(128 + self.stop_signal)


def pass_on_and_note(process: subprocess.Popen, note_error: Callable[[str], None]) -> None:
    """Copies the stderr of a process as it comes; notes the line that begins with "error: "."""
    assert process.stderr is not None
    rest = b""
    while block := os.read(process.stderr.fileno(), 1 << 16):
        sys.stderr.buffer.write(block)
        sys.stderr.buffer.flush()
        *lines, rest = (rest + block).replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            if line.startswith(b"error: "):
                note_error(line.decode(errors="replace").removeprefix("error: "))
