"""Whole word masking, vectorised over the batch.

The masks are a pure function of (seed, epoch, example index): every random number is a hash of those and of its place, so
workers, batch splits and restarts cannot change them.
"""

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
    """One 64-bit key for every (epoch, example index); shapes (batch,), uint64."""
    with np.errstate(over="ignore"):
        key = mix(np.uint64(seed) + GOLDEN)
        key = mix(key + GOLDEN * (epochs.astype(np.uint64) + np.uint64(1)))
        return mix(key + GOLDEN * (indices.astype(np.uint64) + np.uint64(1)))


def _random(keys: np.ndarray, stream: np.uint64, columns: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return mix(keys + GOLDEN * (stream + columns.astype(np.uint64)))


class WholeWordMasker:
    """Masks rows of content tokens as BERT-wwm does.

    Budget: ``max(1, round(mlm_probability * tokens))`` of a row's tokens, [CLS] and [SEP] counted. The words are taken in random
    order while they fit; one that would overshoot is skipped. Each chosen token becomes [MASK] in 80 % of the cases, a random
    token of the vocabulary in 10 % and stays in 10 %. Special tokens, also those typed in the text, are never chosen.
    """

    def __init__(self, tokenizer, max_seq_length: int, mlm_probability: float, seed: int):
        self.tokenizer = tokenizer
        self.content_length = max_seq_length - 2
        self.probability = mlm_probability
        self.seed = seed
        self.max_masked = max(1, round(mlm_probability * max_seq_length))
        self.vocabulary = len(tokenizer)
        self.cls, self.sep, self.mask, self.pad = (
            tokenizer.cls_token_id,
            tokenizer.sep_token_id,
            tokenizer.mask_token_id,
            tokenizer.pad_token_id,
        )
        self.is_special = np.zeros(self.vocabulary, dtype=bool)
        self.is_special[tokenizer.all_special_ids] = True

    def __call__(self, ids: np.ndarray, continues: np.ndarray, lengths: np.ndarray, epochs: np.ndarray, indices: np.ndarray) -> dict:
        """Builds a batch.

        Args:
            ids: (batch, content_length), any integer type; content tokens, padded with anything.
            continues: (batch, content_length) bool; the token continues the word of the token before it.
            lengths: (batch,) content tokens of each row.
            epochs, indices: (batch,) which random numbers each row draws.

        Returns:
            int64 arrays: ``input_ids`` (batch, content_length + 2); ``masked_positions`` and ``labels`` (batch, max_masked), the
            unused places at the end of a row being position 0 and label -100; and ``attention_mask`` like ``input_ids`` where a
            row is padded.
        """
        rows, width = ids.shape
        ids = ids.astype(np.int64)
        columns = np.arange(width)
        valid = columns < lengths[:, None]
        special = self.is_special[ids] | ~valid
        follows = np.ones_like(special)
        follows[:, 1:] = special[:, :-1]
        boundary = ~continues | special | follows

        starts = np.flatnonzero(boundary)
        word_lengths = np.diff(starts, append=rows * width)
        is_word = ~special.reshape(-1)[starts]
        starts, word_lengths = starts[is_word], word_lengths[is_word]
        keys = example_keys(self.seed, epochs, indices)
        budgets = np.maximum(1, np.rint(self.probability * (lengths + 2)).astype(np.int64))
        chosen = self._choose_words(starts // width, starts % width, word_lengths, keys, budgets)

        starts, word_lengths = starts[chosen], word_lengths[chosen]
        ends = np.cumsum(word_lengths)
        flat = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - word_lengths), word_lengths)
        row, column = flat // width, flat % width
        originals = ids[row, column]
        action = _random(keys[row], ACTION, column) >> np.uint64(11)
        action = action * 2.0**-53
        replacements = (_random(keys[row], REPLACEMENT, column) % np.uint64(self.vocabulary)).astype(np.int64)

        input_ids = np.full((rows, width + 2), self.pad, dtype=np.int64)
        input_ids[:, 0] = self.cls
        input_ids[:, 1:-1][valid] = ids[valid]
        input_ids[np.arange(rows), lengths + 1] = self.sep
        input_ids[row, column + 1] = np.where(action < 0.8, self.mask, np.where(action < 0.9, replacements, originals))

        counts = np.bincount(row, minlength=rows)
        place = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        masked_positions = np.zeros((rows, self.max_masked), dtype=np.int64)
        labels = np.full((rows, self.max_masked), -100, dtype=np.int64)
        masked_positions[row, place] = column + 1
        labels[row, place] = originals
        batch = {"input_ids": input_ids, "masked_positions": masked_positions, "labels": labels}
        if (lengths < width).any():
            batch["attention_mask"] = (np.arange(width + 2) < (lengths + 2)[:, None]).astype(np.int64)
        return batch

    def _choose_words(
        self, row: np.ndarray, column: np.ndarray, word_lengths: np.ndarray, keys: np.ndarray, budgets: np.ndarray
    ) -> np.ndarray:
        """Which words are masked: bool, one for each word (the words stand in reading order, row after row)."""
        rows = len(keys)
        counts = np.bincount(row, minlength=rows)
        first = np.cumsum(counts) - counts
        rank = np.arange(len(row)) - first[row]
        most = int(counts.max(initial=1))
        low_bits = np.uint64((1 << self.content_length.bit_length()) - 1)  # the word's rank rides there, so sorting values is enough

        order = np.full((rows, most), np.iinfo(np.uint64).max)
        order[row, rank] = (_random(keys[row], ORDER, column) & ~low_bits) | rank.astype(np.uint64)
        order.sort(axis=1)
        order = (order & low_bits).astype(np.int64)
        absent = np.arange(most) >= counts[:, None]
        lengths = word_lengths[np.where(absent, 0, order + first[:, None])] if len(row) else np.zeros_like(order)
        lengths = np.where(absent, np.iinfo(np.int64).max // most // 2, lengths)

        # All words up to the first that overshoots, at once; then, one at a time, the next that still fits.
        total = np.cumsum(lengths, axis=1)
        taken = total <= budgets[:, None]
        prefix = taken.sum(axis=1)
        room = budgets - np.where(prefix > 0, total[np.arange(rows), np.maximum(prefix, 1) - 1], 0)
        active = np.flatnonzero(room > 0)
        while active.size:
            fits = (lengths[active] <= room[active, None]) & (np.arange(most) > prefix[active, None])
            found = fits.any(axis=1)
            active, nearest = active[found], fits.argmax(axis=1)[found]
            taken[active, nearest] = True
            room[active] -= lengths[active, nearest]
            prefix[active] = nearest
            active = active[room[active] > 0]

        chosen = np.zeros(len(row), dtype=bool)
        taken_row, taken_place = np.nonzero(taken)
        chosen[first[taken_row] + order[taken_row, taken_place]] = True
        return chosen
