"""Model configs: shapes and parameter counts."""

from pathlib import Path
from typing import NamedTuple

import torch
from transformers import BertConfig, BertModel

from pretraining.distillation.modeling import read_config
from pretraining.reporting.published_models import STUDENT_CONFIGS, published
from pretraining.reporting.tables import markdown_table

SIZE_HEADER = [
    *("Model", "Layers", "Hidden", "FFN", "Heads", "Parameters", "Without embeddings"),
    *("Published: shape", "Published: parameters", "Published: without embeddings"),
]


def read_configs(files: dict[str, Path]) -> dict[str, BertConfig]:
    """Reads the config JSON of each model."""
    return {name: read_config(file, f"the config of {name}") for name, file in files.items()}


def published_configs() -> dict[str, BertConfig]:
    """The configs of the published models, RoBERTa first."""
    roberta = BertConfig(vocab_size=21128)  # the library's defaults are BERT-base
    return {"RoBERTa": roberta, **read_configs(STUDENT_CONFIGS)}


class ParameterCounts(NamedTuple):
    """Parameters of a BertModel with its pooler."""

    total: int
    without_embeddings: int


def parameter_counts(config: BertConfig) -> ParameterCounts:
    """Counts the parameters of the BertModel that a config describes."""
    with torch.device("meta"):  # shapes only, no memory
        model = BertModel(config)
    total = model.num_parameters()
    embeddings = sum(parameter.numel() for parameter in model.embeddings.parameters())
    return ParameterCounts(total=total, without_embeddings=total - embeddings)


def size_cells(config: BertConfig, reference: BertConfig) -> list[str]:
    """Two table cells, parameters with and without embeddings: in millions, and in percent of the reference model's."""
    counts = zip(parameter_counts(config), parameter_counts(reference))
    return [f"{count / 1e6:.2f}M ({count / reference_count:.1%})" for count, reference_count in counts]


def size_table(configs: dict[str, BertConfig]) -> str:
    """The shape and parameters of each model as Markdown, beside the published values; percent of the first model."""
    reference = next(iter(configs.values()))
    rows = [SIZE_HEADER]
    for name, config in configs.items():
        shape = [config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads]
        row = published(name)
        rows.append(
            [name, *map(str, shape), *size_cells(config, reference), row.shape, row.parameters, row.without_embeddings],
        )
    return markdown_table(rows)
