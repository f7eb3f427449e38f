"""Parameter counts of the students and of RoBERTa are those of the published table."""

import json
from typing import NamedTuple

import pytest
import torch
from transformers import BertConfig, BertModel

from pretraining.distillation.modeling import read_config
from tests.workplace import PRETRAINING

CONFIGS = PRETRAINING / "distill_configs"
ROBERTA = {"vocab_size": 21128, "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}


class Published(NamedTuple):
    """A row of the published table; parameters in millions."""

    total: float
    without_embeddings: float
    layers: int
    hidden: int
    heads: int


PUBLISHED = {
    "RoBERTa": Published(total=102.3, without_embeddings=85.7, layers=12, hidden=768, heads=12),
    "distill_rbt6.json": Published(total=59.76, without_embeddings=43.14, layers=6, hidden=768, heads=12),
    "distill_rbt3.json": Published(total=38.5, without_embeddings=21.9, layers=3, hidden=768, heads=12),
    "distill_rbt4_312.json": Published(total=11.4, without_embeddings=4.7, layers=4, hidden=312, heads=12),
    "MiniRBT-h256.json": Published(total=10.4, without_embeddings=4.8, layers=6, hidden=256, heads=8),
    "MiniRBT-h288.json": Published(total=12.3, without_embeddings=6.1, layers=6, hidden=288, heads=8),
}


def test_every_student_config_is_in_the_table():
    assert sorted(path.name for path in CONFIGS.glob("*.json")) == sorted(set(PUBLISHED) - {"RoBERTa"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    published = PUBLISHED[name]
    config = BertConfig(**ROBERTA) if name == "RoBERTa" else read_config(CONFIGS / name, "the student's config")
    with torch.device("meta"):  # shapes without memory
        model = BertModel(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(parameter.numel() for parameter in model.embeddings.parameters())

    assert count / 1e6 == pytest.approx(published.total, abs=0.1)
    assert (count - embeddings) / 1e6 == pytest.approx(published.without_embeddings, abs=0.1)
    assert config.num_hidden_layers == published.layers
    assert config.hidden_size == published.hidden
    assert config.num_attention_heads == published.heads


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"RoBERTa"}))
def test_students_share_vocabulary_positions_and_dropout_with_roberta(name):
    values = json.loads((CONFIGS / name).read_text(encoding="utf-8"))
    assert (values["vocab_size"], values["max_position_embeddings"], values["type_vocab_size"]) == (21128, 512, 2)
    assert values["hidden_dropout_prob"] == values["attention_probs_dropout_prob"] == 0.1
