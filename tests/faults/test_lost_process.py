"""One of two processes is killed, frozen or fails: the other ends with one line instead of waiting, and the rerun goes on."""

import functools
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from pretraining.distillation import checkpoint, evaluation, training, watch
from tests import tiny
from tests.faults.forking import Run
from tests.workplace import command_line, free_port, on_a_terminal

pytestmark = pytest.mark.slow

TRAIN = "train.py"
CHANGES = {"num_train_steps": 40, "ckpt_steps": 4, "keep_checkpoints": 0, "resume_from_checkpoint": "latest", "train_batch_size": 2}
LAST = 12
LOST_AFTER = 6  # seconds


def start_two(work: Path, ranks: str = "01", prepare: dict | None = None, **changes) -> dict[int, Run]:
    """Two processes as torchrun starts them, on one machine; ``prepare``: by rank, what a process does before it begins."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "MINIRBT_LOST_AFTER": str(LOST_AFTER)}
    arguments = command_line(TRAIN, **{**CHANGES, **changes})
    return {
        int(rank): Run(TRAIN, arguments, work, work / f"log{rank}", (prepare or {}).get(int(rank)), RANK=rank, LOCAL_RANK=rank, **common)
        for rank in ranks
    }


# ---------------------------------------------------------------- what happens to a process, and where


def out_of_memory() -> None:
    raise torch.OutOfMemoryError


def fault() -> None:
    raise AttributeError("a fault of the program")


HAPPENS = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "frozen": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "out of memory": out_of_memory,
    "fault": fault,
}


def prepare(what: str, where: str) -> None:
    """Has this process be killed, frozen, … at a place of the run."""
    happens = HAPPENS[what]
    if where == "loading":
        training.load_models = lambda *_: happens()
    elif where == "writing a checkpoint":
        checkpoint.write_checksums = lambda _: happens()
    elif where == "waiting for a checkpoint":
        torch.distributed.broadcast_object_list = lambda *_, **__: happens()
    elif where == "evaluation":
        evaluation.loss_hits_tokens = lambda *_: happens()
    else:
        step, train = {"a step": 6, "the last step": LAST}[where], training.train

        def train_with_it(*arguments, **settings):
            train(*arguments, **{**settings, "step_callback": lambda number, _: happens() if number == step else None})

        training.train = train_with_it


def prepare_as_on_a_gpu(what: str, where: str) -> None:
    """There a process that fails ends at once: NCCL would wait for the others."""
    fail = watch.Watch.fail
    watch.Watch.fail = lambda self, error, at_once: fail(self, error, at_once=True)
    prepare(what, where)


PLACES = [
    (1, "loading"),  # the other way round, process 1 may still be starting
    *((rank, where) for rank in (0, 1) for where in ("a step", "the last step", "evaluation")),
    (0, "writing a checkpoint"),
    (1, "waiting for a checkpoint"),
]


def assert_one_line(run: Run, *parts: str) -> None:
    assert run.status(timeout=110) == 2, run.log.read_text()
    text = on_a_terminal(run.log.read_text())
    lines = [line for line in text.split("\n") if line]
    assert [line for line in lines if "error" in line.lower()] == [lines[-1]] and lines[-1].startswith("error: process "), text
    assert all(part in lines[-1] for part in parts), text
    assert "Traceback" not in text and "frame #" not in text, text


@pytest.mark.parametrize("what", ["killed", "frozen"])
@pytest.mark.parametrize(("lost", "where"), PLACES)
def test_the_other_ends_with_one_line(lost, where, what, work):
    runs = start_two(work, prepare={lost: functools.partial(prepare, what, where)}, num_train_steps=LAST, do_eval="true")
    try:
        assert_one_line(runs[1 - lost], f"error: process {lost} ", "was lost", "run the same command again to resume")
    finally:
        runs[lost].kill()


@pytest.mark.parametrize("what", ["killed", "frozen"])
def test_the_first_process_is_lost_while_the_other_starts_or_loads(what, work):
    runs = start_two(work, prepare={0: functools.partial(prepare, what, "loading")})
    try:
        assert runs[1].status(timeout=110) == 2
        (line,) = [line for line in on_a_terminal(runs[1].log.read_text()).split("\n") if line]
        assert line.startswith("error: ") and ("process 0 (127.0.0.1) was lost" in line or "did not find each other" in line)
    finally:
        runs[0].kill()


def hang_in_the_rendezvous() -> None:
    """As where the address answers so slowly that torch tries again."""
    torch.distributed.rendezvous = lambda *_, **__: time.sleep(300)


@pytest.mark.parametrize(("missing", "prepare_it"), [(0, None), (1, None), (0, hang_in_the_rendezvous)])
def test_one_that_never_starts_is_not_waited_for(missing, prepare_it, work):
    (run,) = start_two(work, ranks=str(1 - missing), prepare={1 - missing: prepare_it}).values()
    assert run.status(timeout=110) == 2
    text = on_a_terminal(run.log.read_text())
    (line,) = [line for line in text.split("\n") if "error" in line.lower()]
    assert (
        "Traceback" not in text
        and "frame #" not in text
        and line.startswith("error: MASTER_ADDR=127.0.0.1 ")
        and "the 2 processes did not find each other within 6 s" in line
    )


@pytest.mark.parametrize(("failing", "prepare_it"), [(0, prepare), (1, prepare), (0, prepare_as_on_a_gpu)])
def test_one_out_of_memory_ends_both_with_one_line(failing, prepare_it, work):
    runs = start_two(work, prepare={failing: functools.partial(prepare_it, "out of memory", "a step")})
    assert [run.status(timeout=110) for run in runs.values()] == [2, 2]
    lines = [line for run in runs.values() for line in on_a_terminal(run.log.read_text()).split("\n") if line.startswith("error: ")]
    assert len(lines) == 1 and "out of GPU memory with 2 samples per forward pass" in lines[0]


@pytest.mark.parametrize(("failing", "prepare_it"), [(0, prepare), (1, prepare), (1, prepare_as_on_a_gpu)])
def test_a_fault_of_the_program_shows_one_traceback(failing, prepare_it, work):
    runs = start_two(work, prepare={failing: functools.partial(prepare_it, "fault", "a step")})
    assert runs[1 - failing].status(timeout=110) == 2 and runs[failing].status() == 1
    assert runs[failing].log.read_text().count("Traceback") == 1 and "AttributeError: a fault" in runs[failing].log.read_text()
    assert "Traceback" not in runs[1 - failing].log.read_text()


def wait_for(path: Path, runs: list[Run]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end and all(run.process.exitcode is None for run in runs), [run.log.read_text() for run in runs]
        time.sleep(0.01)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_rerun_goes_on(lost, work):
    runs = start_two(work)
    wait_for(work / "run" / "gs8", list(runs.values()))
    assert runs[lost].kill()
    assert_one_line(runs[1 - lost], f"error: process {lost} ")
    assert not (work / "run" / "gs40").exists()

    for run in start_two(work).values():
        assert run.status() == 0, run.log.read_text()
    shutil.move(work / "run", work / "killed")
    for run in start_two(work).values():
        assert run.status() == 0, run.log.read_text()
    weights = "gs40/model.safetensors"
    assert (work / "killed" / weights).read_bytes() == (work / "run" / weights).read_bytes()
    assert tiny.scalars(work / "killed") == tiny.scalars(work / "run")
