"""A gradient that overflows float16: the step is skipped and reported; nothing else is lost. (Other precisions stop: tests/test_resume.py.)"""

import dataclasses
from pathlib import Path

import pytest
import torch

from pretraining.distillation.distiller import Distiller
from tests import tiny


class Killed(BaseException):
    """Stands for a process's death: nothing in the project catches it."""


@pytest.fixture
def in_float16(monkeypatch):
    """train.py refuses float16 without CUDA, for it is slow on a CPU; the loop itself does the same on both."""
    initialize = Distiller.__init__

    def __init__(self, args, *rest, **named):  # noqa: N807
        initialize(self, dataclasses.replace(args, fp16=True), *rest, **named)

    monkeypatch.setattr(Distiller, "__init__", __init__)


def overflow(wanted: int, dies_in: int = 0):
    """A step callback: the loss of optimizer step ``wanted`` is infinite; step ``dies_in`` ends the run as though it were killed."""
    hooks = []

    def at_step(step: int, distiller: Distiller) -> None:
        if step == dies_in:
            raise Killed
        if step == wanted:
            hooks.append(distiller.module.register_forward_hook(lambda module, inputs, result: (result[0] * float("inf"), result[1])))
        elif hooks:
            hooks.pop().remove()

    return at_step


def trained(directory: Path, step: int) -> dict[str, torch.Tensor]:
    return tiny.weights(directory / f"gs{step}")


def test_the_step_is_skipped_and_said(in_float16, corpus, tmp_path, capfd):
    directory = tmp_path / "run"
    tiny.run_train(corpus.arguments(directory, ckpt_steps=1, keep_checkpoints=0), step_callback=overflow(4))
    said = capfd.readouterr().err
    assert said.count("overflowed") == 1
    assert "step 4: a gradient overflowed float16; skipped the step, the loss scale is now 32768" in said

    for name, tensor in trained(directory, 4).items():
        assert torch.equal(tensor, trained(directory, 3)[name])
        assert torch.isfinite(trained(directory, 8)[name]).all()
    assert any(not torch.equal(tensor, trained(directory, 4)[name]) for name, tensor in trained(directory, 5).items())
    assert [step for step, _ in tiny.scalars(directory)["scalar/total_loss"]] == [1, 2, 3, 5, 6, 7, 8]


def test_a_run_resumed_after_a_skipped_step_is_the_same(in_float16, corpus, tmp_path):
    """The loss scale is part of what is resumed."""
    arguments = {
        name: corpus.arguments(tmp_path / name, keep_checkpoints=0, resume_from_checkpoint="latest") for name in ("whole", "killed")
    }
    tiny.run_train(arguments["whole"], step_callback=overflow(4))
    with pytest.raises(Killed):
        tiny.run_train(arguments["killed"], step_callback=overflow(4, dies_in=7))
    assert not (tmp_path / "killed" / "gs8").exists()
    tiny.run_train(arguments["killed"])
    left, right = (tmp_path / name / "gs8" / "model.safetensors" for name in ("whole", "killed"))
    assert left.read_bytes() == right.read_bytes()
    assert tiny.scalars(tmp_path / "killed") == tiny.scalars(tmp_path / "whole")
