"""Disks that are full, or read-only: a small file system of its own, and a limit on the size of files where none can be mounted."""

import resource
import subprocess
from pathlib import Path


class CannotMountError(Exception):
    """This machine lets no file system be mounted."""


def mount(*arguments: str) -> None:
    """Runs ``mount``."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotMountError(str(error)) from None
    if done.returncode:
        raise CannotMountError(f"cannot mount a small file system here: {done.stderr.strip()}")


class Tmpfs:
    """A small file system of its own.

    Raises:
        CannotMountError: no file system can be mounted here.
    """

    def __init__(self, place: Path, kilobytes: int):
        self.place, self.layers = place, 1
        place.mkdir(exist_ok=True)
        mount("-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place))

    def prepare(self) -> None:
        """For the process that is to meet the full disk."""

    def make_space(self) -> None:
        self.resize(100 << 10)

    def resize(self, kilobytes: int) -> None:
        mount("-o", f"remount,size={kilobytes}k", str(self.place))

    def fill(self) -> Path:
        """Fills it; returns the file that takes all the space."""
        filler = self.place / "filler"
        with open(filler, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue
        return filler

    def make_read_only(self) -> None:
        """Mounts it over itself, read-only: the kernel remounts nothing that has a file open for writing."""
        mount("--bind", str(self.place), str(self.place))
        self.layers += 1
        mount("-o", "remount,bind,ro", str(self.place))

    def make_writable(self) -> None:
        """The opposite of :meth:`make_read_only`."""
        self._unmount()

    def close(self) -> None:
        while self.layers:
            self._unmount()

    def _unmount(self) -> None:
        subprocess.run(["umount", str(self.place)], check=True)
        self.layers -= 1


class FileSizeLimit:
    """The system refuses to let a file grow beyond a size, which programs see as they see a full disk."""

    def __init__(self, place: Path, kilobytes: int):
        self.bytes = kilobytes << 10

    def prepare(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.bytes, self.bytes))

    def make_space(self) -> None:
        pass

    def close(self) -> None:
        pass
