"""How files are read and written: lines, fingerprints, JSON, atomic writes, and the list of text files ``data.json``."""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

from tqdm import tqdm

from pretraining.corpus.formats import BYTE_ORDER_MARK, refuse_other_formats, require_plain_text
from pretraining.utils import UserError, first_line

MAX_LINE_BYTES = 16 << 20
LONG_LINE_BYTES = 1 << 20  # a text of one line longer than this gets a warning
BLOCK_BYTES = 1 << 22
# Keys of a model's config that can make transformers import code from elsewhere (attention kernels of the hub too); without "_" in front.
CODE_KEYS = ("auto_map", "trust_remote_code", "attn_implementation", "experts_implementation")

# ---------------------------------------------------------------- lines


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """Opens a file to read its bytes; a failed read names the file, as a failed open does."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_line_blocks(path: str | Path, start: int = 0, size: int = sys.maxsize, first_line: int = 1) -> Iterator[list[str]]:
    r"""Yields the lines of a file, or of a part of it, in order, in lists of a few megabytes each.

    This is the only definition of a line in the project: it ends at ``\n`` (a ``\r`` before it is dropped) and at nothing else.
    A byte-order mark at the start is dropped. A file with nothing but a mark has one blank line, as ``file_facts`` counts.

    Args:
        start, size: the bytes of the part.
        first_line: the number of its first line, for the messages.

    Raises:
        UserError: a compressed file, Parquet or UTF-16; invalid UTF-8, a NUL byte or a line over 16 MiB: the message has the line's number.
    """
    number, rest, missing = first_line, b"", size
    with opened(path) as file:
        if start:  # a pipe cannot seek
            file.seek(start)
        while block := file.read(min(BLOCK_BYTES, missing)):
            missing -= len(block)
            if number == 1 and not rest:
                refuse_other_formats(path, block)
                if block == BYTE_ORDER_MARK:
                    yield [""]
                block = block.removeprefix(BYTE_ORDER_MARK)
            block = rest + block
            cut = block.rfind(b"\n") + 1
            block, rest = block[:cut], block[cut:]
            if len(rest) > MAX_LINE_BYTES:
                long_line = number + block.count(b"\n")
                raise UserError(f"{path}:{long_line}: a line of over 16 MiB; is this a text file with one paragraph per line?")
            if block:
                lines = _decode(path, number, block).split("\n")[:-1]
                number += len(lines)
                yield lines
    if rest:
        yield [_decode(path, number, rest)]


def read_lines(path: str | Path) -> Iterator[str]:
    """Yields the lines of a file one by one; see :func:`read_line_blocks`."""
    for block in read_line_blocks(path):
        yield from block


def check_lines(path: str | Path, is_text: bool = False) -> None:
    """Raises the errors of :func:`read_line_blocks` now, not after hours of work.

    Args:
        is_text: warn if the file is one single line of megabytes.
    """
    lines = 0
    for block in read_line_blocks(path):
        lines += len(block)
    size = os.path.getsize(path)
    if is_text and lines == 1 and size > LONG_LINE_BYTES:
        advice = "if its lines end in \\r, convert them: tr '\\r' '\\n'"
        tqdm.write(
            f"warning: {path}: one single line of {size / 1e6:.1f} MB; one paragraph per line is expected; {advice}", file=sys.stderr
        )


def _decode(path: str | Path, number: int, block: bytes) -> str:
    nul = block.find(b"\0")
    if nul >= 0:
        line = number + block.count(b"\n", 0, nul)
        raise UserError(f"{path}:{line}: holds a NUL byte; is this a text file? UTF-16 would be: iconv -f UTF-16LE -t UTF-8")
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + block.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not valid UTF-8; convert the file, as in iconv -f GB18030 -t UTF-8, or fix that line") from None
    return text.replace("\r\n", "\n")


class FileFacts(NamedTuple):
    """The content of a file in short: SHA-256 (hex) and number of lines."""

    sha256: str
    lines: int


def file_facts(path: str | Path) -> FileFacts:
    """Hashes a file and counts its lines in one pass, in constant memory."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return FileFacts(digest.hexdigest(), lines + (last != b"\n"))


# ---------------------------------------------------------------- input files


def require_file(path: str | Path, what: str) -> Path:
    """Returns ``path`` if it is a readable file; else the error says what the file should be."""
    path = Path(path)
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is too long, a loop of links
        raise UserError(f"{path}: cannot be opened ({error.strerror}; {what})") from None
    if is_directory:
        raise UserError(f"{path}: {what} is expected here, but this is a directory")
    if not is_file:
        raise UserError(f"{path}: no such file ({what})")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read; check its permissions ({what})")
    return path


def read_json(path: str | Path, what: str) -> dict[str, Any]:
    """Reads a JSON object; an error names the file and the line."""
    with opened(require_file(path, what)) as file:
        text = file.read()
    try:
        value = json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: {what} is not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of nested brackets
        raise UserError(f"{path}: {what} is not valid JSON that can be read") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} must be a JSON object")
    return value


class TextAndRefs(NamedTuple):
    """One text file of ``data.json`` and its whole-word reference file."""

    text: Path
    refs: Path


def sidecar_of(refs: Path) -> Path:
    """The file in which run_chinese_ref.py notes what a reference file was made from."""
    return refs.with_name(refs.name + ".json")


def read_data_json(path: str | Path) -> dict[str, list[TextAndRefs]]:
    """Reads ``jsons/data.json``: ``{"train": {"train_files": [...], "train_ref_files": [...]}, "dev": {"dev_files": ...}}``.

    Returns:
        for "train" and "dev" the pairs of text and reference file, in the order of the lists. All text files exist.

    Raises:
        UserError: other keys, lists of different length, a missing text file, or two files that share a shard or a reference file.
    """
    data = read_json(path, "the list of data files")
    if set(data) - {"train", "dev"} or "train" not in data:
        raise UserError(f'{path}: must have the keys "train" and "dev", has {sorted(data)}')
    splits: dict[str, list[TextAndRefs]] = {"train": [], "dev": []}
    for split, entry in data.items():
        splits[split] = _read_split(path, split, entry)
    if not splits["train"]:
        raise UserError(f'{path}: "train_files" is an empty list; name at least one text file')
    _check_names(path, splits["train"] + splits["dev"])
    return splits


def read_training_files(path: str | Path, *, do_train: bool, do_eval: bool) -> dict[str, list[TextAndRefs]]:
    """The splits that a run uses, by name ("train", "dev"), from ``data.json``; their reference files exist.

    Raises:
        UserError: as :func:`read_data_json`, a missing reference file, or no dev files though ``do_eval`` wants them.
    """
    splits = read_data_json(path)
    if do_eval and not splits["dev"]:
        raise UserError(f'{path}: --do_eval needs text files under "dev"')
    used = {split: splits[split] for split, wanted in (("train", do_train), ("dev", do_eval)) if wanted}
    for files in used.values():
        for file in files:
            require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    return used


def _read_split(path: str | Path, split: str, entry: Any) -> list[TextAndRefs]:
    text_key, refs_key = f"{split}_files", f"{split}_ref_files"
    if not isinstance(entry, dict) or set(entry) != {text_key, refs_key}:
        raise UserError(f'{path}: "{split}" must have exactly the keys "{text_key}" and "{refs_key}"')
    for key in (text_key, refs_key):
        if not isinstance(entry[key], list) or not all(map(_is_file_name, entry[key])):
            raise UserError(f'{path}: "{key}" must be a list of file names')
    texts, refs = entry[text_key], entry[refs_key]
    if len(texts) != len(refs):
        raise UserError(f'{path}: "{text_key}" names {len(texts)} files, "{refs_key}" {len(refs)}; each text needs its reference file')
    return [TextAndRefs(Path(text), Path(ref)) for text, ref in zip(texts, refs)]


def _is_file_name(name: Any) -> bool:
    """True for the path of a file, which exists or can be made: it has a last part, no NUL and no half of a surrogate pair."""
    if not isinstance(name, str) or "\0" in name or Path(name).name in ("", ".."):
        return False
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def _check_names(path: str | Path, files: list[TextAndRefs]) -> None:
    """Refuses missing text files, other formats, and two files that would overwrite each other's shard or references."""
    stems: dict[str, Path] = {}
    all_refs: set[Path] = set()
    for text, refs in files:
        require_file(text, f"a text file of {path}")
        with opened(text) as file:
            require_plain_text(text, file)
        if text.stem in stems:
            raise UserError(
                f"{path}: {stems[text.stem]} and {text} have the same name, so one would overwrite the other's shard; rename one"
            )
        if refs in all_refs:
            raise UserError(f"{path}: {refs} is the reference file of two texts; give each text its own")
        stems[text.stem] = text
        all_refs.add(refs)


def require_writable_place(path: str | Path, what: str) -> None:
    """Checks that a directory can be created at ``path``, or exists and can be written to."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):  # has no name; permissions say nothing of /proc or a read-only disk
            pass
    except OSError:
        raise UserError(f"{what} {path}: cannot be written, {folder} is no directory that you may write to; choose another place") from None


# ---------------------------------------------------------------- atomic writes


def fsync_path(path: str | Path) -> None:
    """Makes the content of a file, or the entries of a directory, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary file that replaces ``path`` when the block succeeds; after an error ``path`` is as before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_path(path.parent)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Writes a value as JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yields a temporary directory that replaces ``path``, synced, when the block succeeds; after an error ``path`` is as before."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.previous")
    try:
        if previous.exists() and not path.exists():  # killed between the two renames below
            previous.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
        partial.mkdir()
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            fsync_path(entry)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        fsync_path(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise _cannot_be_written(path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cannot_be_written(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: could not be written ({error.strerror}); free some space or choose another place and run again")


@contextmanager
def disk_full_as_user_error(path: str | Path) -> Iterator[None]:
    """Turns what safetensors and torch raise on a full disk into a UserError; an OSError has its own line already."""
    try:
        yield
    except (OSError, UserError):
        raise
    except Exception as error:
        raise UserError(
            f"{path}: could not be written; is the disk full? ({first_line(error)}); free some space and run again to resume"
        ) from None
