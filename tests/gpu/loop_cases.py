"""Cases for the fake CUDA device: the real loop runs, and what was seen comes back as plain values."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes
from tqdm import tqdm

from pretraining.distillation.distiller import DistillationStep
from pretraining.distillation.evaluation import loss_hits_tokens
from tests.gpu import setting
from tests.gpu.fake_device import CUDA, FakeCuda, fake_cuda

HALF: dict[str, dict[str, Any]] = {"bf16": {"bf16": True}, "fp16": {"fp16": True}, "fp32": {}}


def published(student: str, teacher: str, name: str, **options: Any) -> dict[str, Any]:
    return loop(setting.published(student, teacher, name), **options)


def mapping(name: str, **options: Any) -> dict[str, Any]:
    return loop(setting.of_mapping(name), **options)


def kind(feature: str, loss: str, projection: bool = False, **options: Any) -> dict[str, Any]:
    return loop(setting.of_kind(feature, loss, projection), **options)


def without_teacher(**options: Any) -> dict[str, Any]:
    return loop(setting.without_teacher(), **options)


def loop(chosen: setting.Setting, precision: str, compiled: bool = False, steps: int = 1, micro_batches: int = 2) -> dict[str, Any]:
    """Trains for some steps; returns devices and dtypes of all that a step makes, and what made the host wait."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    seen: dict[str, set[str]] = {name: set() for name in ("batches", "losses", "gradients")}
    saved: list[int] = []
    shown: list[int] = []
    with tempfile.TemporaryDirectory() as directory, fake_cuda() as device, watched(device, seen):
        accumulation = {"train_batch_size": 2 * micro_batches, "gradient_accumulation_steps": micro_batches}
        args = setting.arguments(Path(directory), steps=steps, **accumulation, **HALF[precision])
        with device.tensors:
            models = setting.build_models(chosen)
        distiller = setting.build_distiller(chosen, models, args, CUDA, compiled)
        parameters = dict(distiller.module.named_parameters())
        missing = watch_gradients(parameters, seen["gradients"])

        def at_step(step: int, own: Any) -> None:
            device.step = step

        tqdm.set_postfix = lambda *args, **options: shown.append(device.step)
        optimizer = setting.train(distiller, setting.batches(), callback=lambda step, state: saved.append(step), step_callback=at_step)
        return {
            "student": kinds(parameters.values()),
            "teacher": kinds(models[1].parameters()) if models[1] is not None else [],
            "moments": kinds(value for state in optimizer.state.values() for value in state.values()),
            **{name: sorted(values) for name, values in seen.items()},
            "without_gradient": sorted(missing),
            "graphs": torch._dynamo.utils.counters["stats"]["unique_graphs"],
            "saved": saved,
            "shown": shown,
            "reads": sorted(device.reads),
            "blocking": sorted(device.blocking),
            "waits": sorted(device.waits),
            "early": sorted(device.early),
            "mixed": sorted(device.mixed),
        }


def kinds(tensors: Any) -> list[str]:
    """Their devices and dtypes."""
    return sorted({kind_of(tensor) for tensor in tensors})


def kind_of(tensor: torch.Tensor) -> str:
    return f"{tensor.device} {str(tensor.dtype).removeprefix('torch.')}"


def watch_gradients(parameters: dict[str, nn.Parameter], seen: set[str]) -> set[str]:
    """Notes the gradients' kinds; returns the names of the parameters that have had none, which shrinks in the backward pass."""
    missing = set(parameters)
    for name, parameter in parameters.items():

        def note(own: torch.Tensor, name: str = name) -> None:
            missing.discard(name)
            seen.add(kind_of(own.grad))

        parameter.register_post_accumulate_grad_hook(note)
    return missing


@contextmanager
def watched(device: FakeCuda, seen: dict[str, set[str]]) -> Iterator[None]:
    """Notes the kinds of what goes into and comes out of the trained module. torch.compile traces it, as one graph or not at all."""
    call, compile_module = DistillationStep.__call__, nn.Module.compile

    def watched_call(self: DistillationStep, batch: dict[str, torch.Tensor]) -> Any:
        seen["batches"] |= {f"{name} {kind_of(tensor)}" for name, tensor in batch.items()}
        with ExitStack() as modes:
            if self._compiled_call_impl is not None:  # torch.compile refuses to run under a mode of ours
                modes.enter_context(_disable_current_modes())
                modes.enter_context(device.tensors)
            loss, terms = call(self, batch)
        seen["losses"] |= {kind_of(tensor) for tensor in (loss, *terms.values())}
        return loss, terms

    DistillationStep.__call__ = watched_call
    nn.Module.compile = lambda self, **options: compile_module(self, backend="aot_eager", fullgraph=True, **options)
    yield
    DistillationStep.__call__, nn.Module.compile = call, compile_module


def evaluation(padded: bool) -> dict[str, Any]:
    """One batch of an evaluation."""
    with fake_cuda() as device:
        with device.tensors:
            model, _ = setting.build_models(setting.without_teacher())
        on_device = {name: tensor.to(CUDA) for name, tensor in setting.batch(padded=padded).items()}
        sums = loss_hits_tokens(model.to(CUDA).eval(), on_device)
        return {"sums": kind_of(sums), "shape": list(sums.shape), "reads": sorted(device.reads), "mixed": sorted(device.mixed)}
