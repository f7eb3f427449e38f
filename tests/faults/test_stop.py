"""distill.sh with two processes and a stop signal to all of them, as a terminal and Slurm send it: one line, and a checkpoint."""

import os
import signal
import time

import pytest

from tests import workplace
from tests.workplace import free_port

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("number", "times"), [(signal.SIGINT, 1), (signal.SIGINT, 4), (signal.SIGUSR1, 1)])
def test_two_processes_stop_with_one_line(number, times, work):
    one_stage = {name: value for name, value in workplace.RECIPE.items() if not name.startswith("ta_")}
    settings = {**one_stage, "ngpu": "2", "train_steps": "100000", "student_matches": "L2h16_L4h32_hidden_mse"}
    process = workplace.start(["sh", "distill.sh", "one-stage"], work, **settings, master_port=str(free_port()))
    end = time.monotonic() + 120
    while not (work / "saves" / "minirbt_h256_one_stage" / "gs2").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    for _ in range(times):
        os.killpg(process.pid, number)
        time.sleep(0.2)
    out, err = (output.decode() for output in process.communicate(timeout=120))
    assert process.returncode == 128 + number
    step = out.rstrip().rsplit("gs", 1)[1]
    assert workplace.on_a_terminal(err).split("\n")[-2:] == [
        f"stopped by {number.name} after step {step}; the checkpoint is written",
        "",
    ]
    assert "Traceback" not in err and "torch" not in err and "terminate" not in err
