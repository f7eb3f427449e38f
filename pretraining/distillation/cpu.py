"""Kernels that make a training step on a CPU faster and smaller than torch's own, at the same precision.

Why they are here: without them a step of RBT6 -> MiniRBT-H256 takes 3.73 s instead of 1.36 s (benchmarks/RESULTS.md). The demo, the tests
and trial runs use CPUs. ``train.py --cpu_kernels false`` trains with torch's own kernels; nothing here runs on a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

# ---------------------------------------------------------------- float32 products


def onednn_is_exact() -> bool:
    """True if oneDNN computes float32 products in float32 on this machine although it may round; with AMX it does round."""
    probe = torch.full((512, 512), 1 + 2.0**-12)
    with onednn_products():
        return torch.equal(probe @ torch.eye(512), probe)


@contextmanager
def onednn_products() -> Iterator[None]:
    """Lets oneDNN compute float32 matrix products in place of MKL, which is slower on AMD processors (benchmarks/RESULTS.md).

    torch uses oneDNN only where it may round to bfloat16. Call :func:`onednn_is_exact` first.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before


# ---------------------------------------------------------------- attention

ATTENTION = "minirbt_cpu"


def attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention for ``model.set_attn_implementation(ATTENTION)``.

    torch has no fused attention with dropout for CPUs: it keeps three float arrays of (batch, heads, length, length) for each layer's
    backward pass, and draws the dropout slowly. This function works sample by sample, so that the scores of a sample stay in the cache.
    It computes them again in the backward pass, as FlashAttention does (arXiv:2205.14135), and keeps one byte for each score: dropped
    or not.

    Args:
        query, key, value: (batch, heads, length, size).
        attention_mask: (batch, 1, length, length) bool, True where a token may be attended to, or None.
        dropout: probability, rounded to a 65536th.

    Returns:
        (batch, length, heads, size), and None in place of the attention probabilities.
    """
    return _Attention.apply(query, key, value, attention_mask, scaling, round(dropout * 65536)), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Attention(torch.autograd.Function):
    """Attention of one sample after the other. They share (heads, length, length) buffers: new memory costs more than the products."""

    @staticmethod
    def forward(ctx: Any, query, key, value, mask, scaling, drop_of_65536):
        batch, heads, length, size = query.shape
        output = query.new_empty(batch, length, heads, size)
        keep = _random_keep((batch, heads, length, length), drop_of_65536) if drop_of_65536 else None
        scores, weights = (query.new_empty(heads, length, length) for _ in range(2))
        for i in range(batch):
            _probabilities(query[i], key[i], mask, i, scaling, scores, out=weights)
            if keep is not None:
                weights.mul_(keep[i])
            output[i] = torch.bmm(weights, value[i]).transpose(0, 1)
        ctx.scaling, ctx.kept_share = scaling, 1 - drop_of_65536 / 65536
        output /= ctx.kept_share
        ctx.save_for_backward(query, key, value, mask, keep, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output):
        query, key, value, mask, keep, output = ctx.saved_tensors
        batch, heads, length, _ = query.shape
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        row_sums = (grad_output * output).sum(-1, dtype=torch.float32).transpose(1, 2).unsqueeze(-1)
        grad_output = (grad_output / ctx.kept_share).transpose(1, 2)
        scores = query.new_empty(heads, length, length)
        probabilities, weights = (torch.empty_like(scores, dtype=torch.float32) for _ in range(2))
        for i in range(batch):
            _probabilities(query[i], key[i], mask, i, ctx.scaling, scores, out=probabilities)
            weights.copy_(probabilities)
            if keep is not None:
                weights.mul_(keep[i])
            grad_value[i] = torch.bmm(scores.copy_(weights).transpose(1, 2), grad_output[i])
            weights.copy_(torch.bmm(grad_output[i], value[i].transpose(1, 2), out=scores))
            if keep is not None:
                weights.mul_(keep[i])
            scores.copy_(weights.sub_(row_sums[i]).mul_(probabilities))
            grad_query[i] = torch.bmm(scores, key[i]) * ctx.scaling
            grad_key[i] = torch.bmm(scores.transpose(1, 2), query[i]) * ctx.scaling
        return grad_query, grad_key, grad_value, None, None, None


def _probabilities(query, key, mask, i, scaling, scores, out) -> None:
    """Writes the attention probabilities of sample ``i`` to ``out`` in its dtype; query and key (heads, length, size)."""
    torch.bmm(query * scaling, key.transpose(1, 2), out=scores)
    if mask is not None:
        scores.masked_fill_(~mask[i], -torch.inf)
    torch.softmax(scores, dim=-1, dtype=out.dtype, out=out)


def _random_keep(shape: tuple[int, ...], drop_of_65536: int) -> torch.Tensor:
    """uint8 values: 0 with probability ``drop_of_65536`` / 65536, else 1. Each uses 16 random bits, a quarter of a 64-bit number."""
    keep = torch.empty(shape, dtype=torch.uint8)
    bits = torch.empty(-(-keep.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return torch.ge(bits[: keep.numel()].view(shape), drop_of_65536 - 32768, out=keep)
