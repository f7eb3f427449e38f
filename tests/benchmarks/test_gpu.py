"""benchmarks/gpu.py: it runs with tiny shapes where there is no GPU, and refuses real ones there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from pretraining.utils import UserError
from tests import workplace

COMMAND = [sys.executable, gpu.__file__]
ROW = ["stage", "unit", "ours", "peer", "ratio", "ratio_min", "ratio_max", "target", "met"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**workplace.ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_gpu_runs_with_tiny_shapes_on_a_cpu(tmp_path: Path):
    ended = run("--tiny", "--output", str(tmp_path / "gpu.json"))
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["device"] == "CPU" and found["machine"]["tiny"]
    assert [list(row) for row in found["rows"]] == [ROW] * 6
    assert list(found["pairs"]) == ["RBT6 -> H256", "RoBERTa -> RBT6"]
    for pair in found["pairs"].values():
        assert pair["batch_size"] == pair["stock_batch_size"] == 4 and pair["mfu"] is None
        assert sum(pair["time_of_a_step"].values()) == pytest.approx(1)
        assert pair["time_of_a_step"]["matrix products"] > 0


def test_gpu_without_a_gpu_says_so_in_one_line():
    ended = run()
    assert ended.returncode == 2 and ended.stderr.splitlines() == ["error: no GPU here; --tiny runs the same with tiny shapes on the CPU"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--steps", "1"], "--steps 1: must be at least 2"),
        (["--rounds", "0"], "--rounds 0: must be a whole number above 0"),
        (["--batch_sizes", "8", "0"], "--batch_sizes 0: must be a whole number above 0"),
    ],
)
def test_gpu_refuses_wrong_numbers(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        gpu.main(arguments)
