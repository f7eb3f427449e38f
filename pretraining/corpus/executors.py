"""Who makes the parts of a corpus: this process, processes of this machine, Slurm jobs or Ray workers; the result is the same.

Processes, queues and retries are datatrove's. Workers note their progress and errors in ``<place>/run-*/`` (workers.py), which the
command reads while it waits.
"""

import ctypes
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from pretraining.corpus.executor_settings import Executor
from pretraining.utils import UserError, progress_bar

POLL_SECONDS = {"local": 0.2, "ray": 0.2, "slurm": 2.0}


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
    start = {"local": _start_local, "slurm": _start_slurm, "ray": _start_ray}[executor.kind]
    run = start(step, executor, bar.total)
    if not executor.wait:
        return False
    _wait(run, bar)
    peak = max(note["peak_kilobytes"] for note in _progress_notes(run))
    tqdm.write(f"{len(tasks):,} tasks are done; the largest worker took {peak / 1024:,.0f} MB")
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
        while run.is_alive() and not _is_complete(run):
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
        if not is_done or run.kind != "slurm":
            run.stop()


def _show_progress(run: Run, bar: tqdm) -> None:
    bar.update(sum(note["lines"] for note in _progress_notes(run)) - bar.n)


def _progress_notes(run: Run) -> list[dict[str, Any]]:
    return [note for note in map(_read_note, sorted((run.folder / "progress").glob("?????"))) if note]


def _raise_first_error(run: Run) -> None:
    for path in sorted((run.folder / "errors").glob("?????")):
        if note := _read_note(path):
            raise UserError(note["line"]) if note["line"] else RuntimeError(f"a worker has failed:\n{note['traceback']}")
    if run.kind == "slurm":
        return
    notes = {path.name: _read_note(path) for path in (run.folder / "progress").glob("?????")}
    gone = {name: note["pid"] for name, note in notes.items() if note and _is_gone(note)}
    if run.kind == "ray":  # there each task has a process of its own; here a worker lives until all tasks are done
        gone = {name: pid for name, pid in gone.items() if not (run.folder / "completions" / name).exists()}
    if gone and not _is_complete(run):
        pid = next(iter(gone.values()))
        raise UserError(f"worker process {pid} was killed; out of memory? Run again, perhaps with fewer --workers")


def _is_complete(run: Run) -> bool:
    """Whether the tasks are done. datatrove may wait for ever for a process that was killed after its last task."""
    return run.kind != "slurm" and _count(run.folder / "completions") == run.tasks


def _is_gone(note: dict[str, Any]) -> bool:
    """Whether a worker of this machine has ended. datatrove waits for ever for one that was killed."""
    return note["host"] == socket.gethostname() and not _is_process(note["pid"])


def _is_process(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


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


def _start_slurm(step: Any, executor: Executor, lines: int) -> Run:
    from pretraining.corpus import slurm

    name = f"minirbt-{step.folder.name.removeprefix('run-')}"
    (step.folder / "job.json").write_text(json.dumps({"name": name, "tasks": len(step.tasks), "lines": lines}))
    slurm.submit(step, executor, name)
    return _slurm_run(step.folder, name, len(step.tasks))


def _slurm_run(folder: Path, name: str, tasks: int) -> Run:
    return Run(folder, "slurm", lambda: _is_in_queue(name), lambda: subprocess.run(["scancel", f"--name={name}"]), tasks)


def _is_in_queue(name: str) -> bool:
    answer = subprocess.run(["squeue", "--noheader", f"--name={name}", "--format=%i"], capture_output=True, text=True)
    return answer.returncode != 0 or bool(answer.stdout.strip())  # a controller that does not answer knows nothing of the job's end


def _start_ray(step: Any, executor: Executor, lines: int) -> Run:
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # else datatrove's thread starts another Ray while the command ends after an error
    import ray
    from datatrove.executor import RayPipelineExecutor

    # RAY_ADDRESS names a cluster; without it Ray starts on this machine.
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
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
