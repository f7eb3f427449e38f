"""From raw Chinese text and a large BERT to a small BERT."""

import os
import signal
import sys
from pathlib import Path

COMMANDS = ("pretraining", "finetuning", "benchmarks", "experiments")


def exit_at_once(number: int, frame: object) -> None:
    """Handles Ctrl-C while a command imports its packages: some of them would print a traceback, or lose the exception."""
    os.write(2, b"interrupted; run the same command again to resume\n")
    os._exit(130)


def runs_a_command() -> bool:
    """True in the process of a command of this project, false in a worker of multiprocessing, a notebook or a program of the user's."""
    script = Path(getattr(sys.modules["__main__"], "__file__", None) or "/").resolve()
    root = Path(__file__).resolve().parents[1]
    return "__mp_main__" not in sys.modules and script.is_relative_to(root) and script.relative_to(root).parts[0] in COMMANDS


if runs_a_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, exit_at_once)  # utils.run_script takes over when the imports are done
