"""Parameter counts of the students and of RoBERTa are those of the published table."""

import json
from pathlib import Path

import pytest
import torch
from modeling import read_config
from transformers import BertConfig, BertModel

CONFIGS = Path(__file__).resolve().parents[1] / "pretraining" / "distill_configs"
ROBERTA = {"vocab_size": 21128, "num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
# millions of parameters with embeddings, without; layers, hidden size, heads
PUBLISHED = {
    "RoBERTa": (102.3, 85.7, 12, 768, 12),
    "distill_rbt6.json": (59.76, 43.14, 6, 768, 12),
    "distill_rbt3.json": (38.5, 21.9, 3, 768, 12),
    "distill_rbt4_312.json": (11.4, 4.7, 4, 312, 12),
    "MiniRBT-h256.json": (10.4, 4.8, 6, 256, 8),
    "MiniRBT-h288.json": (12.3, 6.1, 6, 288, 8),
}


def test_every_student_config_is_in_the_table():
    assert sorted(path.name for path in CONFIGS.glob("*.json")) == sorted(set(PUBLISHED) - {"RoBERTa"})


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name):
    total, without_embeddings, layers, hidden, heads = PUBLISHED[name]
    config = BertConfig(**ROBERTA) if name == "RoBERTa" else read_config(CONFIGS / name, "the student's config")
    with torch.device("meta"):  # shapes without memory
        model = BertModel(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(parameter.numel() for parameter in model.embeddings.parameters())

    assert count / 1e6 == pytest.approx(total, abs=0.1)
    assert (count - embeddings) / 1e6 == pytest.approx(without_embeddings, abs=0.1)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (layers, hidden, heads)


@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - {"RoBERTa"}))
def test_students_share_vocabulary_positions_and_dropout_with_roberta(name):
    values = json.loads((CONFIGS / name).read_text(encoding="utf-8"))
    assert (values["vocab_size"], values["max_position_embeddings"], values["type_vocab_size"]) == (21128, 512, 2)
    assert values["hidden_dropout_prob"] == values["attention_probs_dropout_prob"] == 0.1
