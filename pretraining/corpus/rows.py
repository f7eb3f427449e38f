"""Shards -> the rows of a corpus: the tokens of all its files, one after the other, cut into samples of one length."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa


class Piece(NamedTuple):
    """Consecutive tokens of a shard, mapped from its file: nothing is read before it is used.

    Attributes:
        ids: (tokens,) the smallest unsigned integer that holds the vocabulary.
        flags: (bytes,) uint8; from bit ``first_bit``, lowest bits first, one bit for each token: it continues the word before it.
    """

    ids: np.ndarray
    flags: np.ndarray
    first_bit: int

    def continues(self, start: int, stop: int) -> np.ndarray:
        """The flags of tokens ``start`` to ``stop``: (stop - start,) bool."""
        first, last = self.first_bit + start, self.first_bit + stop
        bits = np.unpackbits(self.flags[first // 8 : (last + 7) // 8], bitorder="little")
        return bits[first % 8 : first % 8 + stop - start].view(bool)


class Rows:
    """The rows of a corpus, read as ``rows[[3, 0, 7]]``.

    The rows depend only on the tokens, not on their division into files: 2,000 short files have the rows of one long file.

    Args:
        pieces: of all shards in order, none of them empty; at least one.
        length: tokens of a row.
        fill: fill the last row with the first tokens of the corpus, again and again if it is shorter than a row; else that row is short.

    Attributes:
        tokens: of the corpus; those that fill the last row do not count.
    """

    def __init__(self, pieces: list[Piece], length: int, fill: bool):
        self.pieces, self.length, self.fill = pieces, length, fill
        self.ends = np.cumsum([len(piece.ids) for piece in pieces])
        self.tokens = int(self.ends[-1])

    def __len__(self) -> int:
        return -(-self.tokens // self.length)

    def __getitem__(self, indices: list[int]) -> dict[str, np.ndarray | list[np.ndarray]]:
        """Reads rows.

        Returns:
            ``input_ids``, unsigned integers, and ``continues``, bool: (rows, length) each, or lists of rows if one of them is short.
        """
        ids = np.empty((len(indices), self.length), self.pieces[0].ids.dtype)
        continues = np.empty(ids.shape, bool)
        starts = np.array(indices, np.int64) * self.length
        if len(indices) and not 0 <= starts.min() <= starts.max() < self.tokens:
            raise IndexError(f"rows {min(indices)} to {max(indices)} of {len(self)}")
        for row, (start, piece) in enumerate(zip(starts.tolist(), np.searchsorted(self.ends, starts, side="right").tolist())):
            self._read(start, piece, ids[row], continues[row])
        lengths = np.minimum(self.tokens - starts, self.length)
        if self.fill or (lengths == self.length).all():
            return {"input_ids": ids, "continues": continues}
        return {
            name: [row[:length] for row, length in zip(array, lengths)] for name, array in (("input_ids", ids), ("continues", continues))
        }

    def _read(self, start: int, number: int, ids: np.ndarray, continues: np.ndarray) -> None:
        """Fills a row from token ``start`` of the corpus, which is in piece ``number``; after the last token comes the first."""
        piece, done = self.pieces[number], 0
        start -= int(self.ends[number]) - len(piece.ids)
        while True:
            stop = min(len(piece.ids), start + len(ids) - done)
            end = done + stop - start
            ids[done:end], continues[done:end] = piece.ids[start:stop], piece.continues(start, stop)
            if end == len(ids):
                return
            number, start, done = (number + 1) % len(self.pieces), 0, end
            piece = self.pieces[number]


# ---------------------------------------------------------------- the file of a shard


@contextmanager
def _record_batches(path: Path) -> Iterator[pa.RecordBatchReader]:
    with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
        yield reader


def read_pieces(path: Path) -> list[Piece]:
    """Maps the tokens of a shard; the mapping outlives the file's name.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read.
    """
    with _record_batches(path) as batches:
        return [_piece(batch) for batch in batches]


def _piece(batch: pa.RecordBatch) -> Piece:
    ids, flags = (column.values for column in batch.columns)
    return Piece(ids.to_numpy(), np.frombuffer(flags.buffers()[1], np.uint8), flags.offset)


def rows_are_valid(path: Path, schema: pa.Schema, vocabulary: int, length: int) -> bool:
    """Checks all that a stranger could have put into a shard, one record batch after the other, without a copy of it.

    Args:
        schema: the only one that is right.
        vocabulary: every id must be below it.
        length: tokens of each row; only the last of all may be shorter.

    Raises:
        OSError, pyarrow.ArrowException: the file cannot be read.
    """
    is_open = True  # no short row yet
    with _record_batches(path) as batches:
        if not batches.schema.equals(schema, check_metadata=True):
            return False
        for number, batch in enumerate(batches):
            batch.validate(full=True)  # offsets may point outside the file
            if not is_open or not _has_rows(batch, length) or int(_piece(batch).ids.max()) >= vocabulary:
                return False
            if number == 0 and _piece(batch).continues(0, 1)[0]:  # it would continue a word of another file
                return False
            is_open = len(batch.column(0).values) % length == 0
    return True


def _has_rows(batch: pa.RecordBatch, length: int) -> bool:
    """True if both columns are the same rows of ``length`` tokens, the last of which may be shorter, without nulls."""
    tokens = len(batch.column(0).values)
    offsets = np.minimum(np.arange(-(-tokens // length) + 1) * length, tokens)
    return tokens > 0 and all(
        column.null_count == column.values.null_count == 0
        and len(column.values) == tokens
        and np.array_equal(column.offsets.to_numpy(), offsets)
        for column in batch.columns
    )
