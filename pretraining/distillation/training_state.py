"""Restores optimizer, schedule, scaler and projections from a checkpoint's training state; refuses what does not fit the run."""

import math
from typing import Any

import torch
from torch import nn

from pretraining.utils import UserError

NEEDED = {"params", "lr", "last_epoch", "scale"}  # plain values that every release writes; of tensors all are needed


def restore_state(state: dict[str, Any], projections: nn.Module, optimizer: torch.optim.AdamW, scheduler: Any, scaler: Any) -> None:
    """Loads a training state into the parts of a new run; all of it is checked before any of it is loaded.

    Fused AdamW checks no shapes: with a moment that is too small, or that shares one number for all, it writes outside of it.
    Of the optimizer's groups the learning rates are taken. The rest of them comes from the arguments, as it did when they were saved.

    Args:
        state: from ``checkpoint.load_state``.
        optimizer, scheduler: new, from ``optimizer.py``.
        scaler: torch.amp.GradScaler, new.

    Raises:
        UserError: a part is missing or has another type, shape, dtype or number of values than this run's.
    """
    groups = optimizer.state_dict()["param_groups"]
    parameters = dict(enumerate(parameter.detach() for group in optimizer.param_groups for parameter in group["params"]))
    has_moments = state["optimizer"].get("state") if isinstance(state["optimizer"], dict) else None
    numbers = [number for number in parameters if isinstance(has_moments, dict) and number in has_moments]  # none without a gradient
    own = {
        "projections": projections.state_dict(),
        "optimizer": {
            "state": {n: {"step": torch.zeros(()), "exp_avg": parameters[n], "exp_avg_sq": parameters[n]} for n in numbers},
            "param_groups": [{"params": group["params"], "lr": float(group["lr"])} for group in groups],
        },
        "scheduler": scheduler.state_dict(),
        "scaler": scaler.state_dict(),
    }
    fitting = {name: _fitting(state[name], value, state, name) for name, value in own.items()}
    saved_groups = fitting["optimizer"]["param_groups"]
    if [group["params"] for group in saved_groups] != [group["params"] for group in groups]:
        raise _misfit(state, "optimizer param_groups")
    if fitting["scheduler"]["last_epoch"] != state["step"]:
        raise _misfit(state, "scheduler last_epoch")
    projections.load_state_dict(fitting["projections"])
    rates = [{**group, "lr": saved["lr"]} for group, saved in zip(groups, saved_groups)]
    optimizer.load_state_dict({"state": fitting["optimizer"]["state"], "param_groups": rates})
    scheduler.load_state_dict(fitting["scheduler"])
    scaler.load_state_dict(fitting["scaler"])


def _fitting(saved: Any, own: Any, state: dict[str, Any], name: str) -> Any:
    """The saved value, reduced to the keys of the run's own; a key that an older release of torch did not write keeps the own value."""
    if not _fits(saved, own):
        raise _misfit(state, name)
    if isinstance(own, dict):
        return {key: _fitting(saved[key], value, state, f"{name} {key}") if key in saved else value for key, value in own.items()}
    if isinstance(own, list | tuple):
        return type(own)(_fitting(left, right, state, name) for left, right in zip(saved, own))
    return saved


def _fits(saved: Any, own: Any) -> bool:
    """True if a saved value has the type of the run's own; a tensor also its shape and dtype, a list its length, a number a finite value."""
    if isinstance(own, torch.Tensor):
        return (
            isinstance(saved, torch.Tensor)
            and (saved.shape, saved.dtype, saved.layout, saved.device.type) == (own.shape, own.dtype, torch.strided, "cpu")
            and saved.is_contiguous()
        )
    if isinstance(own, dict):
        needed = {key for key, value in own.items() if isinstance(value, torch.Tensor | dict | list) or key in NEEDED}
        return isinstance(saved, dict) and needed <= saved.keys()
    if isinstance(own, list | tuple):
        return isinstance(saved, list | tuple) and len(saved) == len(own)
    if isinstance(own, float):
        return type(saved) is float and math.isfinite(saved)
    if type(own) is int:
        return type(saved) is int and abs(saved) < 2**31
    return type(saved) is type(own)


def _misfit(state: dict[str, Any], name: str) -> UserError:
    return UserError(f"{state['path']}: its {name} does not fit this run; choose another checkpoint")
