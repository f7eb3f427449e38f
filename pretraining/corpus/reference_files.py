"""Texts -> reference files: which parts are missing, one part made by one worker, the parts joined.

The references of a part wait in ``.<name of the reference file>.parts/`` until all parts are there. The note beside the joined file
keeps the size and the hash of each part, so that the unchanged parts of a longer text are copied and not made again.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pretraining.corpus.files import (
    BLOCK_BYTES,
    FileFacts,
    TextAndRefs,
    atomic_write,
    file_facts,
    fsync_path,
    opened,
    read_json,
    read_line_blocks,
    sidecar_of,
    write_json,
)
from pretraining.corpus.locks import exclusive
from pretraining.corpus.parts import Part, require_unchanged
from pretraining.corpus.references import ReferenceFinder
from pretraining.corpus.segmenter import Segment, load_segmenter, read_ltp_directory, words_of
from pretraining.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from pretraining.utils import UserError

FORMAT = 1
BATCH_CHARACTERS = 1 << 17  # an encoded character takes some 600 bytes, so 80 MB a batch


class ReferencePart(NamedTuple):
    """A part of a text, and the file that its references are written to."""

    text: Path
    part: Part
    output: Path


@dataclass(frozen=True)
class ReferenceMaker:
    """Makes the references of a part; picklable, for workers in other processes and on other machines.

    Attributes:
        ltp, bert: directories of the LTP and of the BERT model.
        makers: what decides the references beside the text: ``format``, ``ltp_sha256`` and ``tokenizer_sha256``.
    """

    ltp: str
    bert: str
    makers: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, ltp: str, bert: str) -> "ReferenceMaker":
        """Raises UserError if one of the two directories is none."""
        shas = {"ltp_sha256": read_ltp_directory(ltp).sha256(), "tokenizer_sha256": tokenizer_sha256(load_tokenizer(bert))}
        return cls(ltp, bert, tuple({"format": FORMAT, **shas}.items()))

    def __call__(self, work: ReferencePart, report: Callable[[int], object]) -> None:
        """Writes the references of a part; if another process is at it, waits for that one.

        Args:
            report: called with numbers of lines that are finished.
        """
        with exclusive(work.output.with_name(f"{work.output.name}.lock"), work.output, wait=True):
            if work.output.exists():
                report(work.part.lines)
                return
            require_unchanged(work.text, work.part)
            self._write(work, report)

    def _write(self, work: ReferencePart, report: Callable[[int], object]) -> None:
        segment, find_references = load_models(self)
        finished = done = 0

        def count(lines: int) -> None:
            nonlocal done
            done += lines
            report(lines)

        blocks = read_line_blocks(work.text, work.part.start, work.part.size, work.part.first_line)
        with atomic_write(work.output, "wb") as output:
            for lines in chain.from_iterable(map(batches_of_lines, blocks)):
                words = words_of(lines, segment, count)
                output.write("".join(f"{positions}\n" for positions in find_references(lines, words)).encode())
                finished += len(lines)
                count(finished - done)  # lines with nothing to segment


@cache
def load_models(maker: ReferenceMaker) -> tuple[Segment, ReferenceFinder]:
    """Loads the models once for all parts of a worker; raises UserError if they are damaged or not those of ``maker``."""
    if ReferenceMaker.of(maker.ltp, maker.bert) != maker:
        raise UserError(f"{maker.ltp}, {maker.bert}: were changed, or differ on another machine; run again with the same files everywhere")
    return load_segmenter(read_ltp_directory(maker.ltp)), ReferenceFinder(load_tokenizer(maker.bert))


def batches_of_lines(lines: list[str]) -> Iterator[list[str]]:
    """Splits a list of lines into lists of about ``BATCH_CHARACTERS``; an empty line costs memory too."""
    first = size = 0
    for number, line in enumerate(lines, start=1):
        size += len(line) + 16
        if size >= BATCH_CHARACTERS:
            yield lines[first:number]
            first, size = number, 0
    if first < len(lines):
        yield lines[first:]


# ---------------------------------------------------------------- the parts of a reference file


class ReferenceFile(NamedTuple):
    """A reference file that is to be made.

    Attributes:
        inputs: all that decides its content.
        parts: of the text.
    """

    file: TextAndRefs
    inputs: dict[str, Any]
    parts: list[Part]

    @property
    def folder(self) -> Path:
        """Where the references of its parts wait for each other."""
        return self.file.refs.with_name(f".{self.file.refs.name}.parts")

    def output_of(self, number: int) -> Path:
        """The file with the references of a part; its name changes with all that decides them."""
        return self.folder / f"{number:05d}-{self.key_of(number)[:16]}"

    def key_of(self, number: int) -> str:
        """The hash (hex) of all that decides the references of a part."""
        makers = {name: value for name, value in self.inputs.items() if name not in ("text_sha256", "lines")}
        return hashlib.sha256(json.dumps([makers, self.parts[number].sha256], sort_keys=True).encode()).hexdigest()

    def missing_parts(self) -> list[ReferencePart]:
        """The parts without references."""
        work = [ReferencePart(self.file.text, part, self.output_of(number)) for number, part in enumerate(self.parts)]
        return [part for part in work if not part.output.exists()]

    def copy_parts_of_old_file(self) -> None:
        """Copies the references of the parts that a shorter text had too."""
        start = 0
        for number, (key, size, sha256) in enumerate(_noted_parts(self.file.refs)[: len(self.parts)]):
            if key == self.key_of(number) and not self.output_of(number).exists():
                with opened(self.file.refs) as old:
                    old.seek(start)
                    references = old.read(size)
                if hashlib.sha256(references).hexdigest() == sha256:
                    with atomic_write(self.output_of(number), "wb") as output:
                        output.write(references)
            start += size

    def join(self) -> None:
        """Writes the reference file and, just before it replaces the old one, the note of what made it; removes the parts."""
        paths = [self.output_of(number) for number in range(len(self.parts))]
        facts = [file_facts(path) for path in paths]
        for path, part, found in zip(paths, self.parts, facts):
            if found.lines != part.lines:
                raise UserError(f"{path}: has {found.lines} lines, its part of {self.file.text} {part.lines}; remove it and run again")
        if len(paths) == 1:  # thousands of small files: moved, not written twice
            write_json(sidecar_of(self.file.refs), {**self.inputs, "refs_sha256": facts[0].sha256})
            os.replace(paths[0], self.file.refs)
            fsync_path(self.file.refs.parent)
        else:
            self._write_joined(paths, facts)
        self.forget_parts()

    def _write_joined(self, paths: list[Path], facts: list[FileFacts]) -> None:
        digest = hashlib.sha256()
        with atomic_write(self.file.refs, "wb") as output:
            for path in paths:
                with opened(path) as references:
                    while block := references.read(BLOCK_BYTES):
                        digest.update(block)
                        output.write(block)
            noted = [[self.key_of(number), path.stat().st_size, facts[number].sha256] for number, path in enumerate(paths)]
            write_json(sidecar_of(self.file.refs), {**self.inputs, "refs_sha256": digest.hexdigest(), "parts": noted})

    def forget_parts(self) -> None:
        """Removes the references of the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def is_current(file: TextAndRefs, inputs: dict[str, Any]) -> bool:
    """True if the reference file was made from ``inputs`` and was not changed since."""
    sidecar = sidecar_of(file.refs)
    if not (file.refs.is_file() and sidecar.is_file()):
        return False
    noted = read_json(sidecar, "the note beside a reference file (--overwrite makes both again)")
    noted.pop("parts", None)
    return noted == {**inputs, "refs_sha256": file_facts(file.refs).sha256}


def _noted_parts(refs: Path) -> list[tuple[str, int, str]]:
    """Key, bytes and hash of the parts of a reference file; none if there is no file, no note, or another kind of note."""
    if not (refs.is_file() and sidecar_of(refs).is_file()):
        return []
    noted = read_json(sidecar_of(refs), "the note beside a reference file (--overwrite makes both again)").get("parts", [])
    is_note = isinstance(noted, list) and all(isinstance(part, list) and list(map(type, part)) == [str, int, str] for part in noted)
    return [tuple(part) for part in noted] if is_note and all(part[1] >= 0 for part in noted) else []
