"""Masked-LM quality: the models' table, and what they put in the place of [MASK]."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BertForMaskedLM, BertTokenizer

from pretraining.corpus.files import TextAndRefs
from pretraining.corpus.masking import WholeWordMasker
from pretraining.distillation.evaluation import EVALUATION_SEED, evaluate
from pretraining.distillation.modeling import load_masked_lm, masked_lm_outputs, require_model_directory
from pretraining.reporting.model_sizes import size_cells
from pretraining.reporting.model_speed import Speeds, speed_cells, speed_headers
from pretraining.reporting.tables import escape_markdown, markdown_table
from pretraining.utils import UserError

MLM_PROBABILITY = 0.15
BATCH_SIZE = 16
FILLS = 5


def load_for_evaluation(directories: dict[str, Path], max_seq_length: int) -> dict[str, BertForMaskedLM]:
    """Loads the model directories, in eval mode on the CPU; checks first that all have enough positions."""
    for name, directory in directories.items():
        positions = require_model_directory(directory, name).max_position_embeddings
        if max_seq_length > positions:
            raise UserError(f"--max_seq_length {max_seq_length}: {directory} has only {positions} positions")
    return {name: load_masked_lm(directory, name).eval() for name, directory in directories.items()}


def evaluate_models(
    models: dict[str, BertForMaskedLM], dataset: Any, tokenizer: BertTokenizer, max_seq_length: int, device: str
) -> dict[str, dict[str, float]]:
    """Evaluates the models on the masks of ``train.py --do_eval``; moves them to the device.

    Args:
        dataset: from :func:`pretraining.corpus.shards.load_shards`.

    Returns:
        as :func:`pretraining.distillation.evaluation.evaluate`.
    """
    for model in models.values():
        model.to(device)
    masker = WholeWordMasker(tokenizer, max_seq_length, MLM_PROBABILITY, EVALUATION_SEED)
    return evaluate(models, dataset, masker, batch_size=BATCH_SIZE, device=torch.device(device))


def model_table(models: dict[str, BertForMaskedLM], quality: dict[str, dict[str, float]], speeds: Speeds) -> str:
    """Shape, parameters, masked-LM loss and accuracy, and speed-ups of each model as Markdown; percent of the first model.

    Args:
        quality: of each model the result of :func:`evaluate_models`.
        speeds: from :func:`pretraining.reporting.model_speed.measure_speeds`.
    """
    header = ["Model", "Layers", "Hidden", "Heads", "Parameters", "Without embeddings", "Masked-LM loss", "Accuracy"]
    rows = [header + [f"Speed-up, {column}" for column in speed_headers(speeds)]]
    reference = next(iter(models.values())).config
    for name, model in models.items():
        config, result = model.config, quality[name]
        shape = [str(config.num_hidden_layers), str(config.hidden_size), str(config.num_attention_heads)]
        scores = [f"{result['loss']:.4f}", f"{result['accuracy']:.2%}"]
        rows.append([name, *shape, *size_cells(config, reference), *scores, *speed_cells(name, speeds)])
    return markdown_table(rows)


def how_evaluated(dev_files: list[TextAndRefs], quality: dict[str, dict[str, float]]) -> str:
    """The sentence that belongs beside the masked-LM columns."""
    tokens = next(iter(quality.values()))["masked_tokens"]
    names = ", ".join(file.text.name for file in dev_files)
    return (
        f"Masked-LM: mean cross-entropy in nats and accuracy on {tokens:,} masked tokens of {names}, "
        f"whole words, {MLM_PROBABILITY:.0%}, the same masks for all."
    )


class Fill(NamedTuple):
    """A token that a model puts in the place of [MASK], and its probability."""

    token: str
    probability: float


def top_fills(model: BertForMaskedLM, tokenizer: BertTokenizer, sentence: str) -> list[Fill]:
    """The most probable tokens at the only [MASK] of a sentence, best first."""
    input_ids = tokenizer(sentence, return_tensors="pt")["input_ids"].to(model.device)
    masked_positions = (input_ids == tokenizer.mask_token_id).nonzero()[:, 1:]
    with torch.inference_mode():
        logits = masked_lm_outputs(model, {"input_ids": input_ids, "masked_positions": masked_positions}).logits
    probabilities, ids = logits[0].float().softmax(-1).topk(FILLS)
    tokens = tokenizer.convert_ids_to_tokens(ids.tolist())
    return [Fill(token, probability) for token, probability in zip(tokens, probabilities.tolist())]


def fill_table(models: dict[str, BertForMaskedLM], tokenizer: BertTokenizer, sentence: str) -> str:
    """The fills of all models for one sentence as Markdown."""
    rows = [[escape_markdown(sentence), *map(str, range(1, FILLS + 1))]]
    for name, model in models.items():
        fills = top_fills(model, tokenizer, sentence)
        rows.append([name, *(f"{escape_markdown(fill.token)} {fill.probability:.1%}" for fill in fills)])
    return markdown_table(rows)
