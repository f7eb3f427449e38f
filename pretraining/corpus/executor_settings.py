"""The arguments that say who makes the parts of a corpus: this process, processes of this machine, Slurm jobs or Ray workers."""

import argparse
import shutil
from dataclasses import dataclass
from importlib.util import find_spec

from pretraining.utils import UserError, cores_per_process, non_negative_int, positive_float, positive_int

PART_BYTES = 64_000_000


@dataclass
class Executor:
    """Who works.

    Attributes:
        kind: "local", "slurm" or "ray".
        workers: tasks at the same time; -1: as many as Slurm or Ray allow.
        gpus_per_worker: on one machine each worker sees only its own.
        wait: for the end of a Slurm job.
    """

    kind: str = "local"
    workers: int = 1
    gpus_per_worker: int = 0
    cpus_per_task: int = 1
    mem_per_cpu_gb: int = 2
    partition: str = ""
    time: str = ""
    qos: str | None = None
    wait: bool = True

    @property
    def is_this_process(self) -> bool:
        return self.kind == "local" and self.workers == 1

    @property
    def threads(self) -> int:
        """Threads of a worker."""
        return max(1, cores_per_process() // self.workers) if self.kind == "local" else self.cpus_per_task


def add_executor_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of :func:`executor_of`."""
    group = parser.add_argument_group("who works; names as in datatrove's executors")
    group.add_argument("--executor", default="local", choices=("local", "slurm", "ray"), help="this machine, Slurm jobs or Ray workers")
    group.add_argument("--workers", type=positive_int, help="tasks at the same time (default: as many as the GPUs of neural LTP, else 1)")
    group.add_argument("--gpus_per_worker", type=non_negative_int, help="GPUs of a worker (default: 1 where neural LTP finds GPUs)")
    group.add_argument("--cpus_per_task", default=1, type=positive_int, help="cores and threads of a worker, Slurm and Ray")
    group.add_argument("--mem_per_cpu_gb", default=2, type=positive_int, help="memory per core in GB, Slurm and Ray")
    group.add_argument("--partition", help="of Slurm")
    group.add_argument("--time", default="24:00:00", help="limit of a Slurm job, as in sbatch --time")
    group.add_argument("--qos", help="of Slurm")
    group.add_argument("--no_wait", action="store_true", help="submit the Slurm job and return; the same command later joins the result")
    group.add_argument(
        "--part_megabytes", default=PART_BYTES / 1e6, type=positive_float, help="size of the parts that a text is divided into"
    )


def executor_of(args: argparse.Namespace, gpus: int = 0) -> Executor:
    """Checks the arguments of :func:`add_executor_arguments`.

    Args:
        gpus: GPUs of this machine that the work can use.

    Raises:
        UserError: what the executor needs is not there.
    """
    is_local = args.executor == "local"
    if args.no_wait and args.executor != "slurm":
        raise UserError(f"--no_wait: a Slurm job works on after the command has ended, --executor {args.executor} does not; leave it out")
    if args.executor == "slurm":
        if missing := [name for name in ("sbatch", "squeue", "scancel") if not shutil.which(name)]:
            raise UserError(f"--executor slurm: {missing[0]} is not on this machine; run the command where Slurm jobs are submitted")
        if not args.partition:
            raise UserError("--executor slurm: name the --partition of the jobs; sinfo lists them")
    if args.executor == "ray" and not find_spec("ray"):
        raise UserError("--executor ray: Ray is not installed; pip install -r pretraining/requirements-cluster.txt")
    workers = args.workers or ((gpus or 1) if is_local else -1)
    gpus_per_worker = args.gpus_per_worker if args.gpus_per_worker is not None else int(is_local and gpus > 0)
    if is_local and workers > 1 and workers * gpus_per_worker > gpus:
        raise UserError(f"--workers {workers}: with {gpus_per_worker} GPUs each they need more than the {gpus} of this machine")
    names = ("cpus_per_task", "mem_per_cpu_gb", "time", "qos")
    settings = {name: getattr(args, name) for name in names}
    return Executor(args.executor, workers, gpus_per_worker, partition=args.partition or "", wait=not args.no_wait, **settings)


def part_bytes_of(args: argparse.Namespace) -> int:
    """Bytes of a part, at least 1."""
    return max(1, int(args.part_megabytes * 1e6))
