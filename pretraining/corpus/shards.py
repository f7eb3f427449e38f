"""The shard format: text + reference files -> cached rows of tokens.

A shard is a directory ``<data_cache_dir>/<name of the text file>/`` with ``data.arrow``, rows of max_seq_length - 2 content tokens
(only the last row of a file is shorter), and ``shard.json``, the fingerprint of all that made it. Any difference rebuilds it.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from filelock import FileLock

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
from pretraining.corpus.tokenizer import tokenizer_sha256
from pretraining.corpus.tokens import read_token_blocks
from pretraining.utils import UserError, progress_bar

FORMAT = 1


class ShardSpec(NamedTuple):
    """What the shards of all files have in common.

    Attributes:
        cache_dir: where the shards are kept.
        max_seq_length: tokens of a sample, [CLS] and [SEP] included.
        tokenizer: transformers.BertTokenizer.
    """

    cache_dir: str | Path
    max_seq_length: int
    tokenizer: Any

    def directory(self, file: TextAndRefs) -> Path:
        """The directory of a file's shard."""
        return Path(self.cache_dir) / file.text.stem

    @property
    def schema(self) -> pa.Schema:
        """``input_ids``: lists of the smallest unsigned integer that holds the vocabulary; ``continues``: lists of bool."""
        id_type = pa.from_numpy_dtype(np.min_scalar_type(len(self.tokenizer) - 1))
        return pa.schema([("input_ids", pa.list_(id_type)), ("continues", pa.list_(pa.bool_()))])


def load_shards(
    files: list[TextAndRefs], spec: ShardSpec, descriptions: list[dict] | None = None, num_workers: int = 1, progress: bool = True
) -> Any:
    """Returns the rows of all files, in order; builds the shards that are missing or out of date.

    Args:
        files: from :func:`files.read_data_json`.
        descriptions: from :func:`describe_shards`, if the caller has them already.
        num_workers: threads that tokenise; rows and bytes are the same for any number.

    Returns:
        a datasets.Dataset with the columns ``input_ids`` and ``continues`` (the token continues the word before it), read as NumPy arrays.

    Raises:
        UserError: a file is missing, the text and its reference file do not belong together, or there is no text at all.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_workers))  # the tokenizer's thread pool, read at its first use
    if descriptions is None:
        descriptions = describe_shards(files, spec)

    from datasets import Dataset, concatenate_datasets  # takes a second to import; the checks above come first

    shards = []
    for file, description in zip(files, descriptions):
        directory, fingerprint = spec.directory(file), _sha256_of(description)
        is_usable = _is_current(directory, fingerprint) and _is_intact(directory, spec.schema)
        with _locked(directory):  # one of several processes builds, the others wait and read
            if not _is_current(directory, fingerprint) or not (is_usable or _is_intact(directory, spec.schema)):
                _build(file, spec, description, progress)
            shards.append(Dataset.from_file(str(directory / "data.arrow")))  # a later rebuild does not change a mapped file
    if not any(map(len, shards)):
        raise _no_text(files)
    return concatenate_datasets(shards).with_format("numpy")


# ---------------------------------------------------------------- what a shard is made of


def describe_shards(files: list[TextAndRefs], spec: ShardSpec) -> list[dict]:
    """Describes all that decides the content of each shard. Checks what can be checked without building one; writes nothing.

    Raises:
        UserError: as :func:`load_shards`, except for references that do not fit their line.
    """
    spec.tokenizer.backend_tokenizer.no_truncation()  # an earlier user of the tokenizer may have left these on
    spec.tokenizer.backend_tokenizer.no_padding()
    for file in files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    descriptions = [_describe(file, spec) for file in files]
    for file, description in zip(files, descriptions):
        directory = spec.directory(file)
        if _is_current(directory, _sha256_of(description)):
            continue
        require_writable_place(spec.cache_dir, "--data_cache_dir")
        if _is_foreign(directory):
            raise UserError(f"{directory}: is no shard, but the shard of {file.text} belongs here; choose another --data_cache_dir")
        check_lines(file.text, is_text=True)
        check_lines(file.refs)
    if not any(line.strip() for file in files for line in read_lines(file.text)):
        raise _no_text(files)
    return descriptions


def data_fingerprint(descriptions: list[dict]) -> str:
    """One hex string for all that :func:`describe_shards` returns."""
    return hashlib.sha256("".join(map(_sha256_of, descriptions)).encode()).hexdigest()


def _describe(file: TextAndRefs, spec: ShardSpec) -> dict:
    """All that decides the content of a shard; also checks that text and references belong together."""
    text, refs = file_facts(file.text), file_facts(file.refs)
    if text.lines != refs.lines:
        raise UserError(f"{file.refs}: has {refs.lines} lines, its text {file.text} {text.lines}; make it again with run_chinese_ref.py")
    sidecar, tokenizer_sha = sidecar_of(file.refs), tokenizer_sha256(spec.tokenizer)
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


def _is_current(directory: Path, fingerprint: str) -> bool:
    """True if the shard was made from what ``fingerprint`` stands for, by the size of its file; see :func:`_is_intact`."""
    try:
        stored = read_json(directory / "shard.json", "the shard's description")
        return stored.get("fingerprint") == fingerprint and stored.get("bytes") == (directory / "data.arrow").stat().st_size
    except (UserError, OSError):  # does not exist, or another process is replacing it
        return False


def _is_intact(directory: Path, schema: pa.Schema) -> bool:
    """True if the rows of a current shard are, bit by bit, those that were written, and of the right types."""
    data = directory / "data.arrow"
    try:
        if read_json(directory / "shard.json", "the shard's description").get("sha256") != file_facts(data).sha256:
            return False
        with pa.memory_map(str(data)) as source, pa.ipc.open_stream(source) as reader:
            if not reader.schema.equals(schema, check_metadata=True):
                return False
            reader.read_all().validate(full=True)  # the rows of a stranger's file may point outside of it
        return True
    except (UserError, OSError, pa.ArrowException):
        return False


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds the lock of a shard's directory. Its file stays: if it were removed, two processes could hold locks of the same name."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{directory.name}.lock"):
        yield


# ---------------------------------------------------------------- building


def _build(file: TextAndRefs, spec: ShardSpec, description: dict, progress: bool) -> None:
    directory = spec.directory(file)
    bar_settings = {"total": description["lines"], "desc": f"shard {directory.name}", "unit": " lines", "unit_scale": True}
    with atomic_directory(directory) as partial:
        data = partial / "data.arrow"
        with pa.OSFile(str(data), "wb") as sink, progress_bar(**bar_settings, disable=not progress) as bar:
            counts = _write_rows(file, spec, sink, report=bar.update)
        written = {**counts, "bytes": data.stat().st_size, "sha256": file_facts(data).sha256}
        stored = {"fingerprint": _sha256_of(description), **description, **written}
        (partial / "shard.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def _write_rows(file: TextAndRefs, spec: ShardSpec, sink: pa.NativeFile, report: Any) -> dict[str, int]:
    """Writes the tokens of a file in rows of ``max_seq_length - 2``; returns how many rows and tokens."""
    length = spec.max_seq_length - 2
    ids = np.empty(0, spec.schema.field("input_ids").type.value_type.to_pandas_dtype())
    flags = np.empty(0, bool)
    rows = tokens = 0
    with pa.ipc.new_stream(sink, spec.schema) as writer:
        for block in read_token_blocks(file, spec.tokenizer):
            ids = np.concatenate([ids, block.ids.astype(ids.dtype)])
            flags = np.concatenate([flags, block.continues])
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
