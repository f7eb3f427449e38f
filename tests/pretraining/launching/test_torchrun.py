"""torchrun without its reports: what the processes print is all that the user reads, and the status is theirs."""

import signal
import sys

import pytest

from tests import workplace
from tests.workplace import free_port

pytestmark = pytest.mark.slow

PROCESS = """
import os, signal, sys, time

other = os.environ["RANK"] == "1"
{what}
time.sleep(60)
"""


def run_two(what: str, tmp_path) -> workplace.Ended:
    (tmp_path / "process.py").write_text(PROCESS.format(what=what))
    options = ["--nproc_per_node=2", "--nnodes=1", "--node_rank=0", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    return workplace.run_there([sys.executable, "-m", "pretraining.launching.torchrun", *options, "process.py"], tmp_path)


def test_a_process_that_ends_with_an_error_gives_its_status_and_its_line_alone(tmp_path):
    ended = run_two("if other: sys.exit(print('error: no such file', file=sys.stderr) or 3)", tmp_path)
    assert (ended.status, ended.out, ended.err) == (3, "", "error: no such file\n")


@pytest.mark.parametrize(("name", "reason"), [("SIGKILL", "; is the machine out of memory?"), ("SIGSEGV", "")])
def test_a_process_that_a_signal_kills_is_named_in_one_line(name, reason, tmp_path):
    ended = run_two(f"if other: os.kill(os.getpid(), signal.{name})", tmp_path)
    assert (ended.status, ended.out) == (2, "")
    assert ended.err == f"\nerror: process 1 of this machine was killed by {name}{reason}; run the same command again to resume\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_stop_signal_reaches_each_process_once(number, tmp_path):
    what = f"""
signal.signal({number:d}, lambda *_: os.write(1, b"got it\\n"))
open("ready" + os.environ["RANK"], "w").close()
while other and not os.path.exists("ready0"): time.sleep(0.05)
if other: os.kill(os.getppid(), {number:d}); os.kill(os.getppid(), {number:d})
time.sleep(3)
sys.exit({128 + number})
"""
    ended = run_two(what, tmp_path)
    assert (ended.status, ended.out, ended.err) == (128 + number, "got it\n" * 2, "")
