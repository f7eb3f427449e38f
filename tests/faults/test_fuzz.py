"""Files of strangers, spoiled at random: they are read, or refused by a UserError; in 2 GB, in seconds, without a crash.

``FUZZ_INPUTS`` is the number of inputs of the fastest readers; the slower ones take a share of it. ``FUZZ_SEED`` chooses them.
"""

import faulthandler
import json
import os
import random
import resource
import signal
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import pytest

from pretraining.utils import UserError
from tests.faults.forking import start
from tests.faults.readers import READERS

INPUTS = int(os.environ.get("FUZZ_INPUTS", 150))
SEED = int(os.environ.get("FUZZ_SEED", 1))
SECONDS_EACH = 60
MEMORY = 2 << 30


class TooLong(BaseException):
    """Nothing in the project catches it."""


def _too_long(number, frame) -> None:
    raise TooLong(f"more than {SECONDS_EACH} seconds")


def fuzz(name: str, inputs: int, place: Path) -> None:
    """Reads the inputs in a process of its own; ``place/result.json`` has the counts and what escaped."""
    warnings.simplefilter("ignore")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(place / "stderr", os.O_WRONLY | os.O_CREAT), 2)
    at_work = place / "at work"
    at_work.write_text("its right files")
    reader = READERS[name][0](place)
    reader.read()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGALRM, _too_long)
    result: dict[str, Any] = {"inputs": 0, "refused": 0, "seconds": 0.0, "escaped": []}
    begin = time.perf_counter()
    for number in range(inputs):
        at_work.write_text(f"input {number}")
        faulthandler.dump_traceback_later(2 * SECONDS_EACH, exit=True)  # ends a loop in C code, which no signal handler can
        reader.spoil(random.Random(f"{name} {SEED} {number}"))
        signal.setitimer(signal.ITIMER_REAL, SECONDS_EACH)
        try:
            reader.read()
        except UserError as error:
            result["refused"] += 1
            if _is_out_of_memory(error):
                result["escaped"].append([number, f"more than 2 GB: {error}"])
        except BaseException:
            result["escaped"].append([number, traceback.format_exc()[-1500:]])
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        result["inputs"] += 1
    result["seconds"] = time.perf_counter() - begin
    (place / "result.json").write_text(json.dumps(result))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error stands for a memory request that the limit refused."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return True
        error = error.__context__
    return False


@pytest.fixture(scope="module")
def report(request):
    """Prints in the end how many inputs each reader had, how many it refused, and in how many seconds."""
    rows: dict[str, dict] = {}
    yield rows
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for name, row in rows.items():
            reporter.write(f"\n{name}: {row['inputs']} inputs, {row['refused']} refused, {row['seconds']:.0f} s")
        reporter.write_line(f"\nfuzz inputs in all: {sum(row['inputs'] for row in rows.values())}, seed {SEED}")


@pytest.mark.parametrize("name", READERS)
def test_no_file_escapes(name, tmp_path, report):
    inputs = max(15, round(INPUTS * READERS[name][1]))
    process = start(fuzz, name, inputs, tmp_path)
    process.join()
    end = f"status {process.exitcode} at {(tmp_path / 'at work').read_text()}: {(tmp_path / 'stderr').read_text()[-2000:]}"
    assert process.exitcode == 0, end
    report[name] = result = json.loads((tmp_path / "result.json").read_text())
    kinds = {text.strip().splitlines()[-1][:200]: number for number, text in reversed(result["escaped"])}
    assert not kinds, (
        f"{len(result['escaped'])} of {inputs} escaped; the kinds, each with its first input: {kinds}\n{result['escaped'][0][1]}"
    )
