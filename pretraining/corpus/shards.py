"""The shard format: text + reference files -> cached rows of tokens.

A shard is a directory ``<data_cache_dir>/<name of the text file>/`` with ``data.arrow``, lists of max_seq_length - 2 content tokens
(only the last list of a file is shorter), and ``shard.json``, the fingerprint of all that made it. Any difference rebuilds it.
The rows of a corpus go across the ends of its shards; see rows.py.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from tqdm import tqdm

from pretraining.corpus.files import (
    TextAndRefs,
    atomic_directory,
    check_lines,
    file_facts,
    read_json,
    read_lines,
    require_file,
    require_writable_place,
    sidecar_of,
)
from pretraining.corpus.known_files import CLOCK_STEP, KnownFiles
from pretraining.corpus.rows import Piece, Rows, read_pieces, rows_are_valid
from pretraining.corpus.tokenizer import tokenizer_sha256
from pretraining.corpus.tokens import find_pieces, read_token_blocks
from pretraining.utils import UserError, progress_bar

FORMAT = 1
LINES = "lines"  # the check that a file has the lines of a text


@dataclass
class ShardSpec:
    """What the shards of all files have in common, and what is known of the files.

    Attributes:
        cache_dir: where the shards are kept.
        max_seq_length: tokens of a sample, [CLS] and [SEP] included.
        tokenizer: transformers.BertTokenizer.
        read_since: files that were read before this time (seconds since 1970) are read and checked again; 0: where they have changed.
    """

    cache_dir: str | Path
    max_seq_length: int
    tokenizer: Any
    read_since: float = 0.0

    def __post_init__(self) -> None:
        self.known = KnownFiles(self.cache_dir, self.read_since)

    def directory(self, file: TextAndRefs) -> Path:
        """The directory of a file's shard."""
        return Path(self.cache_dir) / file.text.stem

    @cached_property
    def is_piece(self) -> np.ndarray:
        """See :func:`tokens.find_pieces`."""
        return find_pieces(self.tokenizer)

    @property
    def content_length(self) -> int:
        """Tokens of a row."""
        return self.max_seq_length - 2

    @property
    def schema(self) -> pa.Schema:
        """``input_ids``: lists of the smallest unsigned integer that holds the vocabulary; ``continues``: lists of bool."""
        id_type = pa.from_numpy_dtype(np.min_scalar_type(len(self.tokenizer) - 1))
        return pa.schema([("input_ids", pa.list_(id_type)), ("continues", pa.list_(pa.bool_()))])


def load_shards(
    files: list[TextAndRefs],
    spec: ShardSpec,
    descriptions: list[dict] | None = None,
    num_workers: int = 1,
    progress: bool = True,
    *,
    fill_last_row: bool = True,
) -> Rows:
    """Returns the rows of all files, in order; builds the shards that are missing or out of date.

    Args:
        files: from :func:`files.read_data_json`.
        descriptions: from :func:`describe_shards`, if the caller has them already.
        num_workers: threads that tokenise; rows and bytes are the same for any number.
        fill_last_row: with the first tokens of the corpus, for training; an evaluation should count no token twice.

    Raises:
        UserError: a file is missing, the text and its reference file do not belong together, or there is no text at all.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_workers))  # the tokenizer's thread pool, read at its first use
    if descriptions is None:
        descriptions = describe_shards(files, spec)
    found = _find_shards(files, spec, descriptions)
    lines = sum(description["lines"] for description, shard in zip(descriptions, found) if shard is None)
    pieces: list[Piece] = []
    with progress_bar(total=lines, desc="shards", unit=" lines", unit_scale=True, disable=not (progress and lines)) as bar:
        for file, description, shard in zip(files, descriptions, found):
            pieces += _build_or_open(file, spec, description, bar) if shard is None else shard
    if lines:
        spec.known.remember()
    if not pieces:
        raise _no_text(files)
    return Rows(pieces, spec.content_length, fill_last_row)


# ---------------------------------------------------------------- what a shard is made of


def describe_shards(files: list[TextAndRefs], spec: ShardSpec) -> list[dict]:
    """Describes all that decides the content of each shard. Checks what can be checked without building one.

    Raises:
        UserError: as :func:`load_shards`, except for references that do not fit their line.
    """
    spec.tokenizer.backend_tokenizer.no_truncation()  # an earlier user of the tokenizer may have left these on
    spec.tokenizer.backend_tokenizer.no_padding()
    for file in files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
        if _is_foreign(spec.directory(file)):
            require_writable_place(spec.cache_dir, "--data_cache_dir")
            raise UserError(
                f"{spec.directory(file)}: is no shard, but the shard of {file.text} belongs here; choose another --data_cache_dir"
            )
    known = spec.known
    if unknown := [path for file in files for path in file if not known.knows(path)]:
        with known.learning():
            for path in tqdm(unknown, desc="reading texts and references", unit=" files", leave=False, delay=2):
                known.facts(path)
    tokenizer_sha = tokenizer_sha256(spec.tokenizer)
    descriptions = [_describe(file, spec, tokenizer_sha) for file in files]
    shards = [_read_current(spec.directory(file), description) for file, description in zip(files, descriptions)]
    if outdated := [file for file, stored in zip(files, shards) if not stored]:
        require_writable_place(spec.cache_dir, "--data_cache_dir")
        _check_lines(outdated, spec)
    has_tokens = any(stored and stored.get("tokens") for stored in shards)
    if not has_tokens and not any(line.strip() for file in files for line in read_lines(file.text)):
        raise _no_text(files)
    return descriptions


def _check_lines(files: list[TextAndRefs], spec: ShardSpec) -> None:
    """Checks what a shard is to be built of."""
    known, texts = spec.known, {file.text for file in files}
    if unchecked := [path for file in files for path in file if not known.knows(path, LINES)]:
        with known.learning():
            for path in unchecked:
                if not known.knows(path, LINES):
                    check_lines(path, is_text=path in texts)
                    known.note(path, LINES)


def data_fingerprint(descriptions: list[dict]) -> str:
    """One hex string for all that :func:`describe_shards` returns.

    Rows that go across the ends of files came later than shards. A corpus of one file has the same rows as before them, so it keeps
    its fingerprint.
    """
    rows = "rows across files" if len(descriptions) > 1 else ""
    return hashlib.sha256("".join([*map(_sha256_of, descriptions), rows]).encode()).hexdigest()


def _describe(file: TextAndRefs, spec: ShardSpec, tokenizer_sha: str) -> dict:
    """All that decides the content of a shard; also checks that text and references belong together."""
    text, refs = spec.known.facts(file.text), spec.known.facts(file.refs)
    if text.lines != refs.lines:
        raise UserError(f"{file.refs}: has {refs.lines} lines, its text {file.text} {text.lines}; make it again with run_chinese_ref.py")
    sidecar = sidecar_of(file.refs)
    if sidecar.is_file():
        noted = read_json(sidecar, "what run_chinese_ref.py noted")
        if noted.get("text_sha256") != text.sha256:
            raise UserError(f"{file.refs}: was made from another content of {file.text}; make it again with run_chinese_ref.py")
        if noted.get("tokenizer_sha256") != tokenizer_sha:
            raise UserError(f"{file.refs}: was made for another vocabulary; make it again with run_chinese_ref.py and this one as --bert")
        if noted.get("refs_sha256") != refs.sha256:
            raise UserError(f"{file.refs}: is not what run_chinese_ref.py wrote; make it again, or remove {sidecar} to use it as it is")
    return {
        "format": FORMAT,
        "text": text.sha256,
        "lines": text.lines,
        "refs": refs.sha256,
        "tokenizer": tokenizer_sha,
        "max_seq_length": spec.max_seq_length,
    }


def _sha256_of(description: dict) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _no_text(files: list[TextAndRefs]) -> UserError:
    return UserError(f"{', '.join(str(file.text) for file in files)}: no text in them, so there is nothing to train on")


# ---------------------------------------------------------------- what lies on disk


def _is_foreign(directory: Path) -> bool:
    """True if something lies there that is no shard."""
    try:
        return not set(os.listdir(directory)) <= {"data.arrow", "shard.json"}
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def _read_current(directory: Path, description: dict) -> dict | None:
    """What shard.json says, if the shard was made from what is described, by the size of its file; see :func:`_is_intact`."""
    try:
        stored = read_json(directory / "shard.json", "the shard's description")
        is_whole = stored.get("bytes") == (directory / "data.arrow").stat().st_size
    except (UserError, OSError):  # does not exist, or another process is replacing it
        return None
    return stored if is_whole and stored.get("fingerprint") == _sha256_of(description) else None


def _is_intact(data: Path, stored: dict, spec: ShardSpec) -> bool:
    """True if the rows of a current shard are, bit by bit, those that were written, and are rows of this vocabulary and length."""
    try:
        if stored.get("sha256") != spec.known.facts(data).sha256:
            return False
        if not spec.known.knows(data, _rows_check(spec)):
            if not rows_are_valid(data, spec.schema, len(spec.tokenizer), spec.content_length):
                return False
            spec.known.note(data, _rows_check(spec))
        return True
    except (UserError, OSError, pa.ArrowException):
        return False


def _rows_check(spec: ShardSpec) -> str:
    return f"rows of {spec.content_length} tokens out of {len(spec.tokenizer)}"


def _find_shards(files: list[TextAndRefs], spec: ShardSpec, descriptions: list[dict]) -> list[list[Piece] | None]:
    """The tokens of each shard that is current and intact, None for the others; one process of the machine reads what is not known."""
    candidates = [
        (spec.directory(file) / "data.arrow", _read_current(spec.directory(file), what)) for file, what in zip(files, descriptions)
    ]
    unknown = [(data, stored) for data, stored in candidates if stored and not spec.known.knows(data, _rows_check(spec))]
    if unknown:
        with spec.known.learning():
            for data, stored in tqdm(unknown, desc="checking shards", unit=" files", leave=False, delay=2):
                _is_intact(data, stored, spec)
    return [_open_shard(data, stored, spec) if stored else None for data, stored in candidates]


def _open_shard(data: Path, stored: dict, spec: ShardSpec) -> list[Piece] | None:
    """The tokens of a current shard if it is intact; a later rebuild does not change them."""
    if not _is_intact(data, stored, spec):
        return None
    try:
        pieces = read_pieces(data)
    except (OSError, pa.ArrowException):
        return None
    return pieces if _is_intact(data, stored, spec) else None  # another process may just have replaced it


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a shard's directory. Its file stays: if it were removed, two processes could hold locks of the same name."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{directory.name}.lock"):
        yield


# ---------------------------------------------------------------- building


def _build_or_open(file: TextAndRefs, spec: ShardSpec, description: dict, bar: tqdm) -> list[Piece]:
    """The tokens of a shard that was not there before; one of several processes builds it, the others wait and read."""
    data = spec.directory(file) / "data.arrow"
    with _locked(data.parent):
        stored = _read_current(data.parent, description)
        pieces = _open_shard(data, stored, spec) if stored else None
        if pieces is None:
            _build(file, spec, description, bar)
            return read_pieces(data)
    bar.update(description["lines"])
    return pieces


def _build(file: TextAndRefs, spec: ShardSpec, description: dict, bar: tqdm) -> None:
    directory = spec.directory(file)
    bar.set_postfix_str(directory.name, refresh=False)
    with atomic_directory(directory) as partial:
        data = partial / "data.arrow"
        with pa.OSFile(str(data), "wb") as sink:
            counts = _write_rows(file, spec, sink, report=bar.update)
        facts = file_facts(data)
        stored = {"fingerprint": _sha256_of(description), **description, **counts, "bytes": data.stat().st_size, "sha256": facts.sha256}
        (partial / "shard.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
        past = data.stat().st_mtime_ns - round(2e9 * CLOCK_STEP)
        os.utime(data, ns=(past, past))  # if it is changed in the next second, its time tells
    spec.known.put(directory / "data.arrow", facts)
    spec.known.note(directory / "data.arrow", _rows_check(spec))


def _write_rows(file: TextAndRefs, spec: ShardSpec, sink: pa.NativeFile, report: Any) -> dict[str, int]:
    """Writes the tokens of a file in rows of ``max_seq_length - 2``; returns how many rows and tokens."""
    length = spec.content_length
    ids = np.empty(0, spec.schema.field("input_ids").type.value_type.to_pandas_dtype())
    flags = np.empty(0, bool)
    rows = tokens = 0
    with pa.ipc.new_stream(sink, spec.schema) as writer:
        for block in read_token_blocks(file, spec.tokenizer, spec.is_piece):
            ids = np.concatenate([ids, block.ids.astype(ids.dtype)])
            flags = np.concatenate([flags, block.continues])
            if not rows:
                flags[:1] = False  # the first token of a file continues no word of another file
            full = len(ids) // length * length
            if full:
                writer.write_batch(_record_batch(spec.schema, ids[:full], flags[:full], length))
            rows, tokens = rows + full // length, tokens + full
            ids, flags = ids[full:], flags[full:]
            report(block.lines)
        if len(ids):
            writer.write_batch(_record_batch(spec.schema, ids, flags, length))
            rows, tokens = rows + 1, tokens + len(ids)
    return {"rows": rows, "tokens": tokens}


def _record_batch(schema: pa.Schema, ids: np.ndarray, flags: np.ndarray, length: int) -> pa.RecordBatch:
    offsets = pa.array(np.append(np.arange(0, len(ids), length), len(ids)).astype(np.int32))
    columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, flags)]
    return pa.record_batch(columns, schema=schema)
