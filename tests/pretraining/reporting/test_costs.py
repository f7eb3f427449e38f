"""reporting/costs.py and distillation/gpus.py: sizes on disk are those of a real run; what the roofline makes of operations."""

import json
from pathlib import Path

import pytest

from pretraining import my_datasets
from pretraining.distillation.gpus import CARDS, COMPILED_SHARE, KERNEL_SECONDS, roofline_seconds
from pretraining.distillation.modeling import read_config
from pretraining.matches import get_matches
from pretraining.reporting.costs import checkpoint_bytes, shard_bytes
from tests import tiny


def bytes_below(directory: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in directory.rglob(pattern))


def test_shard_bytes_are_those_of_real_shards(tmp_path: Path):
    """A vocabulary of over 256 entries, so that an id takes two bytes."""
    tokenizer = tiny.write_vocabulary(tmp_path / "vocabulary", extra=[f"word{number}" for number in range(300)])
    lines = {name: tiny.paragraphs(3000, seed) for name, seed in (("a", 1), ("b", 2))}
    for name, text in lines.items():
        tiny.write_text(tmp_path / f"{name}.txt", text, tokenizer)
    tiny.write_data_json(tmp_path / "data.json", [tmp_path / "a.txt"], [tmp_path / "b.txt"])
    paths = {"data_files_json": "data.json", "data_cache_dir": "shards", "tokenizer": "vocabulary"}
    my_datasets.main([word for name, path in paths.items() for word in (f"--{name}", str(tmp_path / path))])
    tokens = sum(len(tokenizer.tokenize(line)) for text in lines.values() for line in text)
    assert shard_bytes(tokens, len(tokenizer), 512) == pytest.approx(bytes_below(tmp_path / "shards", "*.arrow"), rel=0.03)


def test_checkpoint_bytes_are_those_of_a_real_checkpoint(tmp_path: Path, corpus):
    student, matches = tmp_path / "student.json", "L2h192_L4h32_hidden_mse"
    student.write_text(json.dumps(tiny.config(len(corpus.tokenizer), 2, 192, 2)))
    run = tmp_path / "run"
    tiny.run_train(corpus.arguments(run, student_config=student, matches=matches, num_train_steps=1, ckpt_steps=1))
    configs = read_config(student, "the student's config"), read_config(corpus.teacher / "config.json", "the teacher's config")
    assert checkpoint_bytes(configs[0], get_matches([matches], *configs)) == pytest.approx(bytes_below(run / "gs1", "*"), rel=0.02)


def test_roofline_of_a_product_and_of_a_copy():
    card = CARDS["H100"]._replace(half_peak=1000e12, float_peak=100e12, products_share=0.5, bandwidth=1e12)
    product, copy, small = (10**12, 10**6), (0, 8 * 10**9), (0, 8)
    assert roofline_seconds([product], card, half=True, compiled=True) == pytest.approx(0.002)
    assert roofline_seconds([product], card, half=False, compiled=True) == pytest.approx(0.02)
    assert roofline_seconds([(10, 8 * 10**9)], card, half=True, compiled=True) == pytest.approx(0.01), "it waits for its bytes"
    assert roofline_seconds([copy, small], card, half=True, compiled=False) == pytest.approx(0.01 + KERNEL_SECONDS)
    assert roofline_seconds([product, copy], card, half=True, compiled=True) == pytest.approx(0.002 + COMPILED_SHARE * 0.01)
