"""The shard format: what lies on disk for a text, and whether it is current and intact.

The shard of a text is a directory ``<data_cache_dir>/<name of the text file>/`` with ``data.arrow``, lists of max_seq_length - 2 content
tokens (only the last list is shorter), and ``shard.json``, the fingerprint of all that made it. A text of several parts (parts.py) has
directories ``00000/``, ``00001/``, ... with these two files each, and a ``shard.json`` that lists them. Any difference rebuilds a part.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pretraining.corpus.files import TextAndRefs, read_json
from pretraining.corpus.known_files import KnownFiles
from pretraining.corpus.rows import Piece, read_pieces, rows_are_valid
from pretraining.corpus.tokens import find_pieces
from pretraining.utils import UserError

FORMAT = 1
OWN_NAMES = re.compile(r"data\.arrow|(\.)?shard\.json(?(1)\.partial)|\.?\d{5}(\.(lock|partial|previous))?")


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

    def __getstate__(self) -> dict[str, Any]:
        """For workers, which read only what the command has checked."""
        return {name: value for name, value in vars(self).items() if name != "known"}

    def directory(self, file: TextAndRefs) -> Path:
        """The directory of a file's shard."""
        return Path(self.cache_dir) / file.text.stem

    def part_directory(self, file: TextAndRefs, number: int, parts: int) -> Path:
        """The directory of a part's shard."""
        return self.directory(file) if parts == 1 else self.directory(file) / f"{number:05d}"

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

    @property
    def rows_check(self) -> str:
        """The name of the check that ``data.arrow`` holds rows of this length and vocabulary."""
        return f"rows of {self.content_length} tokens out of {len(self.tokenizer)}"


def sha256_of(description: dict[str, Any]) -> str:
    """The fingerprint (hex) of a shard, from all that decides its content."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def is_foreign(directory: Path) -> bool:
    """True if something lies there that is no shard."""
    try:
        return not all(map(OWN_NAMES.fullmatch, os.listdir(directory)))
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def read_current(directory: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """What shard.json says, if the shard was made from what is described, by the size of its files; see :func:`is_intact`."""
    try:
        stored = read_json(directory / "shard.json", "the shard's description")
        is_whole = all(data.stat().st_size == part["bytes"] for data, part in data_files(directory, stored))
    except (UserError, OSError, KeyError, TypeError):  # does not exist, is damaged, or another process is replacing it
        return None
    return stored if is_whole and stored.get("fingerprint") == sha256_of(description) else None


def data_files(directory: Path, stored: dict[str, Any]) -> list[tuple[Path, dict[str, Any]]]:
    """The data files of a shard, and what shard.json says of each: ``bytes``, ``sha256`` and ``tokens``."""
    if "parts" not in stored:
        return [(directory / "data.arrow", stored)]
    return [(directory / f"{number:05d}" / "data.arrow", part) for number, part in enumerate(stored["parts"])]


def is_intact(data: Path, stored: dict[str, Any], spec: ShardSpec) -> bool:
    """True if the rows of a data file are, bit by bit, those that were written, and are rows of this vocabulary and length."""
    try:
        if stored.get("sha256") != spec.known.facts(data).sha256:
            return False
        if not spec.known.knows(data, spec.rows_check):
            if not rows_are_valid(data, spec.schema, len(spec.tokenizer), spec.content_length):
                return False
            spec.known.note(data, spec.rows_check)
        return True
    except (UserError, OSError, pa.ArrowException):
        return False


def open_data(data: Path, stored: dict[str, Any], spec: ShardSpec) -> list[Piece] | None:
    """The tokens of a data file if it is intact; a later rebuild does not change them."""
    if not is_intact(data, stored, spec):
        return None
    try:
        pieces = read_pieces(data)
    except (OSError, pa.ArrowException):
        return None
    return pieces if is_intact(data, stored, spec) else None  # another process may just have replaced it


def open_all(files: Iterable[tuple[Path, dict[str, Any]]], spec: ShardSpec) -> list[Piece] | None:
    """The tokens of several data files in order; None if one of them is damaged."""
    pieces: list[Piece] = []
    for data, stored in files:
        opened = open_data(data, stored, spec)
        if opened is None:
            return None
        pieces += opened
    return pieces
