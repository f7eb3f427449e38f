"""Runs a group of cases in one process, because to import torch takes seconds, and gives pytest their results one by one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Cases = dict[str, tuple[str, dict[str, Any]]]


def run(cases: Cases, directory: Path, library: Path | None = None) -> dict[str, Any]:
    """Runs ``cases``, from a name to a function of loop_cases.py or process_cases.py and its arguments, with driver.py; returns its report."""
    given, report, log = (directory / name for name in ("cases.json", "report.json", "log.txt"))
    given.write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.gpu.driver", str(given), str(report), *([str(library)] if library else [])]
    with log.open("w") as output:
        ended = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert ended.returncode == 0, log.read_text()[-4000:]
    return json.loads(report.read_text())


def collected(session: pytest.Session, cases: Cases) -> Cases:
    """The cases that the tests of this session take: with ``-k`` or ``-m`` not all. Their parameter is named ``result``."""
    parameters = [item.callspec.params for item in session.items if hasattr(item, "callspec")]
    names = {each["result"] for each in parameters if "result" in each}
    return {name: case for name, case in cases.items() if name in names}
