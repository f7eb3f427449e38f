"""The memory of a training step on a GPU, by formula: which ``forward_batch`` fits a card.

``memory_trace.trace_step`` counts the same from the real models, and a test holds the two together. The formula needs no torch.
"""

from math import ceil
from typing import Any

from pretraining.matches import RELATED_FEATURES

RESERVED = 2_000_000_000  # bytes for CUDA's context, cuBLAS, NCCL, and the batches that wait
RELATION_CHUNK = 2**24  # relations of token pairs that a GPU computes at a time (relations.py)
USED_SHARE = 0.9  # of the rest; the allocator cannot fill its gaps


def largest_forward_batch(
    total_bytes: int,
    student: Any,
    teacher: Any,
    matches: list[dict],
    length: int,
    half: Any,
    train_batch_size: int,
    mlm_probability: float = 0.15,
    hard_labels: bool = False,
) -> int:
    """The largest divisor of ``train_batch_size`` whose training step fits the card; 1 if none fits.

    Estimated from the eager step; a compiled step needs less.

    Args:
        total_bytes: memory of the card, ``torch.cuda.get_device_properties(0).total_memory``.
        student, teacher: transformers.BertConfig; teacher may be None.
        matches: from ``matches.get_matches``; empty without a teacher.
        length: tokens of a sample.
        half: the 16-bit dtype of the step (``modeling.half_dtype``); None in float32.
        train_batch_size: samples of an optimizer step and process.
        hard_labels: the student also learns the true tokens, beside a teacher.
    """
    for size in range(train_batch_size, 1, -1):
        if train_batch_size % size == 0:
            step = step_bytes(student, teacher, matches, length, half, size, mlm_probability, hard_labels)
            if card_bytes(step, student) <= total_bytes:
                return size
    return 1


def card_bytes(step: int, student: Any) -> int:
    """Memory that a card needs for a step whose tensors take ``step`` bytes at the peak."""
    buckets = 4 * parameter_count(student)  # DistributedDataParallel keeps a second copy of the gradients
    return RESERVED + int((step + buckets) / USED_SHARE)


def step_bytes(
    student: Any,
    teacher: Any,
    matches: list[dict],
    length: int,
    half: Any,
    batch_size: int,
    mlm_probability: float = 0.15,
    hard_labels: bool = False,
) -> int:
    """Bytes of all tensors at the peak of an eager training step; arguments as :func:`largest_forward_batch`."""
    masked = max(1, round(mlm_probability * length))
    width = 2 if half else 4  # bytes of a value that matrix products read
    fixed = (18 if half else 16) * parameter_count(student)  # weight, gradient, two moments of Adam, autocast's copy
    layers = student.num_hidden_layers * layer_bytes(student, length, half, eager=bool(layers_of(matches, "attention")))
    embeddings = 9 * student.hidden_size * length
    logits = masked * student.vocab_size
    if teacher is None:
        return fixed + batch_size * (layers + embeddings + 12 * logits)
    fixed += width * parameter_count(teacher)
    kept, compared = match_bytes(student, teacher, matches, length, half)
    kept += (8 if half else 4) * logits if hard_labels else 0  # log-probabilities, and the logits in float32
    loss_of_logits = (2 * width + 20) * logits + kept  # both models' logits, then five float arrays
    loss_of_states = (2 * width + 8) * logits + kept + compared  # targets and log-probabilities are kept for the backward pass
    chunk = 16 * RELATION_CHUNK if layers_of(matches, "query") else 0  # scores and relations of both models, in float32
    return fixed + batch_size * (layers + embeddings) + max(batch_size * loss_of_logits, batch_size * loss_of_states + chunk)


def parameter_count(config: Any) -> int:
    """Parameters of BertForMaskedLM."""
    hidden, inner, vocabulary = config.hidden_size, config.intermediate_size, config.vocab_size
    embeddings = (vocabulary + config.max_position_embeddings + config.type_vocab_size + 2) * hidden
    layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
    return embeddings + config.num_hidden_layers * layer + hidden * hidden + 3 * hidden + vocabulary


def layer_bytes(config: Any, length: int, half: Any, eager: bool) -> int:
    """Bytes that one layer of the student keeps for the backward pass of one sample.

    Args:
        eager: the attention probabilities are matched, so attention is not fused.
    """
    hidden, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    size = hidden // heads
    if half:
        padded = heads * 8 * ceil(size / 8)  # FlashAttention takes head sizes that are multiples of 8
        # inputs of four products, sums before two LayerNorms, two dropout masks; query, key, value, output; the feed-forward part
        token = 8 * hidden + 8 * hidden + 2 * hidden + 8 * padded + 4 * inner + (2 * hidden if padded > hidden else 0)
    else:
        token = 34 * hidden + 8 * inner
    if eager or not (half or size % 4 == 0):  # memory-efficient attention takes float32 heads that are multiples of 4
        score = 13 if eager and not half else 9  # a probability, a byte of dropout's mask, and the result once or twice
        return token * length + score * heads * length * length
    return (token + 4 * heads) * length


def layers_of(matches: list[dict], feature: str) -> set[int]:
    """The student's layers whose hidden states or attentions are matched."""
    found = (entry["layer_S"] for entry in matches if entry["feature"] == feature)
    return {layer for entry in found for layer in (entry if isinstance(entry, list) else [entry])}


def match_bytes(student: Any, teacher: Any, matches: list[dict], length: int, half: Any) -> tuple[int, int]:
    """Bytes that the matches of one sample need: the states themselves, then what their losses keep."""
    states = len(layers_of(matches, "hidden"))
    projected = sum("proj" in entry for entry in matches)
    attentions = len(layers_of(matches, "attention"))
    scores = length * length * max(student.num_attention_heads, teacher.num_attention_heads)
    similarities = {"gram": teacher.hidden_size**2, "mmd": length**2}  # floats of a match that compares these
    compared = sum(10 * similarities.get(entry["loss"], 0) for entry in matches)
    related = sum(len(layers_of(matches, feature)) for feature in RELATED_FEATURES)
    compared += 4 * student.hidden_size * related * length  # gradients
    differences = 4 * teacher.hidden_size * (states + 2 if half else 2) if states or attentions else 0
    if half:
        kept = (4 * student.hidden_size + 2 * teacher.hidden_size) * states * length + 2 * scores * attentions
        copies = (2 * student.hidden_size + 4 * teacher.hidden_size) * projected + differences
        return kept + 2 * teacher.hidden_size * related * length, compared + copies * length + 5 * scores * attentions
    kept = 4 * teacher.hidden_size * (states + related) * length + 4 * scores * attentions
    return kept, compared + (4 * teacher.hidden_size * projected + differences) * length + 6 * scores * attentions
