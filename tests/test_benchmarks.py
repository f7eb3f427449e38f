"""The benchmarks: gpu.py runs where there is no GPU, and the Python collator is a fair peer: its masks keep the published rules."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import workplace

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
ROW = ["stage", "unit", "ours", "peer", "ratio", "ratio_min", "ratio_max", "target", "met"]


@pytest.mark.slow
def test_gpu_runs_with_tiny_shapes_on_a_cpu(tmp_path):
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--output", str(tmp_path / "gpu.json")]
    run = subprocess.run(command, capture_output=True, text=True, env={**workplace.ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""})
    assert run.returncode == 0, run.stderr
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["machine"]["device"] == "CPU" and found["machine"]["tiny"]
    assert [list(row) for row in found["rows"]] == [ROW] * 6
    assert list(found["pairs"]) == ["RBT6 -> H256", "RoBERTa -> RBT6"]
    for pair in found["pairs"].values():
        assert pair["batch_size"] == pair["stock_batch_size"] == 4 and pair["mfu"] is None
        assert sum(pair["time_of_a_step"].values()) == pytest.approx(1)
        assert pair["time_of_a_step"]["matrix products"] > 0


def test_gpu_without_a_gpu_says_so_in_one_line():
    run = subprocess.run(
        [sys.executable, str(BENCHMARKS / "gpu.py")], capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    assert run.returncode == 2 and run.stderr.splitlines() == ["error: no GPU here; --tiny runs the same with tiny shapes on the CPU"]


def test_python_collator_keeps_the_budget_and_never_splits_a_word(tiny_tokenizer):
    from python_collator import PythonCollator

    random.seed(1)
    torch.manual_seed(1)
    draw, examples, words = random.Random(2), [], []
    for length in (6, 20, 100, 200):
        lengths = []
        while sum(lengths) < length:
            lengths.append(min(draw.randint(1, 4), length - sum(lengths)))
        starts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
        words.append([range(start, start + size) for start, size in zip(starts, lengths)])
        ids = [draw.randint(6, 40) for _ in range(length)]  # Chinese characters all
        references = [place for word in words[-1] for place in word[1:]]
        examples.append({"input_ids": [tiny_tokenizer.cls_token_id, *ids, tiny_tokenizer.sep_token_id], "chinese_ref": references})

    kinds = {"masked": 0, "kept": 0, "replaced": 0}
    for _ in range(50):
        batch = PythonCollator(tiny_tokenizer)(examples)
        for row, (example, row_words) in enumerate(zip(examples, words)):
            length = len(example["input_ids"])
            chosen = (batch["labels"][row] >= 0).tolist()
            assert 1 <= sum(chosen) <= max(1, round(0.15 * length)) and not any(chosen[length:])
            for word in row_words:
                assert len({chosen[place] for place in word}) == 1
            for place, original in enumerate(example["input_ids"]):
                now = int(batch["input_ids"][row, place])
                if not chosen[place]:
                    assert now == original
                    continue
                assert batch["labels"][row, place] == original
                kinds["masked" if now == tiny_tokenizer.mask_token_id else "kept" if now == original else "replaced"] += 1
    total = sum(kinds.values())
    assert kinds["masked"] / total == pytest.approx(0.8, abs=0.03) and kinds["kept"] / total == pytest.approx(0.1, abs=0.03)
