"""Whole word masking: budget, whole words, no special tokens, 80/10/10, and a pure function of (seed, epoch, example index)."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pretraining.corpus import masking
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.masking import WholeWordMasker

PAD, UNK, CLS, SEP, MASK, FIRST = 0, 1, 2, 3, 4, 5  # FIRST: the first id that is no special token


class Vocabulary:
    """What the masker reads of a tokenizer."""

    pad_token_id, cls_token_id, sep_token_id, mask_token_id = PAD, CLS, SEP, MASK
    all_special_ids = [PAD, UNK, CLS, SEP, MASK]

    def __init__(self, size: int = 2000):
        self.size = size

    def __len__(self) -> int:
        return self.size


def random_rows(rows: int, width: int, seed: int, special_share: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, continues, lengths): random words of 1 to 6 tokens, special tokens typed in between, rows of any length, rubbish after it."""
    random = np.random.default_rng(seed)
    ids = random.integers(FIRST, 2000, (rows, width), dtype=np.uint16)
    typed = random.random((rows, width)) < special_share
    ids[typed] = random.choice([PAD, UNK, CLS, SEP, MASK], int(typed.sum()))
    continues = random.random((rows, width)) < random.choice([0.2, 0.5, 0.8], (rows, 1))
    return ids, continues, random.integers(1, width + 1, rows)


def call(masker: WholeWordMasker, ids, continues, lengths, epoch: int = 0, first: int = 0) -> dict:
    indices = np.arange(first, first + len(ids))
    return masker(np.asarray(ids), np.asarray(continues), np.asarray(lengths), np.full(len(ids), epoch), indices)


def words(ids, continues, length: int) -> list[list[int]]:
    """The row's words as lists of columns, in reading order; special tokens belong to no word and end the one before them."""
    found, previous = [], None
    for column in range(length):
        special = ids[column] < FIRST
        if not special:
            if continues[column] and previous == column - 1 and found:
                found[-1].append(column)
            else:
                found.append([column])
            previous = column
    return found


def greedy(row_words: list[list[int]], order: list[int], budget: int) -> set[int]:
    """BERT's choice: the words in this order, each that still fits."""
    chosen: list[int] = []
    for word in order:
        if len(chosen) + len(row_words[word]) <= budget:
            chosen += row_words[word]
    return set(chosen)


def drawn_order(row_words: list[list[int]], seed: int, epoch: int, index: int) -> list[int]:
    """The random order the masker gives a row's words: by a hash of the word's first column."""
    key = masking.example_keys(seed, np.array([epoch]), np.array([index]))
    draws = [int(masking._random(key, masking.ORDER, np.array([word[0]]))[0]) for word in row_words]
    return sorted(range(len(row_words)), key=draws.__getitem__)


def chosen_columns(batch: dict, row: int) -> set[int]:
    """Content columns ([CLS] not counted) of the masked tokens of a row."""
    used = batch["labels"][row] >= 0
    return {int(position) - 1 for position in batch["masked_positions"][row][used]}


@pytest.mark.parametrize("probability", [0.05, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("length", [4, 5, 32, 130])
def test_equals_the_plain_greedy_algorithm(probability, length):
    masker = WholeWordMasker(Vocabulary(), length, probability, seed=11)
    ids, continues, lengths = random_rows(60, length - 2, seed=length)
    batch = call(masker, ids, continues, lengths, epoch=3, first=500)
    for row in range(60):
        row_words = words(ids[row], continues[row], lengths[row])
        budget = max(1, round(probability * (int(lengths[row]) + 2)))
        expected = greedy(row_words, drawn_order(row_words, 11, 3, 500 + row), budget)
        assert chosen_columns(batch, row) == expected


def test_labels_positions_and_padding_are_consistent():
    masker = WholeWordMasker(Vocabulary(), 64, 0.15, seed=0)
    ids, continues, lengths = random_rows(200, 62, seed=5)
    batch = call(masker, ids, continues, lengths)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (200, 64)
    assert batch["labels"].shape == batch["masked_positions"].shape == (200, 10)  # round(0.15 * 64)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int64)}
    for row, length in enumerate(lengths):
        used = batch["labels"][row] >= 0
        count = int(used.sum())
        assert used[:count].all() and (batch["labels"][row, count:] == -100).all() and (batch["masked_positions"][row, count:] == 0).all()
        positions = batch["masked_positions"][row, :count]
        assert (np.diff(positions) > 0).all() and (positions <= length).all()
        assert (batch["labels"][row, :count] == ids[row, positions - 1]).all()

        untouched = np.setdiff1d(np.arange(1, length + 1), positions)
        assert (batch["input_ids"][row, untouched] == ids[row, untouched - 1]).all()
        assert batch["input_ids"][row, 0] == CLS and batch["input_ids"][row, length + 1] == SEP
        assert (batch["input_ids"][row, length + 2 :] == PAD).all()
        assert batch["attention_mask"][row].sum() == length + 2 and batch["attention_mask"][row, : length + 2].all()


def test_no_attention_mask_where_no_row_is_padded():
    ids, continues, _ = random_rows(4, 30, seed=1)
    masker = WholeWordMasker(Vocabulary(), 32, 0.15, seed=0)
    assert "attention_mask" not in call(masker, ids, continues, np.full(4, 30))
    assert "attention_mask" in call(masker, ids, continues, np.array([30, 30, 29, 30]))


@pytest.mark.parametrize(
    ("length", "probability", "budget"),
    [(512, 0.15, 77), (128, 0.15, 19), (30, 0.15, 4), (50, 0.15, 8), (10, 0.15, 2), (4, 0.15, 1), (20, 0.01, 1), (32, 1.0, 30)],
)
def test_budget_is_met_exactly_by_words_of_one_token(length, probability, budget):
    """Python's round, as in BERT: 4.5 gives 4, 7.5 gives 8. [CLS] and [SEP] count, though they are never masked."""
    masker = WholeWordMasker(Vocabulary(), length, probability, seed=0)
    ids = np.random.default_rng(0).integers(FIRST, 2000, (50, length - 2))
    batch = call(masker, ids, np.zeros(ids.shape, bool), np.full(50, length - 2))
    assert ((batch["labels"] >= 0).sum(1) == budget).all()


def test_words_that_overshoot_are_skipped_for_ones_that_fit():
    """Budget 5: words of two leave one place over; one word of a single token in the row fills it."""
    masker = WholeWordMasker(Vocabulary(), 33, 0.15, seed=0)
    ids = np.random.default_rng(0).integers(FIRST, 2000, (300, 31))
    continues = np.tile(np.arange(31) % 2 == 1, (300, 1))
    assert ((call(masker, ids, continues, np.full(300, 30))["labels"] >= 0).sum(1) == 4).all()
    assert ((call(masker, ids, continues, np.full(300, 31))["labels"] >= 0).sum(1) == 5).all()


def test_a_word_longer_than_the_budget_is_never_chosen():
    masker = WholeWordMasker(Vocabulary(), 32, 0.15, seed=0)
    ids = np.random.default_rng(0).integers(FIRST, 2000, (100, 30))
    continues = np.tile(np.arange(30) % 6 > 0, (100, 1))  # words of six tokens, budget five
    assert (call(masker, ids, continues, np.full(100, 30))["labels"] == -100).all()


def test_rows_of_special_tokens_alone_have_nothing_masked():
    masker = WholeWordMasker(Vocabulary(), 16, 0.15, seed=0)
    for special in (PAD, UNK, CLS, SEP, MASK):
        ids = np.full((3, 14), special)
        batch = call(masker, ids, np.zeros((3, 14), bool), np.full(3, 14))
        assert (batch["labels"] == -100).all() and (batch["input_ids"][:, 1:-1] == special).all()


def test_a_special_token_splits_the_word_around_it():
    """Two tokens, [UNK] flagged as their continuation, and a third flagged so too: the third is a word of its own."""
    masker = WholeWordMasker(Vocabulary(), 6, 0.5, seed=0)  # budget 3
    ids = np.tile([9, 10, UNK, 11], (200, 1))
    continues = np.tile([False, True, True, True], (200, 1))
    batch = call(masker, ids, continues, np.full(200, 4))
    assert all(chosen_columns(batch, row) == {0, 1, 3} for row in range(200))
    small = call(WholeWordMasker(Vocabulary(), 6, 0.15, seed=0), ids, continues, np.full(200, 4))  # budget 1
    assert all(chosen_columns(small, row) == {3} for row in range(200))


def test_a_row_never_continues_the_word_of_the_row_before():
    masker = WholeWordMasker(Vocabulary(), 4, 0.15, seed=0)  # rows of two tokens, budget 1
    ids = np.array([[7, 8], [9, 10]])
    continues = np.array([[False, False], [True, False]])
    batch = call(masker, ids, continues, np.full(2, 2))
    assert ((batch["labels"] >= 0).sum(1) == 1).all()


def test_typed_special_tokens_of_a_real_tokenizer_are_never_chosen(tiny_tokenizer):
    text = "今天[MASK]天气[UNK]很好[PAD]我们[CLS]一起[SEP]去公园" * 2
    ids = np.array([tiny_tokenizer(text, add_special_tokens=False)["input_ids"]] * 300)
    special = np.isin(ids[0], tiny_tokenizer.all_special_ids)
    assert special.sum() == 10
    masker = WholeWordMasker(tiny_tokenizer, ids.shape[1] + 2, 1.0, seed=0)
    batch = call(masker, ids, np.zeros(ids.shape, bool), np.full(300, ids.shape[1]))
    for row in range(300):
        assert chosen_columns(batch, row) == set(np.flatnonzero(~special).tolist())


def test_80_10_10():
    """Within five standard errors over some 460,000 masked tokens; a random token is the original one time in 2000."""
    masker = WholeWordMasker(Vocabulary(), 512, 0.15, seed=0)
    ids = np.random.default_rng(0).integers(FIRST, 2000, (6000, 510), dtype=np.uint16)
    batch = call(masker, ids, np.zeros(ids.shape, bool), np.full(6000, 510))
    after = np.take_along_axis(batch["input_ids"], batch["masked_positions"], 1)[batch["labels"] >= 0]
    original = batch["labels"][batch["labels"] >= 0]
    count = len(original)
    assert count == 6000 * 77
    random = (after != MASK) & (after != original)
    for share, expected in (
        ((after == MASK).mean(), 0.8 + 0.1 / 2000),
        ((after == original).mean(), 0.1 + 0.1 / 2000),
        (random.mean(), 0.1 * (1 - 2 / 2000)),
    ):
        assert abs(share - expected) < 5 * (expected * (1 - expected) / count) ** 0.5
    replaced = after[random]
    assert replaced.min() < 20 and replaced.max() >= 1980
    drawn = np.bincount(replaced // 500, minlength=4) / len(replaced)
    assert np.abs(drawn - 0.25).max() < 0.01


def test_the_action_is_drawn_for_each_token_not_for_the_word():
    masker = WholeWordMasker(Vocabulary(), 22, 0.15, seed=0)  # budget 3
    ids = np.random.default_rng(0).integers(FIRST, 2000, (4000, 20))
    continues = np.tile(np.arange(20) % 3 > 0, (4000, 1))
    batch = call(masker, ids, continues, np.full(4000, 20))
    masked = np.take_along_axis(batch["input_ids"], batch["masked_positions"], 1) == MASK
    whole = (batch["labels"] >= 0).all(1)
    assert whole.sum() > 2000
    assert abs(masked[whole].all(1).mean() - 0.8**3) < 0.05


def test_every_word_is_as_likely_as_any_other():
    """Words of two tokens, budget four of 32: each of the 15 words is masked in 2 of 15 rows, within five standard errors."""
    masker = WholeWordMasker(Vocabulary(), 32, 0.13, seed=0)
    rows = 20_000
    ids = np.full((rows, 30), FIRST)
    batch = call(masker, ids, np.tile(np.arange(30) % 2 == 1, (rows, 1)), np.full(rows, 30))
    counts = np.bincount(batch["masked_positions"][batch["labels"] >= 0] - 1, minlength=30) / rows
    expected = 2 / 15
    assert np.abs(counts - expected).max() < 5 * (expected * (1 - expected) / rows) ** 0.5
    assert (counts[::2] == counts[1::2]).all()


def test_masks_do_not_depend_on_the_batch_around_a_row():
    masker = WholeWordMasker(Vocabulary(), 64, 0.15, seed=3)
    ids, continues, lengths = random_rows(40, 62, seed=8)
    epochs, indices = np.arange(40) % 3, np.arange(40) * 977
    together = masker(ids, continues, lengths, epochs, indices)
    shuffled = np.random.default_rng(0).permutation(40)
    mixed = masker(*(array[shuffled] for array in (ids, continues, lengths, epochs, indices)))
    again = WholeWordMasker(Vocabulary(), 64, 0.15, seed=3)  # as after a restart
    for row in range(40):
        alone = again(*(array[row : row + 1] for array in (ids, continues, lengths, epochs, indices)))
        place = int(np.flatnonzero(shuffled == row)[0])
        for name in ("input_ids", "masked_positions", "labels"):
            assert (together[name][row] == alone[name][0]).all() and (together[name][row] == mixed[name][place]).all()


def test_another_seed_epoch_or_index_gives_other_masks():
    """One row drawn again and again: words and replacements differ wherever one of the three does."""
    ids = np.random.default_rng(0).integers(FIRST, 2000, (1, 254))
    drawn = set()
    places = [(seed, epoch, index) for seed in (0, 1, 2**40) for epoch in (0, 1, 2) for index in (0, 1, 10**9)]
    for seed, epoch, index in places:
        masker = WholeWordMasker(Vocabulary(), 256, 0.15, seed=seed)
        batch = call(masker, ids, np.zeros(ids.shape, bool), np.array([254]), epoch=epoch, first=index)
        drawn.add(batch["masked_positions"].tobytes())
        assert len(chosen_columns(batch, 0)) == 38
    assert len(drawn) == len(places)


class Rows:
    """What TrainingBatches reads of ``pretraining.corpus.rows.Rows``, with rows of different lengths."""

    def __init__(self, ids, continues, lengths):
        self.columns = {"input_ids": ids, "continues": continues}
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, indices: list[int]) -> dict:
        taken = {name: [column[i][: self.lengths[i]] for i in indices] for name, column in self.columns.items()}
        ragged = len({self.lengths[i] for i in indices}) > 1
        return {name: rows if ragged else np.stack(rows) for name, rows in taken.items()}


def training_batches(*, train_batch_size: int = 6, micro_batches: int = 1, rank: int = 0, processes: int = 1) -> TrainingBatches:
    masker = WholeWordMasker(Vocabulary(), 32, 0.15, seed=5)
    return TrainingBatches(Rows(*random_rows(20, 30, seed=2)), masker, 5, train_batch_size, micro_batches, rank, processes)


def equal(left: dict, right: dict) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_masks_are_the_same_for_any_number_of_loader_workers(workers):
    batches = training_batches()
    loaded = list(DataLoader(batches, batch_size=None, sampler=range(12), num_workers=workers))
    assert len(loaded) == 12 and all(equal(batch, batches[number]) for number, batch in enumerate(loaded))
    resumed = list(DataLoader(training_batches(), batch_size=None, sampler=range(7, 12), num_workers=workers))
    assert all(equal(batch, batches[number]) for number, batch in zip(range(7, 12), resumed))


@pytest.mark.parametrize(("micro_batches", "processes"), [(1, 1), (4, 1), (1, 2), (2, 2), (1, 4), (12, 1)])
def test_every_split_of_the_global_batch_sees_the_same_rows(micro_batches, processes):
    """Twelve samples per step, in any number of processes and micro-batches, over more than one epoch of the 20 rows."""
    whole = training_batches(train_batch_size=12)
    for step in range(4):
        parts = [
            training_batches(train_batch_size=12 // processes, micro_batches=micro_batches, rank=rank, processes=processes)[number]
            for rank in range(processes)
            for number in range(step * micro_batches, (step + 1) * micro_batches)
        ]
        for name in ("input_ids", "masked_positions", "labels"):
            assert torch.equal(torch.cat([part[name] for part in parts]), whole[step][name])
