"""What makes a training step fast on a CPU: float32 products by oneDNN, and an attention of our own.

torch has no fused attention with dropout for CPUs: its own keeps three float arrays of (batch, heads, length, length) a layer for the
backward pass and draws the dropout slowly. This one goes sample by sample, so that a sample's scores stay in the cache, computes
the probabilities again in the backward pass (as FlashAttention does, arXiv:2205.14135) and keeps one byte a score: is it dropped?
"""

import torch
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

NAME = "minirbt_cpu"


def use_fast_cpu(*models) -> None:
    """Switches the models from torch's attention to this module's, and float32 products to oneDNN where they stay exact.

    MKL, torch's choice, takes twice the time on AMD's processors. oneDNN is only reached by a setting that lets it round to
    bfloat16; without Intel's AMX it never does.
    """
    if torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        if not torch.cpu._is_amx_tile_supported():
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    for model in models:
        if model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(NAME)


def attention(module, query, key, value, attention_mask, dropout: float = 0.0, scaling: float = 1.0, **_):
    """Attention in the form that transformers calls: query, key and value (batch, heads, length, size).

    Args:
        attention_mask: (batch, 1, length, length) bool, True where a token may be looked at, or None.
        dropout: probability, rounded to a 65536th.

    Returns:
        (batch, length, heads, size) and None in the place of the probabilities.
    """
    return _Attention.apply(query, key, value, attention_mask, scaling, round(dropout * 65536)), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


class _Attention(torch.autograd.Function):
    """Goes through two or three buffers of one sample's (heads, length, length) numbers, again and again: new ones cost page faults."""

    @staticmethod
    def forward(ctx, query, key, value, mask, scaling, drop_of_65536):
        batch, heads, length, size = query.shape
        output = query.new_empty(batch, length, heads, size)
        keep = _random_keep((batch, heads, length, length), drop_of_65536) if drop_of_65536 else None
        scores = query.new_empty(heads, length, length)
        weights = torch.empty_like(scores, dtype=torch.float32)
        for i in range(batch):
            _probabilities(query[i], key[i], mask, i, scaling, scores, weights)
            if keep is not None:
                weights.mul_(keep[i])
            output[i] = torch.bmm(scores.copy_(weights), value[i]).transpose(0, 1)
        ctx.kept_share = 1 - drop_of_65536 / 65536
        output /= ctx.kept_share
        ctx.scaling = scaling
        ctx.save_for_backward(query, key, value, mask, keep, output)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        query, key, value, mask, keep, output = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.empty_like(tensor) for tensor in (query, key, value))
        row_sums = (grad_output * output).sum(-1, dtype=torch.float32).transpose(1, 2).unsqueeze(-1)
        grad_output = (grad_output / ctx.kept_share).transpose(1, 2)
        scores = torch.empty_like(key[0, :, :, :1].expand(-1, -1, key.size(2)), memory_format=torch.contiguous_format)
        probabilities, weights = (torch.empty_like(scores, dtype=torch.float32) for _ in range(2))
        for i in range(len(query)):
            _probabilities(query[i], key[i], mask, i, ctx.scaling, scores, probabilities)
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


def _probabilities(query, key, mask, i, scaling, scores, probabilities) -> None:
    """Writes the attention probabilities of sample ``i``; query and key (heads, length, size), ``probabilities`` float32."""
    torch.bmm(query * scaling, key.transpose(1, 2), out=scores)
    if mask is not None:
        scores.masked_fill_(~mask[i], -torch.inf)
    torch.softmax(scores, dim=-1, dtype=torch.float32, out=probabilities)


def _random_keep(shape: tuple[int, ...], drop_of_65536: int) -> torch.Tensor:
    """Bytes that are 0 with probability ``drop_of_65536`` / 65536, else 1: sixteen random bits each, four out of one 64-bit number."""
    keep = torch.empty(shape, dtype=torch.uint8)
    bits = torch.empty(-(-keep.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    return torch.ge(bits[: keep.numel()].view(shape), drop_of_65536 - 32768, out=keep)
