"""Two commands that would write to one place: the second is refused at once; after SIGKILL of the first the place is free."""

import sys
import time
from pathlib import Path

import pytest

from tests import tiny, workplace
from tests.faults.forking import Run
from tests.workplace import command_line

pytestmark = pytest.mark.slow

REFS, _, TRAIN, FIRST_WEIGHTS, _ = workplace.ARGUMENTS
LONG = {"num_train_steps": 100000, "ckpt_steps": 2, "resume_from_checkpoint": "latest"}


def wait_for(path: Path, run: Run) -> None:
    end = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < end and run.process.exitcode is None, run.log.read_text()
        time.sleep(0.01)


def assert_refused(message: str, place: str, holder: int) -> None:
    """``message``: one line, which names the place and the process that holds it."""
    assert message.count("\n") == 1 and message.startswith(f"error: {place}: in use by process {holder} on "), message


@pytest.fixture
def at_work(work):
    """``at_work(script, waits_for, **changes)``: a run that has begun to write; it is killed in the end."""
    runs = []

    def begin(script: str, waits_for: str, **changes) -> Run:
        runs.append(Run(script, command_line(script, **changes), work, work / "log"))
        wait_for(work / waits_for, runs[-1])
        return runs[-1]

    yield begin
    for run in runs:
        run.kill()


def test_train(work, at_work):
    first = at_work(TRAIN, "run/gs2", **LONG)
    second = Run(TRAIN, command_line(TRAIN, **LONG), work, work / "log2")
    assert second.status(60) == 2
    assert_refused(second.log.read_text(), "--output_dir run", first.process.pid)
    assert first.process.exitcode is None
    assert first.kill()
    third = Run(TRAIN, command_line(TRAIN, **LONG), work, work / "log3")
    wait_for(work / "run" / "gs8", third)
    assert third.kill()


def test_train_by_two_processes_ends_when_the_first_is_refused(work, at_work):
    first = at_work(TRAIN, "run/gs2", **LONG)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ended = workplace.run_there([*torchrun, TRAIN, *command_line(TRAIN, **LONG)], work)
    assert ended.status == 1 and first.process.exitcode is None
    assert ended.err.count(f"error: --output_dir run: in use by process {first.process.pid} on ") == 1


def test_evaluation_beside_a_training_run_is_allowed(work, at_work):
    first = at_work(TRAIN, "run/gs2", **LONG, keep_checkpoints=0)
    changes = {"do_train": "false", "do_eval": "true", "student_pretrained_weights": "run/gs2"}
    evaluation = Run(TRAIN, command_line(TRAIN, **changes), work, work / "log2")
    assert evaluation.status(60) == 0, evaluation.log.read_text()
    assert (work / "run" / "eval.json").is_file()
    assert first.process.exitcode is None


def test_references(work, at_work):
    tiny.write_text(work / "a.txt", tiny.paragraphs(30000, seed=4), tiny.write_vocabulary(work / "vocabulary"))
    for refs in work.glob("*.refs"):
        refs.unlink()
    first = at_work(REFS, ".a.refs.parts")
    second = Run(REFS, command_line(REFS, overwrite=[]), work, work / "log2")
    assert second.status(60) == 2
    assert_refused(second.log.read_text(), "reference files in .", first.process.pid)
    assert first.kill() and not (work / "a.refs").exists()
    third = Run(REFS, command_line(REFS), work, work / "log3")
    assert third.status(120) == 0, third.log.read_text()
    assert len((work / "a.refs").read_text().splitlines()) == 30000


HOLD = """
import os, signal, sys
from pretraining.scripts import init_checkpoint_TA
def stop(*_):
    print("ready", flush=True)
    signal.alarm(120)
    signal.pause()
init_checkpoint_TA.keep_layers = stop
init_checkpoint_TA.main(sys.argv[1:])
"""


def test_first_weights(work, capfd):
    first = workplace.start([sys.executable, "-c", HOLD, *command_line(FIRST_WEIGHTS)], work)
    try:
        assert first.stdout.readline() == b"ready\n"
        second = workplace.run_here(FIRST_WEIGHTS, command_line(FIRST_WEIGHTS), work, capfd)
        assert second.status == 2
        assert_refused(second.err, "--dump_checkpoint init", first.pid)
    finally:
        first.kill()
        first.communicate()
    assert workplace.run_here(FIRST_WEIGHTS, command_line(FIRST_WEIGHTS), work, capfd).status == 0
    assert sorted(path.name for path in work.glob(".init*")) == [".init.lock"]
