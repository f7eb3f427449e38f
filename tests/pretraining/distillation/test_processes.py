"""Which of the processes of a run this is: from torchrun's variables, from Slurm's, or the only one."""

import os

import pytest

from pretraining.distillation.processes import Process
from pretraining.utils import UserError

OF_SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_NODELIST": "gpu[3-4]",
    "SLURM_JOB_ID": "1234567",
}
NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", *OF_SRUN)


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


def test_srun_without_torchrun(environment):
    environment(OF_SRUN)
    assert Process.from_environment() == (9, 1, 16)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu3", "24567")
    environment({"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert Process.from_environment() == (9, 1, 16)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_srun_whose_machines_have_no_names_is_refused(environment):
    environment({**OF_SRUN, "SLURM_STEP_NODELIST": "other"})
    with pytest.raises(UserError, match="set MASTER_ADDR"):
        Process.from_environment()
