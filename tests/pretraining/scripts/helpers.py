"""What several test files of this folder check with."""

import subprocess
import sys
from pathlib import Path

from tests.workplace import PRETRAINING

PNG = b"\x89PNG\r\n\x1a\n"
COMMANDS = [
    *("compare_models.py", "report.py", "export.py"),
    *("init_checkpoint_TA.py", "train_segmenter.py", "make_demo_models.py", "prune_vocabulary.py"),
]


def cells(text: str, first: str) -> list[str]:
    """The cells of the first table row that begins with ``first``."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return row.strip("| ").split(" | ")


def run_script(script: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Runs ``python scripts/<script>`` as a user does, from pretraining/."""
    command = [sys.executable, *options, str(Path("scripts", script)), *arguments]
    return subprocess.run(command, cwd=PRETRAINING, capture_output=True, text=True)
