"""Runs parts of a benchmark in processes of their own, and measures the memory that a process needs."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pretraining
from pretraining.utils import UserError

PRETRAINING = Path(pretraining.__file__).parent
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
ONE_THREAD = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
BYTES_PER_MB = 1 << 20


def in_fresh_process(function: Callable[..., Any], *arguments: Any, one_core: bool = False) -> Any:
    """Calls a function in a new process and returns its result; what the function prints is not shown.

    Args:
        function: a function of a module.
        one_core: limits the libraries' thread pools to one thread.
    """
    environment = {**ENVIRONMENT, **(ONE_THREAD if one_core else {})}
    with ProcessPoolExecutor(1, get_context("spawn"), _prepare_process, (environment,)) as process:
        return process.submit(function, *arguments).result()


def _prepare_process(environment: dict[str, str]) -> None:
    """Runs before the process imports the function's module: libraries read these variables when they are imported."""
    os.environ.update(environment)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def peak_memory_of_command(command: str, log: Path, **arguments: Any) -> float:
    """Runs a command of pretraining/ and returns its peak memory in MB.

    Args:
        command: the file, for example ``my_datasets.py``.
        log: a file for its output.

    Raises:
        UserError: the command failed; the message holds the last line of its output.
    """
    line = [sys.executable, command]
    for name, value in arguments.items():
        line += [f"--{name}", str(value)]
    # Linux counts the memory of the process that starts a command as the command's own, so a small process starts it.
    return in_fresh_process(_run_command, line, log)


def _run_command(line: list[str], log: Path) -> float:
    with open(log, "w+", encoding="utf-8") as output:
        process = subprocess.Popen(line, cwd=PRETRAINING, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            output.seek(0)
            raise UserError(f"{line[1]} failed: {output.read().strip().splitlines()[-1]}")
    return _peak_mb(usage)


def own_peak_memory() -> float:
    """The most memory that this process has held so far, in MB."""
    return _peak_mb(resource.getrusage(resource.RUSAGE_SELF))


def _peak_mb(usage: resource.struct_rusage) -> float:
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    return usage.ru_maxrss * unit / BYTES_PER_MB
