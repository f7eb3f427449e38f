"""Who makes the parts of a corpus: this process, processes of this machine, Slurm jobs or Ray workers; the result is the same.

Processes, queues and retries are datatrove's. Workers note their progress and errors in ``<place>/run-*/`` (workers.py), which the
command reads while it waits.
"""

import argparse
import ctypes
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pretraining.utils import UserError, cores_per_process, non_negative_int, positive_float, positive_int, progress_bar

PART_BYTES = 64_000_000
POLL_SECONDS = {"local": 0.2, "ray": 0.2, "slurm": 2.0}


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


def group_by_size(items: list[Any], size_of: Callable[[Any], int], limit: int) -> list[list[Any]]:
    """Groups items in order into tasks of at most ``limit`` bytes, so that thousands of small files are few tasks."""
    tasks: list[list[Any]] = []
    total = limit
    for item in items:
        total += size_of(item)
        if total > limit:
            tasks.append([])
            total = size_of(item)
        tasks[-1].append(item)
    return tasks


# ---------------------------------------------------------------- runs


class Run(NamedTuple):
    """Workers that are at work.

    Attributes:
        is_alive: False when no worker will begin or end a task any more.
        stop: ends them.
        tasks: how many.
    """

    folder: Path
    kind: str
    is_alive: Callable[[], bool]
    stop: Callable[[], object]
    tasks: int


def run_tasks(make: Callable[..., None], tasks: list[list[Any]], executor: Executor, place: Path, bar: tqdm) -> bool:
    """Makes the items of all tasks.

    Args:
        make: called with an item and a function that takes numbers of finished lines; picklable.
        place: a directory on a disk that all workers share, for what they note.
        bar: counts lines.

    Returns:
        False if a job was submitted and is not waited for.

    Raises:
        UserError: the first error of a worker, or workers that ended without a result.
    """
    if executor.is_this_process:  # needs no queue
        for item in (item for task in tasks for item in task):
            make(item, bar.update)
        return True
    from pretraining.corpus.workers import Worker

    place.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=place)).absolute()
    for name in ("progress", "errors"):
        (folder / name).mkdir()
    gpus = _visible_gpus() if executor.kind == "local" and executor.gpus_per_worker else ()
    step = Worker(make, tasks, folder, os.getcwd(), executor.threads, gpus, executor.gpus_per_worker)
    start = {"local": _start_local, "slurm": _submit_to_slurm, "ray": _start_ray}[executor.kind]
    run = start(step, executor, bar.total)
    if not executor.wait:
        return False
    _wait(run, bar)
    shutil.rmtree(place, ignore_errors=True)
    return True


def join_earlier_job(place: Path, executor: Executor) -> bool:
    """Waits for the Slurm job of an earlier command that was killed or did not wait; removes what earlier commands have left.

    Returns:
        False if the job is still at work and is not waited for.
    """
    for folder in sorted(place.glob("run-*")):
        job = _read_note(folder / "job.json")
        if job and shutil.which("squeue") and _is_in_queue(job["name"]):
            if not executor.wait:
                tqdm.write(f"the Slurm job {job['name']} of an earlier command is still at work (squeue --name {job['name']})")
                return False
            with progress_bar(total=job["lines"], desc=f"Slurm job {job['name']}", unit=" lines", unit_scale=True) as bar:
                _wait(_slurm_run(folder.absolute(), job["name"], job["tasks"]), bar)
    shutil.rmtree(place, ignore_errors=True)
    return True


def _wait(run: Run, bar: tqdm) -> None:
    """Shows the progress until all tasks are done; stops all at the first error."""
    is_done = False
    try:
        while run.is_alive():
            _show_progress(run, bar)
            _raise_first_error(run)
            time.sleep(POLL_SECONDS[run.kind])
        _show_progress(run, bar)
        _raise_first_error(run)
        unfinished = run.tasks - _count(run.folder / "completions")
        if unfinished:
            raise UserError(
                f"{unfinished} of {run.tasks} tasks ended without a result: cancelled, out of time or of memory?; "
                f"see {run.folder}, and run again to make what is missing"
            )
        is_done = True
    finally:
        if not is_done:
            (run.folder / "stop").touch()
            run.stop()


def _show_progress(run: Run, bar: tqdm) -> None:
    bar.update(sum(note["lines"] for note in map(_read_note, (run.folder / "progress").glob("?????")) if note) - bar.n)


def _raise_first_error(run: Run) -> None:
    for path in sorted((run.folder / "errors").glob("?????")):
        if note := _read_note(path):
            raise UserError(note["line"]) if note["line"] else RuntimeError(f"a worker has failed:\n{note['traceback']}")
    if run.kind != "local":
        return
    for path in (run.folder / "progress").glob("?????"):
        note = _read_note(path)
        if note and not Path("/proc", str(note["pid"])).exists() and not (run.folder / "completions" / path.name).exists():
            raise UserError(f"worker process {note['pid']} was killed; out of memory? Run again, perhaps with fewer --workers")


def _read_note(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def _count(folder: Path) -> int:
    return len(list(folder.glob("?????")))


# ---------------------------------------------------------------- this machine


def _start_local(step: Any, executor: Executor, lines: int) -> Run:
    from datatrove.executor import LocalPipelineExecutor
    from multiprocess import forkserver

    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command; workers inherit that they ignore it
    forkserver.ensure_running()
    signal.signal(signal.SIGINT, handler)
    os.register_at_fork(after_in_child=_end_with_parent)  # datatrove's manager process would outlive a killed command
    count = len(step.tasks)
    return _in_thread(LocalPipelineExecutor([step], count, min(executor.workers, count), str(step.folder)), step.folder, "local", count)


def _end_with_parent() -> None:
    with suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _in_thread(pipeline: Any, folder: Path, kind: str, tasks: int) -> Run:
    def run() -> None:
        try:
            pipeline.run()
        except BaseException as error:
            (folder / "errors" / "99999").write_text(json.dumps({"line": None, "traceback": repr(error)}))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return Run(folder, kind, thread.is_alive, lambda: thread.join(timeout=5), tasks)


def _visible_gpus() -> tuple[str, ...]:
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(names.split(",")) if names else tuple(map(str, range(torch.cuda.device_count())))


# ---------------------------------------------------------------- clusters


def _submit_to_slurm(step: Any, executor: Executor, lines: int) -> Run:
    from pretraining.corpus.slurm import SlurmJobs

    name = f"minirbt-{step.folder.name[4:]}"
    (step.folder / "job.json").write_text(json.dumps({"name": name, "tasks": len(step.tasks), "lines": lines}))
    jobs = SlurmJobs(
        [step],
        tasks=len(step.tasks),
        time=executor.time,
        partition=executor.partition,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        gpus_per_task=executor.gpus_per_worker,
        workers=executor.workers,
        job_name=name,
        qos=executor.qos,
        env_command=f"export PATH={shlex.quote(sysconfig.get_path('scripts'))}:$PATH",
        srun_args={"cpus-per-task": executor.cpus_per_task},
        logging_dir=str(step.folder),
    )
    try:
        jobs.run()
    except subprocess.CalledProcessError:
        raise UserError("sbatch refused the job, see its line above; check --partition, --time, --qos and the sizes of a worker") from None
    tqdm.write(f"Slurm job {jobs.job_id} ({name}): {len(step.tasks):,} tasks; its logs: {jobs.slurm_logs_folder}")
    return _slurm_run(step.folder, name, len(step.tasks))


def _slurm_run(folder: Path, name: str, tasks: int) -> Run:
    return Run(folder, "slurm", lambda: _is_in_queue(name), lambda: subprocess.run(["scancel", f"--name={name}"]), tasks)


def _is_in_queue(name: str) -> bool:
    answer = subprocess.run(["squeue", "--noheader", f"--name={name}", "--format=%i"], capture_output=True, text=True)
    return answer.returncode != 0 or bool(answer.stdout.strip())  # a controller that does not answer knows nothing of the job's end


def _start_ray(step: Any, executor: Executor, lines: int) -> Run:
    import ray
    from datatrove.executor import RayPipelineExecutor

    ray.init(
        ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
    )  # RAY_ADDRESS names a cluster
    has, memory = ray.cluster_resources(), executor.mem_per_cpu_gb * executor.cpus_per_task
    for name, wanted, there in (
        ("CPUs", executor.cpus_per_task, has.get("CPU", 0)),
        ("GPUs", executor.gpus_per_worker, has.get("GPU", 0)),
        ("GB of memory", memory, has.get("memory", 0) / (1 << 30)),
    ):
        if wanted > there:
            raise UserError(f"--executor ray: a worker wants {wanted:g} {name}, the whole Ray cluster has {there:.3g}")
    pipeline = RayPipelineExecutor(
        [step],
        tasks=len(step.tasks),
        workers=executor.workers,
        cpus_per_task=executor.cpus_per_task,
        mem_per_cpu_gb=executor.mem_per_cpu_gb,
        gpus_per_task=executor.gpus_per_worker,
        logging_dir=str(step.folder),
    )
    return _in_thread(pipeline, step.folder, "ray", len(step.tasks))
