"""Measures the training loop of several processes with one asynchronous reduction a step, and with two that the step waits for.

    python benchmarks/reduction.py --processes 2 4

The processes run on this machine's CPU, over gloo, on models an eighth as wide as those of RBT6 -> H256: the smaller the step, the
more of it is waiting. Each round measures both sides in turn. More processes than cores make every figure longer.
"""

import json
import os
import socket
import tempfile
import time
from multiprocessing import get_context
from pathlib import Path

import torch.distributed as dist

from benchmarks.rows import Row, faster, print_table
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script

SIDES = ("asynchronous", "blocking")


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--processes", nargs="+", type=positive_int, default=[2, 4])
    parser.add_argument("--steps", type=positive_int, default=100, help="of a round, behind a first one that does not count")
    parser.add_argument("--rounds", type=positive_int, default=5)
    args = parser.parse_args(argv)
    rows = [row_of(world_size, args.steps, args.rounds) for world_size in args.processes]
    print_table(rows)


def row_of(world_size: int, steps: int, rounds: int) -> Row:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="minirbt_reduction_") as work:
        spawn = get_context("spawn")
        arguments = [(rank, world_size, port, Path(work), steps, rounds) for rank in range(world_size)]
        processes = [spawn.Process(target=train_in_turn, args=values) for values in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise UserError("a process of the benchmark failed; its error is above")
        seconds = json.loads((Path(work) / "seconds.json").read_text())
    return faster(
        f"a step of {world_size} processes: one asynchronous reduction / two blocking ones", *(seconds[side] for side in SIDES), 1
    )


def train_in_turn(rank: int, world_size: int, port: int, work: Path, steps: int, rounds: int) -> None:
    """One process. Rank 0 writes the seconds per step of every round and side to ``seconds.json``."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}

    # torch reads OMP_NUM_THREADS when it is imported
    import torch

    from benchmarks.models import build_models
    from pretraining.config import TrainingArguments
    from pretraining.distillation import distiller as distiller_module
    from pretraining.distillation.distiller import Distiller
    from pretraining.distillation.modeling import prepare_models
    from pretraining.distillation.optimizer import make_optimizer, make_scheduler
    from pretraining.distillation.upcoming import UpcomingStep

    class BlockingStep(UpcomingStep):
        """As this loop had it: two reductions, one after the other, before the step."""

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.reduction.wait()
            dist.all_reduce(torch.zeros(1), op=dist.ReduceOp.MAX)

    torch.set_num_threads(1)
    device = torch.device("cpu")
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    models = build_models("RBT6 -> H256", 1000, device, tiny=True)
    args = TrainingArguments(student_config="", output_dir=str(work / str(rank)), num_train_steps=steps + 1, ckpt_steps=steps + 1)
    prepare_models(models.student, models.teacher, device=device, half=None, compiled=False)
    distiller = Distiller(args, models.student, models.teacher, models.matches, device, rank=rank, world_size=world_size)
    batch = {
        "input_ids": torch.randint(5, 1000, (2, 64)),
        "masked_positions": torch.arange(1, 10).repeat(2, 1),
        "labels": torch.randint(5, 1000, (2, 9)),
    }
    starts: list[float] = []

    def note_start(step: int, distiller: Distiller) -> None:
        if step == 2:
            starts.append(time.perf_counter())

    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(rounds + 1):
        for side, kind in zip(SIDES, (UpcomingStep, BlockingStep)):
            distiller_module.UpcomingStep = kind  # type: ignore[misc]
            optimizer = make_optimizer(models.student, distiller.module.projections, args)
            loader = [dict(batch) for _ in range(steps + 1)]
            schedule = {"scheduler": make_scheduler(optimizer, args), "num_steps": steps + 1, "max_grad_norm": 1.0}
            distiller.train(optimizer, loader, **schedule, callback=lambda *state: None, step_callback=note_start)
            seconds[side].append((time.perf_counter() - starts[-1]) / steps)
    dist.destroy_process_group()
    if rank == 0:
        (work / "seconds.json").write_text(json.dumps({side: values[1:] for side, values in seconds.items()}))


if __name__ == "__main__":
    run_script(main)
