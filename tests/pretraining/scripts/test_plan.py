"""scripts/plan.py: what it prints and what it refuses."""

import re
import subprocess
import sys

import pytest

from pretraining.scripts import plan
from pretraining.utils import UserError
from tests import workplace

# Recipes on the work directory's models, which are traced in no time.
SHORT = {"teacher": "./teacher", "student_config": "./student.json", "global_batch": "256", "length": "64", "train_steps": "1000"}
TWO_STAGES = {**SHORT, **{name: workplace.RECIPE[name] for name in ("ta_config", "ta_matches", "student_matches")}}
ONE_STAGE = {**SHORT, "student_matches": "L2h16_L4h32_hidden_mse"}


@pytest.fixture
def printed(work, monkeypatch, capsys):
    """Lines that ``plan.py ARGUMENTS`` prints in the work directory."""

    def run(arguments: str, variables: dict[str, str]) -> list[str]:
        monkeypatch.chdir(work)
        plan.main([*arguments.split(), *(f"{name}={text}" for name, text in variables.items())])
        return capsys.readouterr().out.splitlines()

    return run


def cells(lines: list[str], first: str) -> list[str]:
    """The cells of the table row that begins with this cell."""
    return next(row for row in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines) if row and row[0].startswith(first))


def test_plan_prints_time_memory_and_disk_of_both_stages(printed):
    lines = printed("--recipe h256 --gpu h100 --ngpu 4", TWO_STAGES)
    assert lines[0] == "# h256 on 4 x H100" and len(lines) < 40
    header = cells(lines, "stage")
    assert [cell.rpartition(" ")[2] for cell in header[2:]] == ["(counted)", *["(estimated)"] * 4], "each figure says where it is from"
    assistant, student = cells(lines, "rbt6_kd"), cells(lines, "minirbt_h256")
    assert assistant[1] == student[1] == "64", "the batch of a process; all of it fits"
    assert float(assistant[2]) > float(student[2]) > 1e12
    assert cells(lines, "forward_batch")[1:] == [
        *("rbt6_kd: step (counted)", "card (estimated)", "minirbt_h256: step (counted)", "card (estimated)"),
    ]
    assert [cells(lines, size)[0] for size in ("16", "32", "64")] == ["16", "32", "64"]
    assert cells(lines, "64")[2].endswith("GB, chosen")
    assert sum("checkpoints of" in line for line in lines) == 2 and any("shards of 1 GB of text" in line for line in lines)


def test_plan_with_a_known_mfu(printed):
    lines = printed("--recipe one-stage --gpu A100-40GB --ngpu 2 --mfu 0.5", {**ONE_STAGE, "forward_batch": "16"})
    row = cells(lines, "minirbt_h256_one_stage")
    assert row[1] == "16" and row[3] == "50%" and "MFU (given)" in cells(lines, "stage")
    rate, flops = float(row[4].replace(",", "")), float(row[2])
    assert flops / (1000 * 256) * rate == pytest.approx(2 * 0.5 * 312e12, rel=0.01)
    assert flops / (2 * 0.5 * 312e12) / 3600 == pytest.approx(float(row[5]), abs=0.05)
    assert not any(line.startswith("MFU: the roofline") for line in lines)


def test_gpu_hours_are_hours_times_gpus(printed):
    lines = printed("--recipe one-stage --gpu 4090 --ngpu 2 --mfu 1e-9", ONE_STAGE)
    for row in (cells(lines, "minirbt_h256_one_stage"), cells(lines, "all")):
        hours, gpu_hours = (float(cell.replace(",", "")) for cell in row[-2:])
        assert hours > 100 and gpu_hours == pytest.approx(2 * hours, rel=0.01)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--gpu", "A100"], "--gpu A100: no such GPU here; choose A100-40GB, A100-80GB, H100, H200, L40S or 4090"),
        (["--gpu", "H100", "--recipe", "h300"], "h300: no such recipe; choose h256, h288, one-stage, rbt4, rbt3, h256-relation,"),
        (["--gpu", "H100", "--ngpu", "3"], "global_batch=4096: not divisible by ngpu=3"),
        (["--gpu", "H100", "ngpu=8"], "ngpu=8: give all GPUs of all machines as --ngpu"),
        (["--gpu", "H100", "train_step=8"], "train_step=8: no such variable; did you mean train_steps=…?"),
        (["--gpu", "H100", "length=1024"], "--max_seq_length 1024: ./distill_configs/distill_rbt6.json has only 512 positions"),
        (["--gpu", "H100", "--mfu", "35"], "--mfu 35: must be a number above 0, up to 1"),
        (["--gpu", "H100", "teacher=./absent"], "absent/config.json: no such file"),
        ([], "the following arguments are required: --gpu"),
    ],
)
def test_plan_refuses_in_one_line(arguments: list[str], message: str, work, monkeypatch):
    monkeypatch.chdir(work)
    with pytest.raises(UserError, match=re.escape(message)):
        plan.main(arguments)


def test_help_imports_no_torch():
    code = "import sys; from pretraining.scripts import plan; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=workplace.PRETRAINING.parent).returncode == 0
