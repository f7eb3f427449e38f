"""Training under srun on two nodes: the weights of two local processes, also after what stops a job on a cluster."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretraining import recipes
from tests import tiny, workplace
from tests.cluster.keeper import HOST, NODES
from tests.faults.forking import Run

pytestmark = pytest.mark.slow

full = pytest.mark.skipif(os.environ.get("CLUSTER") != "full", reason="make cluster runs it")
TRAIN = "train.py"
STEPS = 100
ONE_STAGE = {name: value for name, value in workplace.RECIPE.items() if not name.startswith("ta_")}
SETTINGS = {**ONE_STAGE, "nnodes": "2", "student_matches": "L2h16_L4h32_hidden_mse"}
ARGUMENTS = workplace.command_line(TRAIN, num_train_steps=STEPS, ckpt_steps=4, train_batch_size=2, resume_from_checkpoint="latest")


def train_in_two_processes(arguments: list[str], work: Path) -> None:
    """As torchrun starts them, on this machine."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(workplace.free_port())}
    runs = [Run(TRAIN, arguments, work, work / f"log{rank}", RANK=rank, LOCAL_RANK=rank, **common) for rank in "01"]
    assert [run.status() for run in runs] == [0, 0], [run.log.read_text() for run in runs]


def assert_same_run(left: Path, right: Path, step: int) -> None:
    weights = f"gs{step}/model.safetensors"
    assert (left / weights).read_bytes() == (right / weights).read_bytes()
    assert tiny.scalars(left) == tiny.scalars(right)


# ---------------------------------------------------------------- distill.sh, one task per machine


def test_distill_sh_with_one_task_per_machine(cluster, work):
    """The command of the README."""
    task = f"sh distill.sh one-stage nnodes=$SLURM_NNODES node_rank=$SLURM_NODEID master_addr={HOST}"
    environment = {
        **cluster.environment,
        **ONE_STAGE,
        "student_matches": SETTINGS["student_matches"],
        "master_port": str(workplace.free_port()),
    }
    ended = workplace.run_there(["srun", "-N2", "-n2", "sh", "-c", task], work, **environment)
    assert ended.status == 0 and ended.err.count("error") == 0, ended
    run = work / "saves" / "minirbt_h256_one_stage"
    run.rename(work / "of_srun")

    texts = {entry.name: entry.metadata["default"] for entry in recipes.fields(recipes.Settings)}
    (stage,) = recipes.build_stages(recipes.read_settings({**texts, **SETTINGS, "recipe": "one-stage"}))
    train_in_two_processes(stage.train[stage.train.index(TRAIN) + 1 :], work)
    assert_same_run(work / "of_srun", run, step=4)


# ---------------------------------------------------------------- srun train.py, stopped


@pytest.fixture(scope="module")
def undisturbed(template, tmp_path_factory) -> Path:
    """The run of two local processes that nothing stops."""
    work = tmp_path_factory.mktemp("undisturbed") / "work"
    shutil.copytree(template, work)
    train_in_two_processes(ARGUMENTS, work)
    return work / "run"


@pytest.fixture
def train(cluster, work):
    """``train()``: starts or resumes the run, one process per node; its output goes to a file ``out``."""

    @contextmanager
    def start() -> Iterator[subprocess.Popen]:
        with (work / "out").open("wb") as out:
            command = ["srun", "-N2", "-n2", "--job-name=train", sys.executable, TRAIN, *ARGUMENTS]
            environment = {**workplace.ENVIRONMENT, **cluster.environment}
            process = subprocess.Popen(command, cwd=work, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    return start


def wait_for(condition, process: subprocess.Popen, out: Path) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < end, out.read_text()
        time.sleep(0.05)


def finish(work: Path, undisturbed: Path) -> None:
    """Resumes the run without Slurm, and compares it with the undisturbed one."""
    assert not (work / "run" / f"gs{STEPS}").exists()
    train_in_two_processes(ARGUMENTS, work)
    assert_same_run(work / "run", undisturbed, STEPS)


def own_lines(out: Path) -> list[str]:
    """What train.py wrote last, without the lines of Slurm and of checkpoints."""
    lines = workplace.on_a_terminal(out.read_text()).split("\n")
    return [line for line in lines if line.startswith(("stopped", "error: ", "Traceback"))]


@full
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_of_slurm_leaves_a_checkpoint(number, train, cluster, work, undisturbed):
    """SIGUSR1: as ``sbatch --signal=USR1@600`` sends it before the time is over. SIGTERM: scancel."""
    with train() as process:
        wait_for(lambda: (work / "run" / "gs4").exists(), process, work / "out")
        cluster.run("scancel", "--name=train", *(["--signal=USR1"] if number == signal.SIGUSR1 else []))
        assert process.wait(timeout=120) == 128 + number, (work / "out").read_text()
    (line,) = own_lines(work / "out")
    step = max(int(checkpoint.name[2:]) for checkpoint in (work / "run").glob("gs*"))
    assert line == f"stopped by {number.name} after step {step}; the checkpoint is written"
    finish(work, undisturbed)


@full
def test_a_lost_node_ends_the_run_with_one_line(train, cluster, work, undisturbed):
    with train() as process:
        wait_for(lambda: (work / "run" / "gs4").exists(), process, work / "out")
        cluster.kill_node(NODES[1])
        wait_for(lambda: own_lines(work / "out"), process, work / "out")
    lost = f"error: process 1 on {HOST} was lost: its connections broke; run the same command again to resume"
    assert own_lines(work / "out") == [lost]
    cluster.start_node(NODES[1])
    cluster.end_jobs()
    finish(work, undisturbed)


@full
def test_a_node_whose_slurmd_is_killed_leaves_a_checkpoint(train, cluster, work, undisturbed):
    """The run goes on until Slurm takes the node for lost. Slurm then sends SIGTERM to the other node; the two processes agree on a step."""
    with train() as process:
        wait_for(lambda: (work / "run" / "gs4").exists(), process, work / "out")
        cluster.kill_slurmd(NODES[1])
        cluster.run("scontrol", "update", f"nodename={NODES[1]}", "state=down", "reason=killed")  # what Slurm does after SlurmdTimeout
        process.wait(timeout=300)
    (line,) = own_lines(work / "out")
    assert line.startswith("stopped by SIGTERM after step ") and line.endswith("; the checkpoint is written")
    cluster.start_node(NODES[1])
    cluster.end_jobs()
    finish(work, undisturbed)
