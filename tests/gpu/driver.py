"""Runs cases in a process of its own and writes what each returned, as JSON.

python -m tests.gpu.driver CASES.json REPORT.json [LIBRARY]

CASES.json is an object: name -> [function, arguments]. With LIBRARY, from :func:`shim.build`, the functions are those of loop_cases.py, which
run on the fake CUDA device; without, those of process_cases.py, which run on the CPU.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

from tests.gpu import shim


def main(cases: str, report: str, library: str | None = None) -> None:
    if library:
        shim.load(library)
        from tests.gpu import loop_cases as functions
    else:
        from tests.gpu import process_cases as functions
    results: dict[str, Any] = {}
    for name, (function, arguments) in json.loads(Path(cases).read_text()).items():
        try:
            results[name] = getattr(functions, function)(**arguments)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
    Path(report).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
