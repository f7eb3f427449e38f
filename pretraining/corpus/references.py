"""Words -> the positions of the BERT tokens that continue a word."""

import sys
from itertools import chain
from typing import Any

import numpy as np

from pretraining.corpus.tokenizer import CHINESE_RANGES


class ReferenceFinder:
    """Maps words to the BERT tokens that continue them.

    Args:
        tokenizer: transformers.BertTokenizer. Its truncation and padding are switched off.
    """

    OTHER, CHINESE, SPACE = range(3)

    def __init__(self, tokenizer: Any):
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.kinds = np.full(sys.maxunicode + 1, self.OTHER, np.uint8)
        for first, last in CHINESE_RANGES:
            self.kinds[first : last + 1] = self.CHINESE
        self.kinds[[code for code in range(0x3001) if chr(code).isspace()]] = self.SPACE  # U+3000 is the last one
        self.is_chinese = np.zeros(self.backend.get_vocab_size(), bool)  # by token: it is one Chinese character, so not [UNK]
        for token, number in self.backend.get_vocab().items():
            self.is_chinese[number] = len(token) == 1 and self.kinds[ord(token)] == self.CHINESE

    def __call__(self, lines: list[str], words: list[str]) -> list[list[int]]:
        """Finds the tokens that continue a word.

        Args:
            words: the words of all lines, in order; joined, they are the lines joined (see ``segmenter.words_of``).

        Returns:
            for each line the positions of the tokens that continue a word; [CLS] is position 0.
        """
        codes = np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32)
        if not len(codes):
            return [[] for _ in lines]
        kinds = self.kinds[codes]
        line_ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))
        token_at = self._token_at(lines, np.flatnonzero(kinds == self.CHINESE), line_ends)

        word_ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        begins = np.zeros(len(codes), bool)
        begins[0] = True
        begins[word_ends[:-1]] = True
        is_space = kinds == self.SPACE  # LTP leaves white space inside words
        begins[1:] |= is_space[1:] | is_space[:-1]
        first = np.flatnonzero(begins)
        is_whole = np.logical_and.reduceat(token_at >= 0, first)
        continues = np.repeat(is_whole, np.diff(first, append=len(codes))) & ~begins

        positions = token_at[continues].tolist()
        last = np.append(0, np.cumsum(continues))[line_ends].tolist()
        return [positions[start:end] for start, end in zip([0, *last], last)]

    def _token_at(self, lines: list[str], chinese: np.ndarray, line_ends: np.ndarray) -> np.ndarray:
        """Maps the characters of a batch of lines to tokens.

        BERT's tokenizer makes each Chinese character a token. A line with as many Chinese tokens as Chinese characters therefore
        maps them in order. Only the other lines need the offsets, which take longer to compute.

        Args:
            chinese: (Chinese characters,) int64; their indices among the characters of all lines.
            line_ends: (lines,) int64; the index behind the last character of each line.

        Returns:
            (characters,) int64: the position within its line of the token that is this Chinese character, or -1.
        """
        encodings = self.backend.encode_batch_fast(lines)
        lengths = np.fromiter(map(len, encodings), np.int64, len(lines))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64, lengths.sum())
        tokens = np.flatnonzero(self.is_chinese[ids])
        token_ends = np.cumsum(lengths)
        line_of_token = np.searchsorted(token_ends, tokens, side="right")
        line_of_character = np.searchsorted(line_ends, chinese, side="right")
        is_plain = np.bincount(line_of_token, minlength=len(lines)) == np.bincount(line_of_character, minlength=len(lines))

        token_at = np.full(line_ends[-1], -1)
        plain = is_plain[line_of_token]
        token_at[chinese[is_plain[line_of_character]]] = (tokens - (token_ends - lengths)[line_of_token])[plain]
        others = np.flatnonzero(~is_plain)
        for number, encoding in zip(others, self.backend.encode_batch([lines[number] for number in others])):
            positions = np.flatnonzero(self.is_chinese[encoding.ids])
            starts = np.array(encoding.offsets)[positions, 0]
            token_at[line_ends[number] - len(lines[number]) + starts] = positions
        return token_at
