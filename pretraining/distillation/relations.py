"""Relation distillation: the student learns how the teacher's query, key and value states relate the tokens of a sample.

MiniLMv2 (Wang et al. 2021, arXiv:2012.15828, section 3). It needs no projection, no equal sizes, no equal heads. TextBrewer gets one match
for each of the features "query", "key" and "value"; their loss ``relation48`` splits the states into 48 relation heads.
"""

from functools import partial
from math import sqrt
from typing import Any, NamedTuple

import textbrewer
import torch
from textbrewer.presets import FEATURES
from torch import nn
from transformers import BertForMaskedLM

from pretraining.distillation.memory import RELATION_CHUNK
from pretraining.matches import MAX_RELATION_HEADS, RELATED_FEATURES

CPU_CHUNK = 2**19  # relations that are computed at a time: what a cache holds

# ---------------------------------------------------------------- the loss


class TokenStates(NamedTuple):
    """The query, key or value states of a layer.

    Attributes:
        states: (batch, length, hidden).
        attention_mask: (batch, length), 0 at padding; None where no row is padded.
    """

    states: torch.Tensor
    attention_mask: torch.Tensor | None


def relation_loss(state_S: TokenStates, state_T: TokenStates, mask: None = None, *, heads: int) -> torch.Tensor:
    """KL divergence of the student's relations from the teacher's, a float32 scalar.

    Section 3 of arXiv:2012.15828. The relation of a token to all tokens is ``softmax(A A^T / sqrt(d))``, where A are the states of a
    relation head and d is their size. The loss is the mean over relation heads and tokens of a sample, then over samples; padding neither
    has relations nor is related to.

    Args:
        mask: None; TextBrewer passes the mask of its hidden matches here.
        heads: relation heads; divides both hidden sizes.
    """
    chunk = CPU_CHUNK if state_S.states.device.type == "cpu" else RELATION_CHUNK
    return relation(state_S.states, state_T.states, state_S.attention_mask, heads, chunk)[0]


def relation_and_gradient(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, heads: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss, and its gradient with respect to the student's states.

    Computes both chunk by chunk, in float32 or wider: nothing of (batch, heads, length, length) is made or kept for the backward pass.

    Args:
        student, teacher: (batch, length, hidden), each of its own hidden size.
        mask: (batch, length), or None.
        chunk: relations that are computed at a time, at least those of one head.

    Returns:
        a scalar and (batch, length, student's hidden size), both float32, or float64 for states in float64.
    """
    batch, length, _ = student.shape
    dtype = torch.promote_types(student.dtype, torch.float32)
    split_S, split_T = (states.unflatten(-1, (heads, -1)).transpose(1, 2) for states in (student, teacher))  # (batch, heads, length, size)
    loss, gradient = student.new_zeros((), dtype=dtype), student.new_empty((batch, length, *split_S.shape[1::2]), dtype=dtype)
    weights = student.new_full((batch, length), 1 / length, dtype=dtype) if mask is None else mask / mask.sum(1, keepdim=True, dtype=dtype)
    at_a_time = max(1, chunk // length**2)
    rows, heads_at_a_time = max(1, at_a_time // heads), min(at_a_time, heads)
    with torch.autocast(student.device.type, enabled=False):
        for row in range(0, batch, rows):
            for head in range(0, heads, heads_at_a_time):
                part = slice(row, row + rows), slice(head, head + heads_at_a_time)
                padding = None if mask is None else mask[part[0], None, None, :] == 0
                weight = weights[part[0], None, :, None] / (batch * heads)
                term, part_gradient = _part(split_S[part].to(dtype), split_T[part].to(dtype), padding, weight)
                loss += term
                gradient[part[0], :, part[1]] = part_gradient.transpose(1, 2)
    return loss, gradient.flatten(2)


def _part(
    states_S: torch.Tensor, states_T: torch.Tensor, padding: torch.Tensor | None, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and gradient of a chunk.

    Args:
        states_S, states_T: (rows, heads, length, size), each of its own size.
        padding: (rows, 1, 1, length) bool, True at padding; or None.
        weight: (rows, 1, length, 1) of the tokens.
    """
    scores_S, relations_S = _relations(states_S, padding)
    scores_T, relations_T = _relations(states_T, padding)
    divergence = _log_sum(scores_S, relations_S) - _log_sum(scores_T, relations_T)
    divergence += scores_T.sub_(scores_S).mul_(relations_T).sum(-1, keepdim=True)
    difference = relations_S.sub_(relations_T)  # the gradient with respect to the scores
    scale = weight / sqrt(states_S.size(-1))
    return (divergence * weight).sum(), scale * (difference @ states_S) + difference.mT @ (scale * states_S)


def _relations(states: torch.Tensor, padding: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and their softmax, both (rows, heads, length, length)."""
    scores = (states / sqrt(states.size(-1))) @ states.mT
    if padding is not None:
        scores.masked_fill_(padding, -1e30)  # not -inf: the difference of two must be 0
    return scores, scores.softmax(-1)


def _log_sum(scores: torch.Tensor, relations: torch.Tensor) -> torch.Tensor:
    """The logarithm of the sum of exponentials that the softmax divided by, (rows, heads, length, 1)."""
    return scores.amax(-1, keepdim=True) - relations.amax(-1, keepdim=True).log()


# torch.compile takes an operator as it is: it would unroll the chunks into thousands of nodes.
relation = torch.library.custom_op("minirbt::relation", relation_and_gradient, mutates_args=())
relation.register_fake(relation_and_gradient)


def _keep_gradient(ctx: Any, inputs: tuple, output: tuple[torch.Tensor, torch.Tensor]) -> None:
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad_loss: torch.Tensor, _: Any) -> tuple[torch.Tensor, None, None, None, None]:
    return (ctx.saved_tensors[0] * grad_loss).to(ctx.dtype), None, None, None, None


relation.register_autograd(_backward, setup_context=_keep_gradient)

FEATURES.extend(RELATED_FEATURES)  # TextBrewer has a function to register a loss, and none for a feature
for heads in range(1, MAX_RELATION_HEADS + 1):
    textbrewer.register_new("match_Loss", f"relation{heads}", partial(relation_loss, heads=heads))


# ---------------------------------------------------------------- the states


class SelfAttentionStates:
    """Keeps the query, key and value states of some layers in each forward pass of a model, by hooks: attentions are not asked for.

    Args:
        layers: by feature, from ``distiller.matched_layers``; features other than ``RELATED_FEATURES`` are ignored.
    """

    def __init__(self, model: BertForMaskedLM, layers: dict[str, set[int]]):
        self.kept: dict[str, dict[int, torch.Tensor]] = {feature: {} for feature in RELATED_FEATURES}
        for feature in RELATED_FEATURES:
            for layer in layers[feature]:
                linear = getattr(model.bert.encoder.layer[layer].attention.self, feature)
                linear.register_forward_hook(partial(self._keep, self.kept[feature], layer))

    @staticmethod
    def _keep(kept: dict[int, torch.Tensor], layer: int, module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
        kept[layer] = output

    def take(self, batch: dict[str, torch.Tensor]) -> dict[str, dict[int, TokenStates]]:
        """The states of the last forward pass by feature and layer, for TextBrewer; they are kept no longer."""
        mask = batch.get("attention_mask")
        taken = {name: {layer: TokenStates(states, mask) for layer, states in kept.items()} for name, kept in self.kept.items()}
        for kept in self.kept.values():
            kept.clear()
        return taken
