"""Whole word masking, vectorised over the batch.

The masks are a pure function of (seed, epoch, example index): every random number is a hash of these three and of the token's column.
Workers, batch splits and restarts cannot change them.
"""

from typing import Any

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
ORDER, ACTION, REPLACEMENT = (np.uint64(stream << 32) for stream in (1, 2, 3))


def mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): uint64 to uint64, every input bit moves every output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def example_keys(seed: int, epochs: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """One 64-bit key for every (epoch, example index); (batch,) uint64."""
    with np.errstate(over="ignore"):
        key = mix(np.uint64(seed) + GOLDEN)
        key = mix(key + GOLDEN * (epochs.astype(np.uint64) + np.uint64(1)))
        return mix(key + GOLDEN * (indices.astype(np.uint64) + np.uint64(1)))


def _random(keys: np.ndarray, stream: np.uint64, columns: np.ndarray) -> np.ndarray:
    """One random 64-bit number for every key and column; the streams ORDER, ACTION and REPLACEMENT are independent."""
    with np.errstate(over="ignore"):
        return mix(keys + GOLDEN * (stream + columns.astype(np.uint64)))


class WholeWordMasker:
    """Masks rows of content tokens as BERT-wwm does (Cui et al. 2019, arXiv:1906.08101).

    A row may mask ``max(1, round(mlm_probability * tokens))`` tokens; [CLS] and [SEP] count as tokens. The words of a row come in
    random order. A word is masked if it fits into what is left of this budget, and skipped if it does not. Each chosen token becomes
    [MASK] with probability 80 %, a random token with 10 %, and stays with 10 %. Special tokens, also those written in the text, are
    never chosen.

    Example: one row of 6 content tokens, so a budget of ``round(0.25 * 8) = 2`` at mlm_probability 0.25::

        text                 今 天 很 火 车 站
        continues            0  1  0  0  1  1      words: 今天 很 火车站; starts 0 2 3; word_lengths 2 1 3
        random order         火车站 (3 tokens, exceeds 2: skipped), 很 (1: masked), 今天 (2 exceed the 1 that is left: skipped)
        chosen               0  0  1  0  0  0      column 2, so position 3 behind [CLS]
        input_ids            [CLS] 今 天 [MASK] 火 车 站 [SEP]
        masked_positions     3 0                   labels: 很 -100; unused places are position 0 with label -100

    Args:
        tokenizer: transformers.BertTokenizer.
        max_seq_length: tokens of a sample, [CLS] and [SEP] included.
        mlm_probability: share of the tokens that are masked.
        seed: decides the masks, together with epoch and example index.
    """

    def __init__(self, tokenizer: Any, max_seq_length: int, mlm_probability: float, seed: int):
        self.tokenizer = tokenizer
        self.content_length = max_seq_length - 2
        self.probability = mlm_probability
        self.seed = seed
        self.max_masked = max(1, round(mlm_probability * max_seq_length))
        self.vocabulary = len(tokenizer)
        self.cls, self.sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.mask, self.pad = tokenizer.mask_token_id, tokenizer.pad_token_id
        self.is_special = np.zeros(self.vocabulary, dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True

    def __call__(
        self, ids: np.ndarray, continues: np.ndarray, lengths: np.ndarray, epochs: np.ndarray, indices: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Builds a batch.

        Args:
            ids: (batch, content_length), any integer type; content tokens, padded with anything.
            continues: (batch, content_length) bool; the token continues the word of the token before it.
            lengths: (batch,) int64; content tokens of each row.
            epochs, indices: (batch,) int64; they decide the random numbers of each row.

        Returns:
            int64 arrays: ``input_ids`` (batch, content_length + 2); ``masked_positions`` and ``labels`` (batch, max_masked), whose
            unused places at the end of a row are position 0 and label -100; and ``attention_mask`` like ``input_ids`` where a row is
            padded.
        """
        width = ids.shape[1]
        ids = ids.astype(np.int64)
        is_content = np.arange(width) < lengths[:, None]  # (batch, width)
        starts, word_lengths = self._words(ids, continues, is_content)  # (words,) each
        keys = example_keys(self.seed, epochs, indices)  # (batch,)
        budgets = np.maximum(1, np.rint(self.probability * (lengths + 2)).astype(np.int64))  # (batch,)
        chosen = self._choose_words(starts // width, starts % width, word_lengths, keys, budgets)  # (words,) bool

        row, column = _tokens_of_words(starts[chosen], word_lengths[chosen], width)  # (masked tokens,) each
        input_ids = self._with_special_tokens(ids, is_content, lengths)
        input_ids[row, column + 1] = self._replacements(keys[row], column, ids[row, column])
        masked_positions, labels = self._targets(row, column, ids[row, column], len(ids))
        batch = {"input_ids": input_ids, "masked_positions": masked_positions, "labels": labels}
        if (lengths < width).any():
            batch["attention_mask"] = (np.arange(width + 2) < (lengths + 2)[:, None]).astype(np.int64)
        return batch

    def _words(self, ids: np.ndarray, continues: np.ndarray, is_content: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Finds the words that may be masked, in reading order.

        Returns:
            (words,) int64: the index of each word's first token in the flattened batch; (words,) int64: its length in tokens.
        """
        special = self.is_special[ids] | ~is_content
        follows_special = np.ones_like(special)
        follows_special[:, 1:] = special[:, :-1]
        is_start = ~continues | special | follows_special
        starts = np.flatnonzero(is_start)
        word_lengths = np.diff(starts, append=ids.size)
        is_word = ~special.reshape(-1)[starts]
        return starts[is_word], word_lengths[is_word]

    def _with_special_tokens(self, ids: np.ndarray, is_content: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """[CLS] content [SEP] [PAD] ...: (batch, content_length + 2) int64."""
        rows, width = ids.shape
        input_ids = np.full((rows, width + 2), self.pad, dtype=np.int64)
        input_ids[:, 0] = self.cls
        input_ids[:, 1:-1][is_content] = ids[is_content]
        input_ids[np.arange(rows), lengths + 1] = self.sep
        return input_ids

    def _replacements(self, keys: np.ndarray, column: np.ndarray, originals: np.ndarray) -> np.ndarray:
        """What the masked tokens become: [MASK] 80 %, a random token 10 %, themselves 10 %; (masked tokens,) int64."""
        action = (_random(keys, ACTION, column) >> np.uint64(11)) * 2.0**-53  # from 0 to 1
        random_tokens = (_random(keys, REPLACEMENT, column) % np.uint64(self.vocabulary)).astype(np.int64)
        return np.where(action < 0.8, self.mask, np.where(action < 0.9, random_tokens, originals))

    def _targets(self, row: np.ndarray, column: np.ndarray, originals: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """``masked_positions`` and ``labels``, (rows, max_masked) int64; ``row`` is sorted."""
        counts = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        masked_positions = np.zeros((rows, self.max_masked), dtype=np.int64)
        labels = np.full((rows, self.max_masked), -100, dtype=np.int64)
        masked_positions[row, place] = column + 1
        labels[row, place] = originals
        return masked_positions, labels

    def _choose_words(
        self, row: np.ndarray, column: np.ndarray, word_lengths: np.ndarray, keys: np.ndarray, budgets: np.ndarray
    ) -> np.ndarray:
        """Chooses the words that are masked.

        Args:
            row, column, word_lengths: (words,) int64; the first token of each word, in reading order, and its number of tokens.
            keys: (batch,) uint64; budgets: (batch,) int64.

        Returns:
            (words,) bool
        """
        counts = np.bincount(row, minlength=len(keys))  # words of each row
        first = np.cumsum(counts) - counts  # index of each row's first word
        rank = np.arange(len(row)) - first[row]  # of a word within its row
        order = self._shuffled_ranks(keys, row, column, rank, int(counts.max(initial=1)))  # (batch, most words of a row)

        most = order.shape[1]
        absent = np.arange(most) >= counts[:, None]  # rows with fewer words
        lengths = word_lengths[np.where(absent, 0, order + first[:, None])] if len(row) else np.zeros_like(order)
        lengths = np.where(absent, np.iinfo(np.int64).max // most // 2, lengths)  # never fits, and cannot overflow the sum
        taken_row, taken_place = np.nonzero(_take_while_they_fit(lengths, budgets))
        chosen = np.zeros(len(row), dtype=bool)
        chosen[first[taken_row] + order[taken_row, taken_place]] = True
        return chosen

    def _shuffled_ranks(self, keys: np.ndarray, row: np.ndarray, column: np.ndarray, rank: np.ndarray, most: int) -> np.ndarray:
        """The ranks of each row's words in random order; (batch, most) int64, absent words at the end.

        The low bits of each random number carry the rank, so that sorting the numbers is enough.
        """
        low_bits = np.uint64((1 << self.content_length.bit_length()) - 1)
        order = np.full((len(keys), most), np.iinfo(np.uint64).max)
        order[row, rank] = (_random(keys[row], ORDER, column) & ~low_bits) | rank.astype(np.uint64)
        order.sort(axis=1)
        return (order & low_bits).astype(np.int64)


def _take_while_they_fit(lengths: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Takes the words of each row, in order, that fit into what is left of its budget; skips the others.

    Args:
        lengths: (batch, words) int64; budgets: (batch,) int64.

    Returns:
        (batch, words) bool
    """
    rows, most = lengths.shape
    total = np.cumsum(lengths, axis=1)
    taken = total <= budgets[:, None]  # all words up to the first that exceeds the budget, at once
    next_word = taken.sum(axis=1)  # that first word, of each row
    spent = np.where(next_word > 0, total[np.arange(rows), np.maximum(next_word, 1) - 1], 0)
    left = budgets - spent
    active = np.flatnonzero(left > 0)
    while active.size:  # then one word at a time: the next that still fits
        fits = (lengths[active] <= left[active, None]) & (np.arange(most) > next_word[active, None])
        found = fits.any(axis=1)
        active, nearest = active[found], fits.argmax(axis=1)[found]
        taken[active, nearest] = True
        left[active] -= lengths[active, nearest]
        next_word[active] = nearest
        active = active[left[active] > 0]
    return taken


def _tokens_of_words(starts: np.ndarray, word_lengths: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """(row, column), both (tokens,) int64, of all tokens of these words; ``starts`` are indices into the flattened batch."""
    ends = np.cumsum(word_lengths)
    first_of_word = np.repeat(starts - (ends - word_lengths), word_lengths)
    flat = np.arange(ends[-1] if len(ends) else 0) + first_of_word
    return flat // width, flat % width
