"""The stock sides are fair peers: TextBrewer's step has our loss, and the Python collator keeps the published rules of masking."""

import random
from pathlib import Path

import pytest
import torch

from benchmarks.models import PAIRS, build_models
from benchmarks.ours import OurSide, losses_without_dropout
from benchmarks.peers import PythonCollator, StockSide

CPU = torch.device("cpu")


@pytest.mark.parametrize("pair", PAIRS)
def test_both_sides_compute_the_same_loss(pair: str, tmp_path: Path):
    random_numbers = torch.Generator().manual_seed(1)
    input_ids = torch.randint(6, 60, (2, 16), generator=random_numbers)
    labels = torch.tensor([[7, 8, 9], [10, 11, -100]])
    batch = {"input_ids": input_ids, "masked_positions": torch.tensor([[1, 4, 9], [2, 3, 0]]), "labels": labels}
    models = build_models(pair, 60, CPU, tiny=True)
    ours = OurSide(models.copy(), CPU, str(tmp_path), train_batch_size=2, max_seq_length=16)
    our_loss, stock_loss = losses_without_dropout(ours, StockSide(models, CPU, str(tmp_path)), batch)
    assert our_loss == pytest.approx(stock_loss, rel=2e-6)
    assert models.student.training and ours.models.student.training


def test_python_collator_keeps_the_budget_and_never_splits_a_word(tiny_tokenizer):

    random.seed(1)
    torch.manual_seed(1)
    draw, examples, words = random.Random(2), [], []
    for length in (6, 20, 100, 200):
        lengths = []
        while sum(lengths) < length:
            lengths.append(min(draw.randint(1, 4), length - sum(lengths)))
        starts = [1 + sum(lengths[:index]) for index in range(len(lengths))]
        words.append([range(start, start + size) for start, size in zip(starts, lengths)])
        ids = [draw.randint(6, 40) for _ in range(length)]  # Chinese characters all
        references = [place for word in words[-1] for place in word[1:]]
        examples.append({"input_ids": [tiny_tokenizer.cls_token_id, *ids, tiny_tokenizer.sep_token_id], "chinese_ref": references})

    kinds = {"masked": 0, "kept": 0, "replaced": 0}
    for _ in range(50):
        batch = PythonCollator(tiny_tokenizer)(examples)
        for row, (example, row_words) in enumerate(zip(examples, words)):
            length = len(example["input_ids"])
            chosen = (batch["labels"][row] >= 0).tolist()
            assert 1 <= sum(chosen) <= max(1, round(0.15 * length)) and not any(chosen[length:])
            for word in row_words:
                assert len({chosen[place] for place in word}) == 1
            for place, original in enumerate(example["input_ids"]):
                now = int(batch["input_ids"][row, place])
                if not chosen[place]:
                    assert now == original
                    continue
                assert batch["labels"][row, place] == original
                kinds["masked" if now == tiny_tokenizer.mask_token_id else "kept" if now == original else "replaced"] += 1
    total = sum(kinds.values())
    assert kinds["masked"] / total == pytest.approx(0.8, abs=0.03) and kinds["kept"] / total == pytest.approx(0.1, abs=0.03)
