"""The two distillations of the recipe as pairs of models with random weights."""

import copy
from typing import NamedTuple

import torch
from transformers import BertConfig, BertForMaskedLM

from benchmarks.processes import PRETRAINING
from pretraining.distillation.modeling import read_config
from pretraining.matches import get_matches


class Pair(NamedTuple):
    """One distillation: names of configs in pretraining/distill_configs, and of the matches. RoBERTa is RBT6 with twelve layers."""

    student: str
    teacher: str
    matches: str
    tiny_matches: str


PAIRS = {
    "RBT6 -> H256": Pair("MiniRBT-h256", "distill_rbt6", "L6h256_rbt6_hidden_mse", tiny_matches="L6h32_L6h96_hidden_mse"),
    "RoBERTa -> RBT6": Pair("distill_rbt6", "RoBERTa", "L6_hidden_mse", tiny_matches="L6_hidden_mse"),
}


class Models(NamedTuple):
    """A student, its teacher and what is matched between them."""

    student: BertForMaskedLM
    teacher: BertForMaskedLM
    matches: list[dict]

    def copy(self) -> "Models":
        return Models(*copy.deepcopy(tuple(self)))


def build_models(name: str, vocabulary: int, device: torch.device, tiny: bool = False) -> Models:
    """Builds the pair ``name`` with random weights; the student is in training mode.

    Args:
        vocabulary: entries of the vocabulary of both models.
        tiny: makes both models an eighth as wide.
    """
    torch.manual_seed(0)
    pair = PAIRS[name]
    configs = [model_config(model, vocabulary, tiny) for model in (pair.student, pair.teacher)]
    student, teacher = (BertForMaskedLM(config).to(device) for config in configs)
    return Models(student.train(), teacher, get_matches([pair.tiny_matches if tiny else pair.matches], *configs))


def model_config(name: str, vocabulary: int, tiny: bool) -> BertConfig:
    file = "distill_rbt6" if name == "RoBERTa" else name
    config = read_config(PRETRAINING / f"distill_configs/{file}.json", "a student's config")
    config.vocab_size = vocabulary
    if name == "RoBERTa":
        config.num_hidden_layers = 12
    if tiny:
        config.hidden_size //= 8
        config.intermediate_size //= 8
        config.num_attention_heads //= 4
    return config
