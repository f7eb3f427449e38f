"""The optimizer and the learning rate schedule of a run."""

from typing import Any

import torch
from torch import nn
from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

from pretraining.config import TrainingArguments


def make_optimizer(student: nn.Module, projections: nn.Module, args: TrainingArguments) -> torch.optim.AdamW:
    """AdamW with three groups: weights, which decay; biases and LayerNorm; projections (as published, without decay)."""
    groups = [*parameter_groups(student, args.weight_decay_rate), {"params": list(projections.parameters()), "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=args.learning_rate, eps=1e-6, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for all but biases and LayerNorm (Devlin et al. 2019)."""
    decayed: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "LayerNorm" in name else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_scheduler(optimizer: torch.optim.Optimizer, args: TrainingArguments) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over ``warmup_proportion`` of the steps, then linear decay to 0 or a constant rate."""
    warmup = int(args.warmup_proportion * args.num_train_steps)
    if args.official_schedule == "linear":
        return get_linear_schedule_with_warmup(optimizer, num_warmup_steps=warmup, num_training_steps=args.num_train_steps)
    return get_constant_schedule_with_warmup(optimizer, num_warmup_steps=warmup)
