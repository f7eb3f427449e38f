"""The processes of a run: their numbers, their process group, and what all of them share."""

import gc
import json
import os
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from pretraining.config import TrainingArguments
from pretraining.distillation.watch import Watch
from pretraining.utils import UserError

# The longest wait of one process for another inside a collective: for a checkpoint on a slow disk, for the compiler of another rank.
# A lost process ends the run much sooner (watch.LOST_AFTER).
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


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
    """

    args: TrainingArguments
    tokenizer: Any
    device: torch.device
    process: Process


@contextmanager
def watched(run: Run) -> Iterator[dist.Store | None]:
    """Yields the store that the processes of a run share; None for a single process. One that fails ends the others: see ``Watch``.

    When the block ends, by an error too, no thread of the process group is left. A gloo thread that outlives ``main`` can abort a process
    that has done all its work ("terminate called without an active exception").
    """
    if run.device.type == "cuda":
        torch.cuda.set_device(run.device)
    if run.process.world_size == 1:
        yield None
        return
    watch = Watch(run.process.rank, run.process.world_size)
    try:
        yield watch.shared_store
        end_together(watch)
    except SystemExit as agreed:
        end_together(watch)
        traceback.clear_frames(agreed.__traceback__)  # their variables refer to the process group, too
        raise
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        watch.fail(error)
        raise
    finally:
        watch.stop()
        gc.collect()  # the distiller and DDP refer to each other, and DDP to the process group
        if dist.is_initialized():
            dist.destroy_process_group()


def start_process_group(run: Run, store: dist.Store | None) -> None:
    """Waits until all processes have loaded their data and models, however long one of them takes; then initialises the process group."""
    if store is None:
        return
    rank, world_size = run.process.rank, run.process.world_size
    store.set(f"ready {rank}", "")
    next_notice = time.monotonic() + 30
    while missing := [other for other in range(world_size) if not store.check([f"ready {other}"])]:
        if rank == 0 and time.monotonic() > next_notice:
            print(f"waiting for process {missing[0]}, which loads its data and models", flush=True)
            next_notice += 600
        time.sleep(0.1)
    backend = "cpu:gloo,cuda:nccl" if run.device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=COLLECTIVE_TIMEOUT)


def end_together(watch: Watch) -> None:
    """Ends the watch when all processes have come here, and returns when all have ended it."""
    dist.all_reduce(torch.zeros(1))
    watch.stop()
    dist.all_reduce(torch.zeros(1))


def require_same_inputs(run: Run, checkpoint: Path | None, identity: dict[str, Any]) -> None:
    """Refuses processes that see other checkpoints, data or models."""
    if run.process.world_size == 1:
        return
    seen: list[str | None] = [None] * run.process.world_size
    dist.all_gather_object(seen, json.dumps([checkpoint.name if checkpoint else None, identity], sort_keys=True))
    if len(set(seen)) > 1:
        raise UserError(
            "the machines see different checkpoints, data or models; put output_dir and the data on a disk that all of them share"
        )
