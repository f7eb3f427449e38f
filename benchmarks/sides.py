"""Both sides of a training step: this project's Distiller, and TextBrewer's own GeneralDistiller over plain BertForMaskedLM models."""

import copy
from contextlib import nullcontext
from typing import NamedTuple

import rows  # noqa: F401  (puts pretraining/ on the path)
import torch
from config import TrainingArguments
from distiller import Distiller, parameter_groups
from matches import get_matches
from modeling import read_config
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertConfig, BertForMaskedLM


class Pair(NamedTuple):
    """A distillation of the recipe: names of configs in pretraining/distill_configs (RoBERTa is RBT6 with twelve layers)."""

    student: str
    teacher: str
    matches: str


PAIRS = {
    "RBT6 -> H256": Pair("MiniRBT-h256", "distill_rbt6", "L6h256_rbt6_hidden_mse"),
    "RoBERTa -> RBT6": Pair("distill_rbt6", "RoBERTa", "L6_hidden_mse"),
}
TINY_PAIRS = {name: pair._replace(matches=pair.matches.replace("h256_rbt6", "h32_L6h96")) for name, pair in PAIRS.items()}


class Models(NamedTuple):
    student: BertForMaskedLM
    teacher: BertForMaskedLM
    matches: list[dict]

    def copy(self) -> "Models":
        return Models(*copy.deepcopy(tuple(self)))


def shape(name: str, vocabulary: int, tiny: bool = False) -> BertConfig:
    """One of the recipe's configs; a tiny one is an eighth as wide."""
    config = read_config(rows.PRETRAINING / f"distill_configs/{name.replace('RoBERTa', 'distill_rbt6')}.json", "a student's config")
    config.vocab_size = vocabulary
    if name == "RoBERTa":
        config.num_hidden_layers = 12
    if tiny:
        config.hidden_size, config.intermediate_size = config.hidden_size // 8, config.intermediate_size // 8
        config.num_attention_heads //= 4
    return config


def build_models(name: str, vocabulary: int, device: torch.device, tiny: bool = False) -> Models:
    """A pair of models with random weights, the student in training mode."""
    torch.manual_seed(0)
    pair = (TINY_PAIRS if tiny else PAIRS)[name]
    configs = [shape(model, vocabulary, tiny) for model in pair[:2]]
    student, teacher = (BertForMaskedLM(config).to(device) for config in configs)
    return Models(student.train(), teacher, get_matches([pair.matches], *configs))


class OurSide:
    """The Distiller as train.py sets it up; the arguments are train.py's."""

    def __init__(self, models: Models, device: torch.device, output_dir: str, **arguments):
        arguments = {"student_config": "", "teacher_name_or_path": "", "num_train_steps": 10_000, **arguments}
        self.args = TrainingArguments(output_dir=output_dir, do_train=True, **arguments)
        self.distiller = Distiller(self.args, models.student, models.teacher, models.matches, device)
        self.optimizer = self.new_optimizer()
        self.optimizer.add_param_group({"params": list(self.distiller.core.projections.parameters()), "weight_decay": 0.0})

    def new_optimizer(self) -> torch.optim.Optimizer:
        groups = parameter_groups(self.distiller.model_S, self.args.weight_decay_rate)
        return torch.optim.AdamW(groups, lr=self.args.learning_rate, eps=1e-6, fused=True)

    def loss(self, batch: dict) -> torch.Tensor:
        self.distiller.agree([batch])
        return self.distiller.train_on_batch(batch, {})[0]

    def step(self, batch: dict) -> None:
        """What the training loop does with one micro-batch a step."""
        with self.distiller.float32_products():
            _update(self.loss(batch), self.optimizer)


class StockSide:
    """TextBrewer's step: full logits and all hidden states of both models, selected and compared afterwards.

    Args:
        half: the type of the autocast around the forward, or None for float32.
    """

    def __init__(self, models: Models, device: torch.device, output_dir: str, half: torch.dtype | None = None):
        self.distiller = GeneralDistiller(
            TrainingConfig(output_dir=output_dir, device=device),
            DistillationConfig(temperature=TrainingArguments("", "").temperature, intermediate_matches=models.matches),
            models.teacher.eval().requires_grad_(False),
            models.student,
            _stock_adaptor,
            _stock_adaptor,
        )
        self.autocast = torch.autocast(device.type, half) if half else nullcontext()
        groups = parameter_groups(models.student, TrainingArguments("", "").weight_decay_rate)
        projections = [weight for projection in self.distiller.projs if projection is not None for weight in projection.parameters()]
        self.optimizer = torch.optim.AdamW([*groups, {"params": projections, "weight_decay": 0.0}], lr=4e-4, eps=1e-6)

    def loss(self, batch: dict) -> torch.Tensor:
        with self.autocast:
            return self.distiller.train_on_batch(batch, {"output_hidden_states": True})[0]

    def step(self, batch: dict) -> None:
        _update(self.loss(batch), self.optimizer)


def _stock_adaptor(batch: dict, outputs) -> dict:
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "logits_mask": batch["labels"] >= 0}


def stock_batch(batch: dict) -> dict:
    """This project's batch as a stock collator gives it: a label, or -100, at every position."""
    labels = torch.full_like(batch["input_ids"], -100)
    row, place = torch.nonzero(batch["labels"] >= 0, as_tuple=True)
    labels[row, batch["masked_positions"][row, place]] = batch["labels"][row, place]
    return {**{name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}, "labels": labels}


def losses_without_dropout(ours: OurSide, stock: StockSide, batch: dict) -> tuple[float, float]:
    """Both sides' losses for one batch; the projections become the same, the students must be the same before."""
    for projection, other in zip(ours.distiller.projs, stock.distiller.projs):
        if projection is not None:
            other.load_state_dict(projection.state_dict())
    students = (ours.distiller.model_S.eval(), stock.distiller.model_S.eval())
    with torch.no_grad():
        found = float(ours.loss(dict(batch))), float(stock.loss(stock_batch(batch)))
    for student in students:
        student.train()
    return found


def _update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    loss.backward()
    torch.nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
