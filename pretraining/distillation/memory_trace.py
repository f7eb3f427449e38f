"""Counts the memory and the work of one training step without computing it: real models, fake tensors.

A fake tensor has a shape and a dtype, but no values. A trace needs seconds and little memory, even where the step would need 80 GB.
"""

import tempfile
import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForMaskedLM, BertConfig

from pretraining.config import TrainingArguments
from pretraining.distillation.cpu import ATTENTION
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.memory import RELATION_CHUNK
from pretraining.distillation.modeling import half_dtype
from pretraining.distillation.optimizer import make_optimizer
from pretraining.distillation.relations import relation_and_gradient


class StepCost(NamedTuple):
    """What a training step costs.

    Attributes:
        peak: bytes of all tensors that live at the same time, at most: weights, gradients, optimizer state, activations, the batch.
        resident: bytes that live between two steps: weights, gradients, optimizer state, the teacher.
        operations: of forward and backward: the floating-point operations of each, 0 but for matrix products; the bytes it reads and writes.
    """

    peak: int
    resident: int
    operations: list[tuple[int, int]]


def trace_step(
    args: TrainingArguments, student: BertConfig, teacher: BertConfig | None, matches: list[dict], batch_size: int, device: str = "cuda"
) -> StepCost:
    """Traces the forward pass, the backward pass and the update of one micro-batch, eager, with the gradients of an earlier one in place.

    Args:
        args: those of train.py; precision, length, share of masked tokens, ``cpu_kernels`` and the temperature count.
        matches: from ``matches.get_matches``.
        device: "cuda" counts what the kernels of a GPU keep, "cpu" what those of a CPU keep. Neither needs to exist here.
    """
    with torch.device("meta"):
        models = fake_models(args, student, teacher, matches, device)
    with tempfile.TemporaryDirectory() as folder:  # TextBrewer makes its output directory at once
        distiller = Distiller(replace(args, output_dir=folder, compile="no"), *models, matches, torch.device("meta"))
    kernels = CudaKernels if device == "cuda" else nullcontext
    with FakeTensorMode(), TensorCount() as count, kernels():
        for module in (distiller.module, models[1]):
            if module is not None:
                replace_weights(module)
        optimizer = make_optimizer(distiller.module.student, distiller.module.projections, args)
        forward_backward(distiller.module, fake_batch(args, 1))
        optimizer.step()  # makes the optimizer's state
        batch = fake_batch(args, batch_size)
        resident = count.live
        count.peak, count.operations = 0, []
        forward_backward(distiller.module, batch)
        operations = count.operations
        count.operations = []
        nn.utils.clip_grad_norm_(distiller.module.parameters(), 1.0)
        optimizer.step()
    return StepCost(count.peak, resident, operations)


def fake_models(
    args: TrainingArguments, student: BertConfig, teacher: BertConfig | None, matches: list[dict], device: str
) -> tuple[Any, Any]:
    """Student and teacher with the dtypes and the attention that ``modeling.prepare_models`` gives them; teacher may be None."""
    attention = ATTENTION if device == "cpu" and args.cpu_kernels else "sdpa"
    if any(match["feature"] == "attention" for match in matches):
        attention = "eager"
    trained = AutoModelForMaskedLM.from_config(student, dtype=torch.float32, attn_implementation=attention).train()
    if teacher is None:
        return trained, None
    frozen = AutoModelForMaskedLM.from_config(teacher, dtype=half_dtype(args) or torch.float32, attn_implementation=attention)
    return trained, frozen.eval().requires_grad_(False)


def replace_weights(module: nn.Module) -> None:
    """Gives a module on the meta device fake weights on the CPU, so that autocast works; tied weights stay tied."""
    new: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, old in [*part.named_parameters(recurse=False), *part.named_buffers(recurse=False)]:
            if id(old) not in new:
                values = torch.empty(old.shape, dtype=old.dtype)
                new[id(old)] = nn.Parameter(values, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else values
            setattr(part, name, new[id(old)])


def fake_batch(args: TrainingArguments, batch_size: int) -> dict[str, torch.Tensor]:
    """A batch without padded rows, as ``WholeWordMasker`` makes it."""
    masked = max(1, round(args.mlm_probability * args.max_seq_length))
    widths = {"input_ids": args.max_seq_length, "masked_positions": masked, "labels": masked}
    batch = {name: torch.empty(batch_size, width, dtype=torch.int64) for name, width in widths.items()}
    return {**batch, "mean_masked": torch.empty(())}


def forward_backward(module: nn.Module, batch: dict[str, torch.Tensor]) -> None:
    loss, _ = module(batch)
    loss.backward()


# ---------------------------------------------------------------- what is counted


class TensorCount(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it, and the work of all operations.

    Attributes:
        live: bytes of the tensors that exist now; views count once.
        peak: the largest value of ``live`` since it was set to 0.
        operations: floating-point operations, and bytes read and written, of each operation that is no view.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.operations: list[tuple[int, int]] = []
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.minirbt.relation.default:
            student_states, teacher_states, mask, heads, _ = args
            with self:  # an operator of ours: count what happens inside
                return relation_and_gradient(student_states, teacher_states, mask, heads, RELATION_CHUNK)
        outputs = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
        for tensor in tensors:
            self._add(tensor.untyped_storage())
        if func.namespace == "aten" and not func.is_view and "empty" not in func.name():
            tensors += [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            count = flop_registry.get(func.overloadpacket)
            flops = count(*args, **kwargs, out_val=outputs) if count else 0
            self.operations.append((flops, sum(tensor.numel() * tensor.element_size() for tensor in tensors)))
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        if id(storage) in self.known:
            return
        self.known.add(id(storage))
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._remove, id(storage), storage.nbytes())

    def _remove(self, identity: int, size: int) -> None:
        self.known.discard(identity)
        self.live -= size


class CudaKernels(TorchFunctionMode):
    """Lets a trace on CPU tensors keep what CUDA's kernels keep, where these differ from the CPU's.

    - Attention is fused: FlashAttention in half precision, else memory-efficient attention. Nothing of (length, length) is kept.
    - Dropout keeps one byte for each value.
    - Under autocast, layer_norm computes in float32.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return cuda_attention(*args, **kwargs)
        if func is F.dropout:
            return cuda_dropout(*args, **kwargs)
        if func is F.layer_norm and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **kwargs)


def cuda_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    **_: Any,
) -> torch.Tensor:
    """``scaled_dot_product_attention`` without a mask as torch dispatches it on Ampere and later; shapes (batch, heads, length, size)."""
    size = query.size(-1)
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (tensor.to(torch.get_autocast_dtype("cpu")) for tensor in (query, key, value))
    if query.dtype != torch.float32:
        query, key, value = (F.pad(tensor, (0, -size % 8)) if size % 8 else tensor for tensor in (query, key, value))
        result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, scale=scale)[0]
        return result[..., :size]
    if size % 4 == 0:
        return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, dropout_p, scale=scale)[0]
    root = (scale or 1 / size) ** 0.5
    return cuda_dropout(F.softmax((query * root) @ (key * root).transpose(-2, -1), dim=-1), dropout_p) @ value


def cuda_dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    return torch.native_dropout(input, p, training)[0] if training and p > 0 else input
