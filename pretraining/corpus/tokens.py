"""Text + references -> flat token ids, with a flag for each token that continues a word."""

import json
from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from pretraining.corpus.files import TextAndRefs, read_line_blocks
from pretraining.corpus.parts import WHOLE, Part
from pretraining.utils import UserError


class TokenBlock(NamedTuple):
    """The tokens of a few thousand lines, one line after the other, without [CLS] and [SEP].

    Attributes:
        ids: (tokens,) int64.
        continues: (tokens,) bool; the token continues the word of the token before it.
        lines: how many lines these are.
    """

    ids: np.ndarray
    continues: np.ndarray
    lines: int


def find_pieces(tokenizer: Any) -> np.ndarray:
    """(vocabulary,) bool: the token is a ``##`` piece, which continues a word."""
    is_piece = np.zeros(len(tokenizer), dtype=bool)
    is_piece[[number for token, number in tokenizer.get_vocab().items() if token.startswith("##")]] = True
    return is_piece


def read_token_blocks(
    file: TextAndRefs, tokenizer: Any, is_piece: np.ndarray, text: Part = WHOLE, refs: Part = WHOLE
) -> Iterator[TokenBlock]:
    """Yields the tokens of a text, or of a part of it, in order.

    Args:
        is_piece: from :func:`find_pieces`.
        text, refs: the part of the text and that of its reference file.

    Raises:
        UserError: a reference line does not fit its text line.
    """
    backend = tokenizer.backend_tokenizer
    ref_lines, first_line = _LineReader(file, refs), text.first_line
    for lines in read_line_blocks(file.text, text.start, text.size, text.first_line):
        encodings = [encoding.ids for encoding in backend.encode_batch_fast(lines, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encodings), np.int64, len(lines))
        ids = np.fromiter(chain.from_iterable(encodings), np.int64, int(lengths.sum()))
        continues = is_piece[ids]
        continues[_continuation_indices(file, ref_lines.take(len(lines)), lengths, first_line)] = True
        yield TokenBlock(ids, continues, len(lines))
        first_line += len(lines)


class _LineReader:
    """Hands out the lines of a reference file, as many as the caller asks for."""

    def __init__(self, file: TextAndRefs, part: Part):
        self.file = file
        self.blocks = read_line_blocks(file.refs, part.start, part.size, part.first_line)
        self.lines: list[str] = []

    def take(self, count: int) -> list[str]:
        while len(self.lines) < count:
            block = next(self.blocks, None)
            if block is None:
                raise UserError(f"{self.file.refs}: has fewer lines than {self.file.text}; make it again with run_chinese_ref.py")
            self.lines += block
        taken, self.lines = self.lines[:count], self.lines[count:]
        return taken


def _continuation_indices(file: TextAndRefs, ref_lines: list[str], lengths: np.ndarray, first_line: int) -> np.ndarray:
    """Converts references to indices into the flat tokens of a block; int64.

    Args:
        ref_lines: JSON lists of positions; [CLS] is position 0.
        lengths: (lines,) int64; tokens of each line without [CLS] and [SEP].
    """
    refs = _parse(ref_lines)
    if refs is None:
        raise _explain(file, ref_lines, lengths, first_line)
    counts = np.fromiter(map(len, refs), np.int64, len(refs))
    try:
        positions = np.fromiter(chain.from_iterable(refs), np.int64, int(counts.sum()))
    except OverflowError:
        raise _explain(file, ref_lines, lengths, first_line) from None
    line = np.repeat(np.arange(len(refs)), counts)
    is_sorted = (np.diff(positions) > 0) | (np.diff(line) > 0)
    if not (((positions >= 2) & (positions <= lengths[line])).all() and is_sorted.all()):
        raise _explain(file, ref_lines, lengths, first_line)
    first_token = np.cumsum(lengths) - lengths
    return positions - 1 + first_token[line]


def _parse(ref_lines: list[str]) -> list[list[int]] | None:
    """All lines in one call of the JSON parser; None if a line is wrong."""
    try:
        refs = json.loads(f"[{','.join(ref_lines)}]")
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        return None
    if len(refs) != len(ref_lines) or any(line[:1] + line[-1:] != "[]" for line in map(str.strip, ref_lines)):
        return None
    all_lists = set(map(type, refs)) <= {list}
    return refs if all_lists and set(map(type, chain.from_iterable(refs))) <= {int} else None


def _explain(file: TextAndRefs, ref_lines: list[str], lengths: np.ndarray, first_line: int) -> UserError:
    """The error for the first wrong line of ``ref_lines``."""
    for number, (text, length) in enumerate(zip(ref_lines, lengths), first_line):
        try:
            ref = json.loads(text)
        except (ValueError, RecursionError):
            ref = None
        if not isinstance(ref, list):
            wrong = "is not a JSON list of positions"
        elif any(type(position) is not int for position in ref):
            wrong = "holds something that is not an integer"
        elif any(position < 2 or position > length for position in ref):
            outside = next(position for position in ref if position < 2 or position > length)
            wrong = f"position {outside} lies outside the line's tokens that can continue a word (2 to {length})"
        elif any(left >= right for left, right in zip(ref, ref[1:])):
            wrong = "its positions do not rise"
        else:
            continue
        return UserError(f"{file.refs}:{number}: {wrong}; make it again with run_chinese_ref.py and the same vocabulary as here")
    raise AssertionError("called without a wrong line")
