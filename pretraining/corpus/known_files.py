"""What is known of the content of files, so that a file is read once on a machine and not at each start.

A file is the one that was read if its path, size, time of change and inode are the same. ``<data_cache_dir>/.known/files.json`` keeps
what was found. It is never needed: what it lacks, or where it is damaged, is found again. A command that is refused makes no directory,
so nothing is remembered before ``data_cache_dir`` exists.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from pretraining.corpus.files import FileFacts, atomic_write, file_facts
from pretraining.utils import UserError

FORMAT = 1
CLOCK_STEP = 2.0  # seconds: a file that is changed twice within the file system's smallest step of time keeps its time of change
VERSIONS = 8  # of a file are kept: machines that share the directory may have their own files under one path


@dataclass
class Known:
    """What was found in a file.

    Attributes:
        time: when the file was read, in seconds since 1970.
        checks: names of the checks that its content has passed.
    """

    time: float
    sha256: str
    lines: int
    checks: list[str] = field(default_factory=list)


class KnownFiles:
    """The files whose content is known.

    Args:
        cache_dir: where it is remembered.
        since: what was found before this time (seconds since 1970) is found again.
    """

    def __init__(self, cache_dir: str | Path, since: float = 0.0):
        self.folder, self.since = Path(cache_dir) / ".known", since
        self.remembered = self._load()
        self.found: dict[tuple[str, str], Known] = {}  # by this process, by path and stamp

    def facts(self, path: Path) -> FileFacts:
        """The SHA-256 and the lines of a file, which is read if it is not known.

        Raises:
            UserError: it is being written.
        """
        known = self._find(path)
        if known is None:
            stamp, start = _stamp(path), time.time()
            facts = file_facts(path)
            if _stamp(path) != stamp:
                raise UserError(f"{path}: was changed while it was read; run again")
            known = self.found[os.path.abspath(path), stamp] = Known(start, *facts)
            same = [old for old in self.remembered.get(os.path.abspath(path), {}).values() if old.sha256 == facts.sha256]
            known.checks = sorted({check for old in same for check in old.checks})
        return FileFacts(known.sha256, known.lines)

    def put(self, path: Path, facts: FileFacts) -> None:
        """Notes the facts of a file that this process has written and hashed."""
        self.found[os.path.abspath(path), _stamp(path)] = Known(time.time(), *facts)

    def knows(self, path: Path, *checks: str) -> bool:
        """True if a file need not be read, and has passed these checks."""
        known = self._find(path)
        return known is not None and set(checks) <= set(known.checks)

    def note(self, path: Path, check: str) -> None:
        """Remembers that a file whose :meth:`facts` were asked for has passed a check."""
        if known := self._find(path):
            self.found[os.path.abspath(path), _stamp(path)] = replace(known, checks=sorted({*known.checks, check}))

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Where files are read: one process of the machine at a time, with what the others have found. Remembers at the end."""
        with ExitStack() as stack:
            with suppress(OSError):  # the cache does not exist yet, or cannot be written to
                self.folder.mkdir(exist_ok=True)
                stack.enter_context(FileLock(self.folder / "lock"))
            self.remembered = self._load()
            yield
            self._save()

    def remember(self) -> None:
        """Remembers what was noted outside :meth:`learning`."""
        with self.learning():
            pass

    def _find(self, path: Path) -> Known | None:
        name = os.path.abspath(path)
        try:
            stamp = _stamp(path)
        except FileNotFoundError:
            return None
        known = self.found.get((name, stamp)) or self.remembered.get(name, {}).get(stamp)
        return known if known and known.time >= self.since else None

    def _load(self) -> dict[str, dict[str, Known]]:
        """By path and stamp; nothing if the file is damaged."""
        try:
            stored = json.loads((self.folder / "files.json").read_bytes())
            if stored["format"] != FORMAT:
                return {}
            return {path: {stamp: _known(values) for stamp, values in versions.items()} for path, versions in stored["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return {}

    def _save(self) -> None:
        """Remembers what this process found; not what may have changed since without another time of change."""
        files = {path: dict(versions) for path, versions in self.remembered.items()}
        for (path, stamp), known in self.found.items():
            if int(stamp.split()[1]) / 1e9 + CLOCK_STEP <= known.time:
                versions = files.setdefault(path, {})
                old = versions.pop(stamp, known)
                checks = {*known.checks, *(old.checks if old.sha256 == known.sha256 else [])}
                versions[stamp] = replace(known, checks=sorted(checks))
                files[path] = dict(list(versions.items())[-VERSIONS:])
        if files != self.remembered:
            values = {path: {stamp: list(vars(known).values()) for stamp, known in found.items()} for path, found in files.items()}
            if not self.folder.is_dir():
                return
            with suppress(OSError, UserError), atomic_write(self.folder / "files.json") as file:  # a full disk: it is found again
                json.dump({"format": FORMAT, "files": values}, file)
            self.remembered = files


def _stamp(path: Path) -> str:
    """Size in bytes, time of change in nanoseconds, inode."""
    found = os.stat(path)
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _known(values: Any) -> Known:
    known = Known(*values)
    kinds = (float, str, int, list, *[str] * len(known.checks))
    if not all(isinstance(value, kind) for value, kind in zip([*values, *known.checks], kinds)):
        raise TypeError
    return known
