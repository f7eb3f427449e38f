"""What makes a training step on a CPU faster and leaner than torch's own kernels do, at the same precision."""

from contextlib import contextmanager

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

# ---------------------------------------------------------------- float32 products


def onednn_is_exact() -> bool:
    """Whether oneDNN computes float32 products in float32 on this machine although it is allowed to round (with AMX it would)."""
    probe = torch.full((512, 512), 1 + 2.0**-12)
    with onednn_products():
        return torch.equal(probe @ torch.eye(512), probe)


@contextmanager
def onednn_products():
    """Has oneDNN compute float32 matrix products in the place of MKL, which is slower on AMD's processors (benchmarks/RESULTS.md).

    torch turns to oneDNN only where it may round to bfloat16, so ask :func:`onednn_is_exact` first.
    """
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


# ---------------------------------------------------------------- attention

ATTENTION = "minirbt_cpu"


def attention(module, query, key, value, attention_mask, dropout: float = 0.0, scaling: float = 1.0, **_):
    """Attention for ``model.set_attn_implementation(ATTENTION)``.

    torch has no fused attention with dropout for CPUs: it keeps three float arrays of (batch, heads, length, length) a layer for the
    backward pass and draws the dropout slowly. This one goes sample by sample, so that a sample's scores stay in the cache, computes
    them again in the backward pass (as FlashAttention does, arXiv:2205.14135) and keeps one byte a score: whether it is dropped.

    Args:
        query, key, value: (batch, heads, length, size).
        attention_mask: (batch, 1, length, length) bool, True where a token may be looked at, or None.
        dropout: probability, rounded to a 65536th.

    Returns:
        (batch, length, heads, size), and None in the place of the attention probabilities.
    """
    return _Attention.apply(query, key, value, attention_mask, scaling, round(dropout * 65536)), None


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class _Attention(torch.autograd.Function):
    """Its (heads, length, length) buffers serve one sample after the other: to get new memory costs more than to compute."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling, drop_of_65536):
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
    def backward(ctx, grad_output):
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
    """Bytes that are 0 with probability ``drop_of_65536`` / 65536, else 1: sixteen random bits each, four out of one 64-bit number."""
    keep = torch.empty(shape, dtype=torch.uint8)
    bits = torch.empty(-(-keep.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return torch.ge(bits[: keep.numel()].view(shape), drop_of_65536 - 32768, out=keep)
