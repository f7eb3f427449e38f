"""The processes of a run: their numbers, their process group, and what all of them share."""

import gc
import json
import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pretraining.config import TrainingArguments
from pretraining.utils import UserError


class Process(NamedTuple):
    """This process among all of a run, as torchrun numbers them."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> "Process":
        names = {"rank": "RANK", "local_rank": "LOCAL_RANK", "world_size": "WORLD_SIZE"}
        defaults = {"rank": 0, "local_rank": 0, "world_size": 1}
        return cls(**{field: int(os.environ.get(name, defaults[field])) for field, name in names.items()})


class Run(NamedTuple):
    """What training and evaluation of a run share.

    Attributes:
        tokenizer: transformers.BertTokenizer.
        device: of this process.
        compiled: torch.compile runs over student, teacher and loss.
        forward_passes: micro-batches of an optimizer step and process.
    """

    args: TrainingArguments
    tokenizer: Any
    device: torch.device
    process: Process
    compiled: bool
    forward_passes: int


@contextmanager
def process_group(run: Run) -> Iterator[None]:
    """The process group while the block runs. When it ends, by an error too, no thread of the group is left.

    A gloo thread that outlives ``main`` can abort a process that has done all its work ("terminate called without an active exception").
    """
    if run.device.type == "cuda":
        torch.cuda.set_device(run.device)
    if run.process.world_size == 1:
        yield
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if run.device.type == "cuda" else "gloo")
    try:
        yield
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # their variables refer to the group, too
        raise
    finally:
        gc.collect()  # the distiller and DDP refer to each other, and DDP to the group
        dist.destroy_process_group()


def require_same_inputs(run: Run, checkpoint: Path | None, identity: dict[str, Any]) -> None:
    """Refuses processes that see other checkpoints, data or models, or split their batch differently."""
    if run.process.world_size == 1:
        return
    inputs = json.dumps([checkpoint.name if checkpoint else None, identity], sort_keys=True)
    seen: list[tuple[str, int]] = [("", 0)] * run.process.world_size
    dist.all_gather_object(seen, (inputs, run.forward_passes))
    passes = {passes for _, passes in seen}
    if len(passes) > 1:
        raise UserError(
            f"the GPUs have different memory: give --gradient_accumulation_steps {max(passes)} (distill.sh: forward_batch), which fits the smallest"
        )
    if len({inputs for inputs, _ in seen}) > 1:
        raise UserError(
            "the machines see different checkpoints, data or models; put output_dir and the data on a disk that all of them share"
        )
