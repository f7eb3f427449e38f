"""What train.py decides from the machine: whether torch.compile runs, and how many samples a forward pass takes."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from transformers import BertConfig

from pretraining.config import TrainingArguments
from pretraining.distillation import checks
from pretraining.distillation.processes import Process
from pretraining.utils import UserError

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def check(wanted: str, device: torch.device, rank: int = 0) -> bool:
    args = TrainingArguments(student_config="", output_dir="", compile=wanted)
    return checks.check_compile(args, device, Process(rank=rank, local_rank=rank, world_size=2))


@pytest.fixture
def complete(monkeypatch, tmp_path):
    """A machine with triton, a compiler and Python.h."""
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(checks.sysconfig, "get_path", lambda name: str(tmp_path))


def test_auto_compiles_on_a_gpu_and_not_on_a_cpu(complete, capsys):
    assert check("auto", CUDA) and check("yes", CUDA) and check("yes", CPU)
    assert not (check("auto", CPU) or check("no", CUDA) or check("no", CPU))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("lacks", "named"),
    [("triton", "the package triton is not installed"), ("gcc", "no C compiler (gcc) was found"), ("Python.h", "no Python.h in ")],
)
def test_what_is_missing_is_named(complete, lacks, named, monkeypatch, tmp_path, capsys):
    if lacks == "triton":
        monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    elif lacks == "gcc":
        monkeypatch.setattr(shutil, "which", lambda name: None)
    else:
        (tmp_path / "Python.h").unlink()
    assert not check("auto", CUDA)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"--compile auto: {named}") and "without torch.compile" in lines[0]
    assert not check("auto", CUDA, rank=1)
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError) as refused:
        check("yes", CUDA)
    assert str(refused.value).startswith(f"--compile yes: {named}") and "--compile no" in str(refused.value)


def test_on_a_cpu_the_compiler_is_one_for_cpp(complete, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile yes: no C\+\+ compiler \(g\+\+\) was found"):
        check("yes", CPU)


# ---------------------------------------------------------------- forward passes


def passes(device: torch.device, train_batch_size: int, given: int | None = None) -> int:
    sizes = {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 8, "intermediate_size": 1024}
    student = BertConfig(vocab_size=21128, **sizes)
    args = TrainingArguments(
        student_config="", output_dir="", bf16=True, train_batch_size=train_batch_size, gradient_accumulation_steps=given
    )
    return checks.forward_passes(args, checks.ModelPlan(student, None, []), device)


@pytest.mark.parametrize(("train_batch_size", "expected"), [(1, 1), (64, 1), (96, 2), (128, 2), (67, 67), (4096, 64)])
def test_on_a_cpu_a_forward_pass_takes_at_most_64_samples(train_batch_size, expected):
    assert passes(CPU, train_batch_size) == expected


def test_on_a_gpu_a_forward_pass_takes_what_fits_its_memory(monkeypatch):
    found = []
    for gigabytes in (8, 80):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, size=gigabytes: SimpleNamespace(total_memory=size * 10**9))
        found.append(passes(CUDA, 512))
    assert found == [8, 1]


def test_passes_that_are_given_are_taken():
    assert passes(CPU, 128, given=8) == passes(CUDA, 128, given=8) == 8
