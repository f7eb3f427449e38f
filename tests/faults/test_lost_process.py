"""One of two processes is killed: the other ends with an error instead of waiting, and the rerun goes on."""

import shutil
import socket
import time
from pathlib import Path

import pytest

from tests import tiny
from tests.faults.forking import Run
from tests.workplace import command_line

pytestmark = pytest.mark.slow

TRAIN = "train.py"
CHANGES = {"num_train_steps": 40, "ckpt_steps": 4, "keep_checkpoints": 0, "resume_from_checkpoint": "latest", "train_batch_size": 2}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_two(work: Path, **changes) -> list[Run]:
    """Two processes as torchrun starts them, on one machine."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **common} for rank in "01"]
    return [Run(TRAIN, command_line(TRAIN, **{**CHANGES, **changes}), work, work / f"log{rank['RANK']}", **rank) for rank in ranks]


def wait_for(path: Path, runs: list[Run]) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end and all(run.process.exitcode is None for run in runs), [run.log.read_text() for run in runs]
        time.sleep(0.01)


@pytest.mark.parametrize("lost", [0, 1])
def test_the_other_ends_with_an_error_and_the_rerun_goes_on(lost, work):
    runs = start_two(work)
    wait_for(work / "run" / "gs8", runs)
    assert runs[lost].kill()
    begin = time.monotonic()
    status = runs[1 - lost].status(timeout=60)
    print(f"the other ended after {time.monotonic() - begin:.1f} s")
    assert status not in (0, None) and runs[1 - lost].log.read_text().strip()
    assert not (work / "run" / "gs40").exists()

    for run in start_two(work):
        assert run.status() == 0, run.log.read_text()
    shutil.move(work / "run", work / "killed")
    for run in start_two(work):
        assert run.status() == 0, run.log.read_text()
    weights = "gs40/model.safetensors"
    assert (work / "killed" / weights).read_bytes() == (work / "run" / weights).read_bytes()
    assert tiny.scalars(work / "killed") == tiny.scalars(work / "run")
