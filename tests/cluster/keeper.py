"""The process that keeps two Slurm nodes: it starts their daemons and ends all that they started when its own starter has ended.

    python -m tests.cluster.keeper DIRECTORY          two_nodes.py starts it; stdin: "start n2" starts a node again that was killed

It ends when stdin ends: when its starter has closed it, has failed or was killed. Daemons and jobs leave their parents, but their
environment keeps SLURM_CONF. This tells them from all other processes, those of another Slurm included.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

START_TIMEOUT = 10.0  # seconds
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
    start(directory, "slurmd", "-D", "-N", node)
    asked = ["sinfo", "--noheader", "--responding", "--nodes", node, "--states", "idle,mixed,allocated", "--format", "%D"]
    wait_for(lambda: subprocess.run(asked, capture_output=True, text=True).stdout.strip() == "1", directory, f"slurmd.{node}")


def start(directory: Path, *command: str) -> None:
    name = f"{command[0]}.{command[-1]}" if command[0] == "slurmd" else command[0]
    with (directory / f"{name}.out").open("a") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    (directory / f"{name}.pid").write_text(str(process.pid))


def wait_for(condition, directory: Path, name: str) -> None:
    end = time.monotonic() + START_TIMEOUT
    while not condition():
        if time.monotonic() > end:
            raise NotStarted(f"{name} did not start:\n{(directory / f'{name}.out').read_text()[-2000:]}")
        time.sleep(0.05)


# ---------------------------------------------------------------- the end


def end_all(directory: Path) -> None:
    """Kills every process whose environment names the configuration, except this one, until there is none; removes the directory."""
    variable = f"SLURM_CONF={directory}/slurm.conf"
    while processes := set(processes_with(variable)) - {os.getpid()}:
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(directory, ignore_errors=True)


def processes_with(variable: str) -> list[int]:
    """The processes that were started with this variable, ``NAME=value``."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended, or is another user's
            if variable.encode() in environment.read_bytes().split(b"\0"):
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
