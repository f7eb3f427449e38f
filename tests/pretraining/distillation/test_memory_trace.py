"""distillation/memory_trace.py: its peak is that of a real step on the CPU, measured by the pages of the process; what it counts for CUDA."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pretraining.config import TrainingArguments
from pretraining.distillation.memory_trace import CudaKernels, TensorCount, trace_step
from pretraining.matches import get_matches
from pretraining.reporting.model_sizes import published_configs
from tests import workplace

PROJECT = Path(__file__).resolve().parents[3]
# The allocator of glibc returns memory to the system at once, so that the pages are the bytes in use.
ENVIRONMENT = {**workplace.ENVIRONMENT, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
on_linux = pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc/self/clear_refs")


def shape(layers: int, hidden: int, heads: int, vocabulary: int) -> dict[str, int]:
    sizes = {"num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "intermediate_size": 4 * hidden}
    return {**sizes, "vocab_size": vocabulary}


SHAPES = [  # narrow and deep with long samples; a large vocabulary; as wide as its teacher
    {
        **{"student": shape(4, 64, 4, 500), "teacher": shape(4, 128, 4, 500), "matches": ["L4h64_L4h128_hidden_mse"]},
        **{"length": 512, "batch_size": 12},
    },
    {
        **{"student": shape(2, 72, 2, 9000), "teacher": shape(2, 96, 2, 9000), "matches": ["L2h72_L2h96_hidden_mse"]},
        **{"length": 256, "batch_size": 20},
    },
    {
        **{"student": shape(2, 256, 4, 2000), "teacher": shape(4, 256, 4, 2000), "matches": ["L2h256_L4h256_hidden_mse"]},
        **{"length": 512, "batch_size": 10},
    },
]


def measure(cases: list[dict], output_dir: Path) -> list[dict[str, int]]:
    """Measured and traced bytes: each case in float32, then in bf16."""
    command = [sys.executable, "-m", "tests.pretraining.distillation.step_memory", json.dumps(cases), str(output_dir)]
    ended = subprocess.run(command, cwd=PROJECT, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@on_linux
@pytest.mark.slow
def test_the_traced_peak_is_that_of_a_real_step(tmp_path: Path):
    found = measure(SHAPES, tmp_path)
    assert len(found) == 6
    for peak in found:
        assert peak["measured"] > 150e6, "the program's own pages would weigh too much"
        assert peak["traced"] == pytest.approx(peak["measured"], rel=0.15), found


@on_linux
@pytest.mark.slow
@pytest.mark.parametrize(
    "student, teacher, matches, batch_size, length",
    [
        ("MiniRBT-H256", "RBT6 (KD)", "L6h256_rbt6_hidden_mse", 8, 512),
        ("RBT6 (KD)", "RoBERTa", "L6_hidden_mse", 4, 512),
        ("RBT4-H312", "RoBERTa", "L4t_hidden_mse", 16, 128),
    ],
)
def test_the_traced_peak_of_the_published_models(student: str, teacher: str, matches: str, batch_size: int, length: int, tmp_path: Path):
    configs = [published_configs()[name].to_diff_dict() for name in (student, teacher)]
    sizes = {"batch_size": batch_size, "length": length}
    found = measure([{"student": configs[0], "teacher": configs[1], "matches": [matches], **sizes}], tmp_path)
    for precision, peak in zip(("float32", "bf16"), found):
        ratio = peak["traced"] / peak["measured"]
        print(f"{student}, {batch_size} x {length}, {precision}: measured {peak['measured'] / 1e6:,.0f} MB, traced / measured {ratio:.3f}")
        assert 0.85 < ratio < 1.15


# ---------------------------------------------------------------- what is counted


def test_count_follows_views_and_freed_tensors():
    with TensorCount() as count:
        first = torch.zeros(1000)
        view = first[:500]
        assert count.live == 4000
        del first
        assert count.live == 4000, "the view holds the storage"
        del view
        assert count.live == 0 and count.peak == 4000
        torch.zeros(3, 4) @ torch.zeros(4, 5)
        assert count.operations[-1] == (2 * 3 * 4 * 5, 4 * (12 + 20 + 15))


@pytest.mark.parametrize("size, kept", [(32, 32), (36, 40)])
def test_cuda_attention_keeps_nothing_of_length_times_length(size: int, kept: int):
    """Query, key, value and output, padded to a multiple of 8, and one float of each row; beside the four tensors that exist anyway."""
    heads, length = 2, 256
    with torch._subclasses.FakeTensorMode(), TensorCount() as count, CudaKernels():
        tensors = [torch.empty(1, heads, length, size, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        before = count.live
        output = torch.nn.functional.scaled_dot_product_attention(*tensors, dropout_p=0.1)
        assert output.shape == (1, heads, length, size)
        row = heads * length
        copies = 4 * kept if kept > size else kept  # query, key, value where they are padded; the output
        assert 0 <= count.live - before - row * (2 * copies + 4) < 100


def test_a_trace_needs_neither_the_memory_nor_the_output_directory(tmp_path: Path):
    student = published_configs()["MiniRBT-H256"]
    matches = get_matches(["L6h256_roberta_hidden_mse"], student, published_configs()["RoBERTa"])
    args = TrainingArguments(student_config="", output_dir=str(tmp_path / "out"), bf16=True)
    cost = trace_step(args, student, published_configs()["RoBERTa"], matches, batch_size=4096)
    assert cost.peak > 300e9 and cost.resident < 1e9
    assert not (tmp_path / "out").exists()
