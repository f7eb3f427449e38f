"""A real Slurm of two nodes on this machine, for tests. Debian: apt-get install slurm-wlm munge. It needs no root.

    python -m tests.cluster.two_nodes                  a shell whose srun, sbatch, squeue, scancel use the two nodes
    python -m tests.cluster.two_nodes COMMAND ...      runs a command with them

Key, configuration, logs and sockets are in a directory of their own, the ports are free ones: a Slurm of this machine is not touched.
No process stays: see keeper.py. If the keeper itself was killed, the next start ends what it left.
"""

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.cluster.keeper import HOST, NODES, end_all, kill_with

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scancel", "squeue", "sinfo", "scontrol")
INSTALL = "install Slurm and munge (Debian, Ubuntu: apt-get install slurm-wlm munge)"
PREFIX = f"minirbt-two-nodes-{os.getuid()}-"
CONFIGURATION = """\
ClusterName=two-nodes
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket
CredType=cred/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool.%n
SlurmctldPidFile={directory}/slurmctld.own_pid
SlurmdPidFile={directory}/slurmd.%n.own_pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
MpiDefault=none
MailProg=/bin/true
NodeName={nodes} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]},{ports[2]} CPUs=2 RealMemory=8000
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def search_path() -> str:
    """Daemons are in /usr/sbin, which is not on every user's PATH."""
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def missing() -> str | None:
    """What is not installed here, or None."""
    absent = [program for program in PROGRAMS if not shutil.which(program, path=search_path())]
    return f"no {', '.join(absent)} here: {INSTALL}" if absent else None


class TwoNodes:
    """Two nodes that take jobs; ``partition=debug``.

    Attributes:
        environment: what a process needs to use them, without the variables of a Slurm job that this process may be in.
        nodes: their names.
    """

    nodes = NODES

    def __init__(self, directory: Path, environment: dict[str, str], keeper: subprocess.Popen):
        self.directory, self.environment, self.keeper = directory, environment, keeper

    def run(self, *command: str | Path, **options) -> str:
        """The output of a command, which must succeed."""
        ended = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300, **options)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout

    def kill_slurmd(self, node: str) -> None:
        """Kills the node's daemon; its jobs go on until Slurm notices it."""
        os.kill(int((self.directory / f"slurmd.{node}.pid").read_text()), signal.SIGKILL)

    def kill_node(self, node: str) -> None:
        """Kills all that runs on the node at once."""
        kill_with(f"SLURM_CONF={self.directory}/slurm.conf", f"SLURMD_NODENAME={node}")

    def start_node(self, node: str) -> None:
        """Starts it again; returns when it takes jobs."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.write(f"start {node}\n")
        self.keeper.stdin.flush()
        wait_until_ready(self.keeper)

    def jobs(self) -> list[str]:
        """The numbers of the jobs that wait or run."""
        return sorted(set(self.run("squeue", "--noheader", "--format", "%F").split()))  # of an array, its one number

    def end_jobs(self) -> None:
        """Ends all jobs at once and waits until they have gone."""
        while numbers := self.jobs():
            subprocess.run(["scancel", "--signal=KILL", *numbers], env=self.environment, capture_output=True)
            subprocess.run(["scancel", *numbers], env=self.environment, capture_output=True)
            time.sleep(0.1)


@contextmanager
def two_nodes() -> Iterator[TwoNodes]:
    """Starts them in a new directory; ends them and whatever runs on them."""
    end_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))  # short: the path of a socket has at most 107 bytes
    lock = os.open(directory, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # the keeper inherits it and holds it until its end
    environment = prepare(directory)
    command = [sys.executable, "-m", "tests.cluster.keeper", str(directory)]
    settings = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": environment}
    keeper = subprocess.Popen(command, start_new_session=True, pass_fds=[lock], **settings)
    os.close(lock)
    try:
        wait_until_ready(keeper)
        yield TwoNodes(directory, environment, keeper)
    finally:
        keeper.communicate()  # closes stdin and waits


def prepare(directory: Path) -> dict[str, str]:
    """Writes key and configuration; returns the environment."""
    directory.chmod(0o711)  # munged wants its socket to be reachable
    for name in ("munge", "state", *(f"spool.{node}" for node in NODES)):
        (directory / name).mkdir(mode=0o711)
    key = directory / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    values = {"host": HOST, "first_job": os.getpid() % 9_000 + 1, "user": pwd.getpwuid(os.getuid()).pw_name, "nodes": ",".join(NODES)}
    configuration = CONFIGURATION.format(directory=directory, ports=free_ports(3), **values)
    (directory / "slurm.conf").write_text(configuration)
    of_slurm = ("SLURM", "SBATCH_", "SQUEUE_", "SINFO_", "SCANCEL_", "SALLOC_", "PMI", "MUNGE_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_slurm)}
    return {**environment, "PATH": search_path(), "SLURM_CONF": str(directory / "slurm.conf")}


def free_ports(count: int) -> list[int]:
    """TCP ports of this machine that nobody uses."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


def wait_until_ready(keeper: subprocess.Popen) -> None:
    assert keeper.stdout is not None
    if (line := keeper.stdout.readline()) != "ready\n":
        raise RuntimeError(line + keeper.stdout.read())


def end_leftovers() -> None:
    """Ends what a keeper has left that was killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # held: another test runs
                end_all(directory)
            finally:
                os.close(descriptor)


def main() -> None:
    if absent := missing():
        print(f"error: {absent}", file=sys.stderr)
        sys.exit(2)
    with two_nodes() as cluster:
        command = sys.argv[1:] or [os.environ.get("SHELL", "/bin/sh")]
        sys.exit(subprocess.run(command, env=cluster.environment).returncode)


if __name__ == "__main__":
    main()
