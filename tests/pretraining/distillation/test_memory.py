"""distillation/memory.py: the formula agrees with the traced step, and the batch sizes that it gives the published recipes."""

from typing import NamedTuple

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from pretraining.config import TrainingArguments
from pretraining.distillation.memory import largest_forward_batch, parameter_count, step_bytes
from pretraining.distillation.memory_trace import trace_step
from pretraining.matches import get_matches
from pretraining.reporting.model_sizes import published_configs

CONFIGS = published_configs()


class Stage(NamedTuple):
    student: str
    teacher: str
    matches: str

    def arguments(self) -> tuple[BertConfig, BertConfig | None, list[dict]]:
        student, teacher = CONFIGS[self.student], CONFIGS.get(self.teacher)
        return student, teacher, get_matches([self.matches], student, teacher) if teacher else []


STAGES = {
    "assistant": Stage("RBT6 (KD)", "RoBERTa", "L6_hidden_mse"),
    "h256": Stage("MiniRBT-H256", "RBT6 (KD)", "L6h256_rbt6_hidden_mse"),
    "h288": Stage("MiniRBT-H288", "RBT6 (KD)", "L6h288_rbt6_hidden_mse"),
    "one-stage": Stage("MiniRBT-H256", "RoBERTa", "L6h256_roberta_hidden_mse"),
    "rbt4": Stage("RBT4-H312", "RoBERTa", "L4t_hidden_mse"),
    "rbt3": Stage("RBT3", "", ""),
}
OTHERS = {
    "attentions": Stage("RBT4-H312", "RoBERTa", "L4_attention_mse"),
    "mmd": Stage("RBT6 (KD)", "RoBERTa", "L6_hidden_smmd"),
    "gram": Stage("RBT4-H312", "RoBERTa", "L4t_hidden_sgram"),
    "relation": Stage("MiniRBT-H256", "RBT6 (KD)", "L6h256_rbt6_relation"),
}
BF16 = torch.bfloat16


def formula_over_trace(stage: Stage, half: torch.dtype | None, batch_size: int, length: int, hard_label_weight: float = 0.0) -> float:
    student, teacher, matches = stage.arguments()
    weights = {"hard_label_weight": hard_label_weight}
    args = TrainingArguments(student_config="", output_dir="", max_seq_length=length, bf16=half is not None, **weights)
    peak = trace_step(args, student, teacher, matches, batch_size).peak
    return step_bytes(student, teacher, matches, length, half, batch_size, hard_labels=hard_label_weight > 0) / peak


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_the_formula_agrees_with_the_traced_step(stage: Stage):
    assert 0.98 < formula_over_trace(stage, BF16, batch_size=64, length=512) < 1.08


@pytest.mark.slow
@pytest.mark.parametrize("half", [BF16, None])
@pytest.mark.parametrize("batch_size, length", [(8, 512), (256, 512), (64, 128)])
@pytest.mark.parametrize("stage", {**STAGES, **OTHERS}.values(), ids={**STAGES, **OTHERS})
def test_the_formula_agrees_with_the_traced_step_at_other_sizes(stage: Stage, half, batch_size: int, length: int):
    assert 0.97 < formula_over_trace(stage, half, batch_size, length) < 1.15


@pytest.mark.slow
@pytest.mark.parametrize("half", [BF16, None])
@pytest.mark.parametrize("stage", ["assistant", "h256", "rbt4"])
def test_the_formula_agrees_with_the_traced_step_with_hard_labels(stage: str, half):
    assert 0.97 < formula_over_trace(STAGES[stage], half, 64, 512, hard_label_weight=1.0) < 1.15


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_count(name: str):
    with torch.device("meta"):
        assert parameter_count(CONFIGS[name]) == BertForMaskedLM(CONFIGS[name]).num_parameters()


# ---------------------------------------------------------------- the batch of a card


@pytest.mark.parametrize(
    "name, expected",
    [
        ("assistant", [64, 128, 256, 512]),
        ("h256", [128, 256, 512, 1024]),
        ("h288", [128, 256, 512, 1024]),
        ("one-stage", [128, 256, 512, 1024]),
        ("rbt4", [128, 256, 512, 1024]),
        ("rbt3", [256, 256, 512, 1024]),
    ],
)
def test_largest_forward_batch_of_the_published_recipes(name: str, expected: list[int]):
    arguments = STAGES[name].arguments()
    cards = [gigabytes * 10**9 for gigabytes in (24, 40, 80, 141)]
    assert [largest_forward_batch(card, *arguments, 512, BF16, 4096) for card in cards] == expected


@pytest.mark.parametrize("train_batch_size, expected", [(4096, 128), (512, 128), (96, 96), (375, 125), (64, 64), (33, 33), (997, 1)])
def test_largest_forward_batch_divides_the_batch(train_batch_size: int, expected: int):
    assert largest_forward_batch(24 * 10**9, *STAGES["h256"].arguments(), 512, BF16, train_batch_size) == expected


def test_largest_forward_batch_is_one_where_nothing_fits():
    assert largest_forward_batch(10**9, *STAGES["h256"].arguments(), 512, BF16, 4096) == 1


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_step_never_exceeds_the_card(stage: Stage):
    arguments = stage.arguments()
    for card in (8 * 10**9, 24 * 10**9, 47 * 10**9, 141 * 10**9):
        size = largest_forward_batch(card, *arguments, 512, BF16, 4096)
        assert step_bytes(*arguments, 512, BF16, size) < 0.9 * card
