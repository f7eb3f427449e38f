"""Locks for as long as a command writes: the kernel releases them when the process ends, however it ends."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pretraining.utils import UserError

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks answers
LOCKED_BYTE = 1 << 30  # beyond the text of the file, which some file systems hide where it is locked


@contextmanager
def exclusive(lock: Path, place: str | Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock between processes, on all machines that share the disk.

    It is a POSIX record lock. A forked child, such as a worker of a loader, does not inherit it and cannot keep it after the process
    was killed. The file stays for good: if it were removed, two processes could hold locks of the same name.

    Args:
        lock: the file of the lock; its text names the holder. No other part of this process may open it.
        place: what is locked, for the messages.
        wait: until the other process ends or releases the lock.

    Raises:
        UserError: without ``wait``, another process holds the lock; the message names it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _acquire(descriptor, place, wait)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def _acquire(descriptor: int, place: str | Path, wait: bool) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, LOCKED_BYTE)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise _in_use(descriptor, place) from None
        if error.errno not in NO_LOCKS:
            raise
        _warn_of_no_locks(str(place))
        return
    if wait:
        return  # nobody is refused, so nobody asks for the holder
    with suppress(OSError):  # on a full disk the holder has no name
        os.ftruncate(descriptor, 0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode(), 0)
        os.fsync(descriptor)


@cache
def _warn_of_no_locks(place: str) -> None:
    print(f"warning: {place}: this file system has no locks; start no second command that writes here", file=sys.stderr)


def _in_use(descriptor: int, place: str | Path) -> UserError:
    holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
    return UserError(f"{place}: in use by {holder}; wait until it ends, stop it, or choose another place")
