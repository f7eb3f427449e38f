"""A gradient that overflows float16: the step is skipped and said; nothing else is lost. (Other precisions stop: tests/test_resume.py.)"""

import dataclasses
from pathlib import Path

import pytest
import tiny
import torch
from distiller import Distiller


@pytest.fixture
def in_float16(monkeypatch):
    """train.py refuses float16 without CUDA, for it is slow on a CPU; the loop itself does the same on both."""
    initialize = Distiller.__init__

    def __init__(self, args, *rest):  # noqa: N807
        initialize(self, dataclasses.replace(args, fp16=True), *rest)

    monkeypatch.setattr(Distiller, "__init__", __init__)


def overflow(monkeypatch, wanted: int, dies_in: int = 0) -> None:
    """The loss of optimizer step ``wanted`` becomes infinite; in step ``dies_in`` the run ends as though it were killed."""
    forward, calls = Distiller.train_on_batch, []

    def train_on_batch(self, batch, args):
        calls.append(1)
        if len(calls) == dies_in:
            raise Killed
        loss, terms = forward(self, batch, args)
        return (loss * float("inf"), terms) if len(calls) == wanted else (loss, terms)

    monkeypatch.setattr(Distiller, "train_on_batch", train_on_batch)


def trained(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return tiny.weights(directory / f"gs{step}")


def test_the_step_is_skipped_and_said(in_float16, corpus, tmp_path, monkeypatch, capfd):
    overflow(monkeypatch, 4)
    directory = tmp_path / "run"
    tiny.run_train(corpus.arguments(directory, ckpt_steps=1, keep_checkpoints=0))
    said = capfd.readouterr().err
    assert said.count("overflowed") == 1
    assert "step 4: a gradient overflowed float16; the step was skipped, the loss scale is now 32768" in said

    for name, tensor in trained(directory, 4).items():
        assert torch.equal(tensor, trained(directory, 3)[name])
        assert torch.isfinite(trained(directory, 8)[name]).all()
    assert any(not torch.equal(tensor, trained(directory, 4)[name]) for name, tensor in trained(directory, 5).items())
    assert [step for step, _ in tiny.scalars(directory)["scalar/total_loss"]] == [1, 2, 3, 5, 6, 7, 8]


class Killed(BaseException):
    """Stands for a process's death: nothing in the project catches it."""


def test_a_run_resumed_after_a_skipped_step_is_the_same(in_float16, corpus, tmp_path, monkeypatch):
    """The loss scale is part of what is resumed."""
    arguments = {
        name: corpus.arguments(tmp_path / name, keep_checkpoints=0, resume_from_checkpoint="latest") for name in ("whole", "killed")
    }
    with monkeypatch.context() as patch:
        overflow(patch, 4)
        tiny.run_train(arguments["whole"])
    with monkeypatch.context() as patch, pytest.raises(Killed):
        overflow(patch, 4, dies_in=7)
        tiny.run_train(arguments["killed"])
    assert not (tmp_path / "killed" / "gs8").exists()
    tiny.run_train(arguments["killed"])
    left, right = (tmp_path / name / "gs8" / "model.safetensors" for name in ("whole", "killed"))
    assert left.read_bytes() == right.read_bytes()
    assert tiny.scalars(tmp_path / "killed") == tiny.scalars(tmp_path / "whole")
