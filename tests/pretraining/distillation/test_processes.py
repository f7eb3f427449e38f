"""Which of the processes of a run this is, where all meet, and which GPU it takes: from torchrun's variables, from Slurm's, or the only one."""

import os

import pytest
import torch

from pretraining.config import TrainingArguments
from pretraining.distillation import checks, processes
from pretraining.distillation.processes import Process
from pretraining.utils import UserError

OF_SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
    "SLURM_JOB_ID": "1234567",
}
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_GPUS_ON_NODE", *OF_SRUN)


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Sets the variables given and no other; ``scontrol`` is a stub."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)
    scontrol = tmp_path / "scontrol"
    scontrol.write_text("#!/bin/sh\n[ \"$*\" = 'show hostnames gpu[3-4]' ] && printf 'gpu3\\ngpu4\\n'\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return lambda variables: [monkeypatch.setenv(name, value) for name, value in variables.items()]


def test_the_only_process(environment):
    assert Process.from_environment() == (0, 0, 1)
    environment({**OF_SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"})
    assert Process.from_environment() == (0, 0, 1)
    assert "MASTER_ADDR" not in os.environ


def test_torchrun_comes_before_srun(environment):
    environment({**OF_SRUN, "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"})
    assert Process.from_environment() == (3, 1, 4)


class Watched(Exception):
    """Stands for all that follows when the processes know where they meet."""


@pytest.fixture
def meet(monkeypatch):
    """Starts to watch a run of this process, which begins with the meeting place."""

    def begin(*_):
        raise Watched

    def start() -> tuple[str, str]:
        with pytest.raises(Watched), processes.watched(run):
            pass
        return os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]

    monkeypatch.setattr(processes, "Watch", begin)
    run = processes.Run(None, None, torch.device("cpu"), Process(9, 1, 16), False, 1)
    return start


def test_srun_without_torchrun(environment, meet):
    environment(OF_SRUN)
    assert Process.from_environment() == (9, 1, 16)
    assert "MASTER_ADDR" not in os.environ and "MASTER_PORT" not in os.environ  # a check alone needs no scontrol
    assert meet() == ("gpu3", "24567")


def test_a_meeting_place_that_is_set_stays(environment, meet):
    environment({**OF_SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert Process.from_environment() == (9, 1, 16)
    assert meet() == ("10.0.0.1", "29500")


def test_srun_whose_machines_have_no_names_is_refused(environment, meet):
    environment({**OF_SRUN, "SLURM_STEP_NODELIST": "other"})
    assert Process.from_environment() == (9, 1, 16)
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        meet()


@pytest.fixture
def device(environment, monkeypatch):
    """``device(visible, ...)``: the device of a process that sees so many GPUs, with these variables of Slurm or torchrun."""

    def choose(visible: int, **variables: str) -> str:
        environment(variables)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
        return str(checks.check_device(TrainingArguments(student_config="", output_dir=""), Process.from_environment()))

    return choose


def test_each_process_of_a_machine_has_the_gpu_of_its_number(device):
    assert device(4, RANK="7", LOCAL_RANK="3", WORLD_SIZE="8") == "cuda:3"


def test_a_process_of_srun_that_sees_all_gpus_takes_that_of_its_number(device):
    assert device(2, **OF_SRUN, SLURM_GPUS_ON_NODE="2") == "cuda:1"


def test_a_process_of_srun_that_sees_its_own_gpu_only_takes_it(device):
    """The variables of ``srun -n2 --gpus-per-task=1`` of Slurm 22.05; ``--gpu-bind=single:1`` sets the same ones."""
    assert device(1, **OF_SRUN, SLURM_GPUS_ON_NODE="2", SLURM_STEP_GPUS="1", CUDA_VISIBLE_DEVICES="1") == "cuda:0"


def test_processes_that_share_a_gpu_are_refused(device):
    refused = "process 1 of this machine has no GPU of its own, it sees 1; start as many processes as GPUs"
    with pytest.raises(UserError, match=f"{refused}, or give srun --gpus-per-task=1$"):
        device(1, **OF_SRUN, SLURM_GPUS_ON_NODE="1")
    with pytest.raises(UserError, match=f"{refused}$"):
        device(1, RANK="1", LOCAL_RANK="1", WORLD_SIZE="2", SLURM_GPUS_ON_NODE="2")
