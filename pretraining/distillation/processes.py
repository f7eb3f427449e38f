"""The processes of a run: their numbers, their process group, and what all of them share."""

import gc
import json
import os
import subprocess
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
    """This process among all of a run."""

    rank: int
    local_rank: int
    world_size: int

    @classmethod
    def from_environment(cls) -> "Process":
        """The numbers that torchrun gives, or Slurm's ``srun`` where there is no torchrun; else the only process."""
        numbers = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS") if started_by_srun() else ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        rank, local_rank, world_size = (int(os.environ.get(name, default)) for name, default in zip(numbers, "001"))
        return cls(rank, local_rank, world_size)


def started_by_srun() -> bool:
    """Whether Slurm's ``srun``, not torchrun, started this process and others of the run."""
    return "RANK" not in os.environ and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1


def gpus_of_srun() -> int:
    """GPUs of this machine that all processes of srun's step have; 0 without srun. ``--gpus-per-task`` shows each process its own ones only."""
    return int(os.environ.get("SLURM_GPUS_ON_NODE", 0)) if started_by_srun() else 0


def _set_meeting_place_of_srun() -> None:
    """Sets MASTER_ADDR to the first machine of the step and MASTER_PORT to a number that depends on the job.

    Raises:
        UserError: nobody says which machine that is.
    """
    if "MASTER_ADDR" not in os.environ:
        try:
            command = ["scontrol", "show", "hostnames", os.environ["SLURM_STEP_NODELIST"]]
            os.environ["MASTER_ADDR"] = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, KeyError, IndexError, subprocess.CalledProcessError):
            raise UserError(
                "srun started several processes, but scontrol does not name their machines; set MASTER_ADDR to the first one"
            ) from None
    job_id = int(os.environ.get("SLURM_JOB_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(20_000 + job_id % 10_000))


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
    if started_by_srun():
        _set_meeting_place_of_srun()
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
        watch.fail(error, at_once=run.device.type == "cuda")  # to destroy NCCL's group is collective, and the others do not come
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
