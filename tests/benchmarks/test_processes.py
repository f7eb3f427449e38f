"""benchmarks/processes.py: the peak memory of a command is its own, and a failed command names its error."""

from pathlib import Path

import pytest
import torch

from benchmarks.processes import own_peak_memory, peak_memory_of_command
from pretraining.utils import UserError


def test_the_memory_of_the_caller_does_not_count_as_the_commands(tmp_path: Path):
    torch.ones(200, 1 << 20).sum()  # 800 MB
    peak = peak_memory_of_command("my_datasets.py", tmp_path / "log", help="")
    assert own_peak_memory() > 800 and 10 < peak < 400


def test_a_command_that_fails_raises_the_last_line_of_its_output(tmp_path: Path):
    with pytest.raises(UserError, match="^my_datasets.py failed: error: nowhere.json: no such file"):
        peak_memory_of_command("my_datasets.py", tmp_path / "log", data_files_json="nowhere.json")
