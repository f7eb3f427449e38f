"""The process that keeps two Slurm nodes: it starts their daemons and ends all that they started when its own starter has ended.

    python -m tests.cluster.keeper DIRECTORY          two_nodes.py starts it; stdin: "start n2" starts a node again that was killed

It ends when stdin ends: when its starter has closed it, has failed or was killed. Daemons and jobs leave their parents, but their
environment keeps SLURM_CONF. This tells them from all other processes, those of another Slurm included.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

START_TIMEOUT = 60.0  # seconds
HOST = socket.gethostname().split(".")[0]
NODES = (HOST, f"{HOST}-2")  # sorted; the processes of a step meet at its first node, whose name must be resolved


class NotStarted(Exception):
    """A daemon did not start; the message names its log."""


def keep(directory: Path) -> None:
    """Starts all, prints "ready", then starts nodes by their names as stdin asks."""
    (directory / "keeper.pid").write_text(str(os.getpid()))
    start_daemons(directory)
    print("ready", flush=True)
    for line in sys.stdin:
        start_node(directory, line.split()[1])
        print("ready", flush=True)


def start_daemons(directory: Path) -> None:
    munge = directory / "munge"
    files = {"socket": "socket", "key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
    start(directory, "munged", "--foreground", "--force", *(f"--{option}={munge / name}" for option, name in files.items()))
    wait_for(lambda: (munge / "socket").exists(), directory, "munged")
    start(directory, "slurmctld", "-D")
    for node in NODES:
        start_node(directory, node)


def start_node(directory: Path, node: str) -> None:
    """Returns when the node takes jobs."""
    start(directory, "slurmd", "-D", "-N", node, SLURMD_NODENAME=node)  # its jobs have this variable anyway
    wait_for(lambda: takes_jobs(node), directory, f"slurmd.{node}")


def takes_jobs(node: str) -> bool:
    """Whether slurmctld knows the node as one that answers."""
    shown = subprocess.run(["scontrol", "show", "node", node], capture_output=True, text=True).stdout
    return re.search(r"State=(IDLE|MIXED|ALLOCATED) ", shown) is not None  # other states and flags follow a + or a *


def start(directory: Path, *command: str, **environment: str) -> None:
    name = f"{command[0]}.{command[-1]}" if command[0] == "slurmd" else command[0]
    with (directory / f"{name}.out").open("a") as log:
        settings = {"env": {**os.environ, **environment}, "start_new_session": True}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **settings)
    (directory / f"{name}.pid").write_text(str(process.pid))


def wait_for(condition, directory: Path, name: str) -> None:
    end = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > end:
            state = subprocess.run(["sinfo", "--Node", "--long"], capture_output=True, text=True, timeout=60)
            log = (directory / f"{name}.out").read_text()
            raise NotStarted(f"{name} did not start: {log[-2000:]}\n{state.stdout}{state.stderr}")
        time.sleep(0.05)


# ---------------------------------------------------------------- the end


def end_all(directory: Path) -> None:
    """Kills every process whose environment names the configuration, except this one; removes the directory."""
    kill_with(f"SLURM_CONF={directory}/slurm.conf")
    shutil.rmtree(directory, ignore_errors=True)


def kill_with(*variables: str) -> None:
    """Kills every process that has these variables, except this one, until there is none. None sees how another ends."""
    while processes := set(processes_with(*variables)) - {os.getpid()}:
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, number)
        time.sleep(0.01)


def processes_with(*variables: str) -> list[int]:
    """The processes that were started with these variables, each ``NAME=value``."""
    wanted, found = {variable.encode() for variable in variables}, []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if wanted <= set(environment.read_bytes().split(b"\0")):
                found.append(int(environment.parent.name))
    return found


def main() -> None:
    directory = Path(sys.argv[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the starter, which then closes stdin
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        keep(directory)
    except NotStarted as error:
        print(error, flush=True)
    finally:
        end_all(directory)


if __name__ == "__main__":
    main()
