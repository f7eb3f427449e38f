"""The losses and adaptors handed to TextBrewer, for pretraining and fine-tuning.

An adaptor turns a model's outputs into the dict that ``GeneralDistiller.compute_loss`` reads: "logits", "hidden", "attention", "losses".
"""

from typing import Any, NamedTuple

import textbrewer
import torch
import torch.nn.functional as F
from textbrewer.losses import fsp_loss

# ---------------------------------------------------------------- between layers


def gram_loss(state_S: list[torch.Tensor], state_T: list[torch.Tensor], mask: torch.Tensor | None = None) -> torch.Tensor:
    """TextBrewer's ``gram``, with float16 states in float32.

    The gram matrix sums products over the positions of a row before it divides by their number. With 512 positions a hidden dimension
    of 11.4 or more exceeds float16, and RoBERTa has such dimensions: the loss would be infinite at every scale.

    Args:
        state_S, state_T: two tensors each, (batch, length, hidden).
        mask: (batch, length), or None for all positions.
    """
    if state_T[0].dtype != torch.float16:
        return fsp_loss(state_S, state_T, mask)
    with torch.autocast(state_T[0].device.type, enabled=False):
        return fsp_loss([state.float() for state in state_S], [state.float() for state in state_T], mask)


textbrewer.register_new("match_Loss", "gram", gram_loss)


# ---------------------------------------------------------------- pretraining


class PickedLogits(NamedTuple):
    """Logits at the masked positions, as they pass through TextBrewer's compute_loss to :func:`kd_ce_loss`.

    Attributes:
        logits: (positions, vocabulary).
        used: (positions,) bool; unused positions fill a row up to the fixed number.
        denominator: scalar float; used positions of the optimizer step per micro-batch, the mean over micro-batches and processes. Dividing by
            it gives the mean over the global batch, however that was split.
    """

    logits: torch.Tensor
    used: torch.Tensor
    denominator: torch.Tensor


def kd_ce_loss(student: PickedLogits, teacher: PickedLogits, temperature: float) -> torch.Tensor:
    """Cross-entropy with the teacher's soft targets, mean over the used positions; no T² factor.

    The same value as ``textbrewer.losses.kd_ce_loss`` over the masked positions of full logits (Hinton et al. 2015).
    """
    targets = F.softmax(teacher.logits.float() / temperature, dim=-1)
    losses = F.cross_entropy(student.logits.float() / temperature, targets, reduction="none")
    return (losses * student.used).sum() / student.denominator


def masked_lm_loss(student: PickedLogits, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with the masked tokens (Devlin et al. 2019), mean over the used positions; labels (positions,) int64."""
    return F.cross_entropy(student.logits.float(), labels, ignore_index=-100, reduction="sum") / student.denominator


def masked_lm_adaptor(batch: dict[str, torch.Tensor], outputs: Any, *, soft_labels: bool, hard_labels: bool) -> dict[str, Any]:
    """The adaptor of student and teacher; match losses are means over all positions, as in the published recipe.

    Args:
        soft_labels: the logits of student and teacher are compared.
        hard_labels: for the student: the loss on the true tokens is added.
    """
    results = {"hidden": outputs.hidden_states, "attention": outputs.attentions}
    if soft_labels or hard_labels:
        labels = batch["labels"].flatten()
        picked = PickedLogits(outputs.logits, labels >= 0, batch["mean_masked"])
        results |= {"logits": [picked]} if soft_labels else {}
        results |= {"losses": [masked_lm_loss(picked, labels)]} if hard_labels else {}
    return results


# ---------------------------------------------------------------- fine-tuning


def fine_tuning_adaptor(outputs: Any, inputs: dict[str, torch.Tensor], features: set[str]) -> dict[str, Any]:
    """The adaptor of a fine-tuned model, in float32.

    Args:
        outputs: of BertForSequenceClassification, BertForQuestionAnswering or BertForTokenClassification.
        inputs: the batch. ``attention_mask`` (batch, length) int64: matches compare only the real tokens. For the last model
            ``labels`` (batch, length) int64: logits where they are -100 are left out.
        features: which of "hidden" and "attention" are matched.
    """
    attention_mask = inputs["attention_mask"]
    if "start_logits" in outputs:
        padding = attention_mask == 0
        logits = [outputs[name].float().masked_fill(padding, -1e4) for name in ("start_logits", "end_logits")]
    else:
        logits = [(outputs.logits if outputs.logits.dim() == 2 else outputs.logits[inputs["labels"] != -100]).float()]
    results = {"logits": logits, "inputs_mask": attention_mask}
    if "hidden" in features:
        results["hidden"] = [state.float() for state in outputs.hidden_states]
    if "attention" in features:
        results["attention"] = [attention.float() for attention in outputs.attentions]
    return results
