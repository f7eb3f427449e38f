"""The two nodes of the tests: nothing of them stays, however their user ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import workplace
from tests.cluster import two_nodes
from tests.cluster.keeper import NODES, processes_with
from tests.cluster.two_nodes import ROOT, end_leftovers, missing

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=str(missing()))]

USE = "srun -N2 -n2 sh -c 'trap \"\" TERM INT; setsid sleep 1234 & echo $SLURM_CONF; wait' & wait"


@pytest.fixture
def user():
    """A process that uses two nodes of its own: both have a job that ignores signals and leaves its parent; and their configuration."""
    command = [sys.executable, "-m", "tests.cluster.two_nodes", "sh", "-c", USE]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    lines = [process.stdout.readline().strip() for _ in NODES]
    assert lines[0] == lines[1] and lines[0].endswith("/slurm.conf"), (lines, process.stderr.read())
    assert len(processes_with(f"SLURM_CONF={lines[0]}")) >= 10  # the shell, srun; four daemons; two tasks and their sleep
    yield process, lines[0]
    process.kill()
    end_leftovers()


def test_the_line_where_slurm_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(two_nodes, "PROGRAMS", ("sh", "no-such-program"))
    with pytest.raises(SystemExit) as end:
        two_nodes.main()
    line = "error: no no-such-program here: install Slurm and munge (Debian, Ubuntu: apt-get install slurm-wlm munge)\n"
    assert (end.value.code, capsys.readouterr().err) == (2, line)


def wait_until_gone(configuration: str) -> None:
    end = time.monotonic() + 60
    while processes_with(f"SLURM_CONF={configuration}") or Path(configuration).exists():
        assert time.monotonic() < end, processes_with(f"SLURM_CONF={configuration}")
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_nodes_end_with_their_user(number, user):
    process, configuration = user
    os.killpg(process.pid, number)
    wait_until_gone(configuration)


def test_the_next_start_ends_what_a_killed_keeper_has_left(user):
    process, configuration = user
    keeper = int(Path(configuration).with_name("keeper.pid").read_text())
    os.kill(keeper, signal.SIGKILL)
    process.kill()
    while keeper in processes_with(f"SLURM_CONF={configuration}"):
        time.sleep(0.01)
    assert processes_with(f"SLURM_CONF={configuration}")
    end_leftovers()
    assert not processes_with(f"SLURM_CONF={configuration}") and not Path(configuration).parent.exists()


def test_nodes_in_use_are_no_leftovers(cluster):
    end_leftovers()
    assert cluster.run("srun", "-N2", "-n2", "echo", "here").split() == ["here", "here"]


def test_a_killed_node_is_started_again(cluster):
    job = workplace.start(["srun", "-w", NODES[1], "sh", "-c", "echo begun; exec sleep 1234"], ROOT, **cluster.environment)
    assert job.stdout.readline() == b"begun\n"
    cluster.kill_node(NODES[1])
    cluster.start_node(NODES[1])
    cluster.end_jobs()
    job.kill()  # srun waits for the lost task
    job.communicate()
    assert cluster.run("srun", "-N2", "-n2", "echo", "here").split() == ["here", "here"]
