"""float16 with its loss scale, on the CPU: skipped steps, recovery, and the error of a loss that no scale can help."""

import functools
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pretraining.distillation.distiller import Distiller
from pretraining.utils import UserError
from tests.gpu import setting


def distiller(directory: Path, steps: int) -> Distiller:
    torch.manual_seed(0)
    chosen = setting.of_kind("hidden", "hidden_mse", projection=True)
    args = setting.arguments(directory, steps=steps, fp16=True, learning_rate=1e-3)
    batches = SimpleNamespace(examples_of_step=lambda step: np.arange(4), beginnings=lambda indices: {0: "今天"})
    return setting.build_distiller(chosen, setting.build_models(chosen), args, torch.device("cpu"), batches=batches)


def test_a_scale_that_is_far_too_large_comes_down_and_training_starts(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(torch.amp.GradScaler, init_scale=2.0**40))
    own = distiller(tmp_path, steps=40)
    first = [parameter.detach().clone() for parameter in own.module.parameters()]
    unchanged: dict[int, bool] = {}
    states = []

    def compare(step: int, _: Distiller) -> None:
        unchanged[step - 1] = all(torch.equal(*pair) for pair in zip(first, own.module.parameters()))

    setting.train(own, setting.batches(), callback=lambda step, state: states.append(state), step_callback=compare)
    skipped = capfd.readouterr().err.count("skipped the step")
    assert 10 < skipped < 35
    assert unchanged[skipped] and not unchanged[skipped + 1]
    assert states[-1]["scaler"]["scale"] == 2.0 ** (40 - skipped)
    assert all(parameter.isfinite().all() for parameter in own.module.parameters())


def test_a_loss_that_is_not_a_number_ends_the_run_when_no_scale_is_left(tmp_path, capfd):
    own = distiller(tmp_path, steps=40)
    with torch.no_grad():
        own.module.projections[0].weight.fill_(float("nan"))
    with pytest.raises(UserError, match="step 17: the loss is no longer finite .*total_loss nan.*examples 0, 1, 2, 3"):
        setting.train(own, setting.batches())  # the first scale is 2**16
    assert capfd.readouterr().err.count("skipped the step") == 16
    assert (tmp_path / "nonfinite_step17.json").is_file()
