"""A text file in parts: the unit of work, of resume and of what is made again when a text changes."""

import hashlib
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pretraining.corpus.files import BLOCK_BYTES, FileFacts, opened
from pretraining.utils import UserError


class Part(NamedTuple):
    """Consecutive lines of a file.

    Attributes:
        start: index of its first byte.
        size: bytes.
        first_line: number of its first line; 1 for the first line of the file.
        lines: how many lines it has.
        sha256: of its bytes, in hex.
    """

    start: int
    size: int
    first_line: int
    lines: int
    sha256: str


WHOLE = Part(start=0, size=sys.maxsize, first_line=1, lines=sys.maxsize, sha256="")  # for those who read all of a file


def divide(path: Path, part_bytes: int) -> tuple[FileFacts, list[Part]]:
    """Divides a text at line ends, in one pass and constant memory; the parts depend only on the content.

    A part ends at the first line end at or after ``part_bytes`` bytes. What is appended to a text therefore changes its last part only.

    Returns:
        the facts of the whole file; its parts, none of them empty. An empty file has no parts.
    """
    divider = _Divider()
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            start = 0
            while end := block.find(b"\n", max(start, start + part_bytes - divider.size - 1)) + 1:
                divider.add(block[start:end])
                divider.close_part()
                start = end
            divider.add(block[start:])
    return divider.finish()


def divide_by_lines(path: Path, lines: list[int]) -> tuple[FileFacts, list[Part]]:
    """Divides a reference file as its text was divided.

    Args:
        lines: of each part, as :func:`divide` gave them. Their sum is the number of lines of the file.
    """
    divider = _Divider()
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            line_ends = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + 1
            start = used = 0
            while divider.part_number < len(lines) and used + lines[divider.part_number] - divider.lines <= len(line_ends):
                used += lines[divider.part_number] - divider.lines
                end = int(line_ends[used - 1])
                divider.add(block[start:end])
                divider.close_part()
                start = end
            divider.add(block[start:])
    return divider.finish()


def require_unchanged(path: Path, part: Part) -> None:
    """Raises UserError if a part is no longer what :func:`divide` has read."""
    digest, missing = hashlib.sha256(), part.size
    with opened(path) as file:
        file.seek(part.start)
        while missing and (block := file.read(min(BLOCK_BYTES, missing))):
            digest.update(block)
            missing -= len(block)
    if digest.hexdigest() != part.sha256:
        raise UserError(f"{path}: was changed while it was read; run again")


class _Divider:
    """Counts and hashes the bytes of a file and of its parts."""

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.whole = hashlib.sha256()
        self.first_line, self.start = 1, 0
        self._begin_part()

    @property
    def part_number(self) -> int:
        return len(self.parts)

    def _begin_part(self) -> None:
        self.digest, self.size, self.lines, self.last = hashlib.sha256(), 0, 0, b"\n"

    def add(self, block: bytes) -> None:
        """Adds bytes to the part."""
        if block:
            self.whole.update(block)
            self.digest.update(block)
            self.size += len(block)
            self.lines += block.count(b"\n")
            self.last = block[-1:]

    def close_part(self) -> None:
        lines = self.lines + (self.last != b"\n")
        self.parts.append(Part(self.start, self.size, self.first_line, lines, self.digest.hexdigest()))
        self.start += self.size
        self.first_line += lines
        self._begin_part()

    def finish(self) -> tuple[FileFacts, list[Part]]:
        if self.size:
            self.close_part()
        return FileFacts(self.whole.hexdigest(), self.first_line - 1), self.parts
