"""Whether torch.compile runs."""

import shutil

import pytest
import torch

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
