"""Locks between processes: who holds one is named, a killed process holds none, its children neither."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from pretraining.corpus import locks
from pretraining.corpus.locks import exclusive
from pretraining.utils import UserError

FORK = multiprocessing.get_context("fork")


def hold(lock: Path, has_child: bool, sender) -> None:
    """Holds the lock until it is killed; with a child that was forked while it is held and outlives it, as a loader's worker may."""
    with exclusive(lock, "here"):
        child = os.fork() if has_child else 0
        if has_child and not child:
            signal.alarm(60)
            signal.pause()
        sender.send(child)
        signal.alarm(60)
        signal.pause()


@pytest.fixture
def start_holder():
    """``start_holder(lock, has_child)``: a process that holds the lock, and the id of its child."""
    started, children = [], []

    def start(lock: Path, has_child: bool = False):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=hold, args=(lock, has_child, sender))
        process.start()
        started.append(process)
        assert receiver.poll(60)
        children.append(receiver.recv())
        return process, children[-1]

    yield start
    for process in started:
        process.kill()
        process.join()  # with a time limit it would wait for the end of the child too
    for child in filter(None, children):
        os.kill(child, signal.SIGKILL)


def take(lock: Path) -> None:
    with exclusive(lock, "here"):
        pass


def test_a_lock_that_another_process_holds_is_refused_and_its_holder_named(tmp_path, start_holder):
    lock = tmp_path / "new" / "folder" / ".lock"
    holder, _ = start_holder(lock)
    since = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
    named = f"here: in use by process {holder.pid} on {re.escape(socket.gethostname())} since {since}; wait until it ends, stop it, or"
    for _ in range(2):  # a refused process takes nothing from the holder
        with pytest.raises(UserError, match=named):
            take(lock)


@pytest.mark.parametrize("has_child", [False, True], ids=["", "with a living child"])
def test_a_killed_process_holds_no_lock(has_child, tmp_path, start_holder):
    lock = tmp_path / ".lock"
    holder, child = start_holder(lock, has_child)
    holder.kill()
    holder.join()
    if has_child:
        os.kill(child, 0)  # it lives
    take(lock)
    assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_the_end_of_a_forked_child_does_not_release_the_lock(tmp_path):
    lock = tmp_path / ".lock"
    with exclusive(lock, "here"):
        child = FORK.Process(target=os.getpid)
        child.start()
        child.join(60)
        other = FORK.Process(target=take, args=(lock,))
        other.start()
        other.join(60)
        assert child.exitcode == 0 and other.exitcode == 1
    take(lock)


def test_an_error_inside_releases_the_lock_and_keeps_its_file(tmp_path, start_holder):
    lock = tmp_path / ".lock"
    with pytest.raises(ValueError), exclusive(lock, "here"):
        number = lock.stat().st_ino
        raise ValueError
    start_holder(lock)
    assert lock.stat().st_ino == number


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(number, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    locks._warn_of_no_locks.cache_clear()
    for _ in range(2):  # the warning comes once
        take(tmp_path / ".lock")
    assert capsys.readouterr().err == "warning: here: this file system has no locks; start no second command that writes here\n"


def test_without_space_for_its_name_the_holder_is_another_process(tmp_path, monkeypatch, start_holder):
    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(locks.os, "pwrite", fail)
    start_holder(tmp_path / ".lock")
    with pytest.raises(UserError, match="here: in use by another process; wait"):
        take(tmp_path / ".lock")
