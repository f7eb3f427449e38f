"""compare_models.py: its numbers, its files, its one-line errors."""

import pytest

from pretraining.distillation.modeling import read_config
from pretraining.reporting.model_sizes import parameter_counts, published_configs, size_table
from pretraining.reporting.model_speed import speed_table, speedups
from pretraining.reporting.published_models import PUBLISHED
from pretraining.scripts import compare_models
from pretraining.utils import UserError
from tests.pretraining.scripts.helpers import PNG, cells

PARAMETERS = {
    "RoBERTa": (102_267_648, 85_645_056),
    "RBT6 (KD)": (59_740_416, 43_117_824),
    "RBT3": (38_476_800, 21_854_208),
    "RBT4-H312": (11_419_320, 4_666_392),
    "MiniRBT-H256": (10_345_216, 4_804_352),
    "MiniRBT-H288": (12_311_136, 6_077_664),
}


def test_parameters_are_within_a_tenth_of_a_million_of_the_published():
    configs = published_configs()
    assert {name: parameter_counts(config) for name, config in configs.items()} == PARAMETERS
    assert set(configs) == set(PUBLISHED)
    for name, counts in PARAMETERS.items():
        published = PUBLISHED[name]
        for count, text in zip(counts, (published.parameters, published.without_embeddings)):
            assert count / 1e6 == pytest.approx(float(text.rstrip("M")), abs=0.1)
        config = configs[name]
        shape = (config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads)
        assert "/".join(map(str, shape)) == published.shape


def test_size_table_has_percentages_of_the_first_and_the_published_values():
    table = size_table(published_configs())
    assert "| RoBERTa | 12 | 768 | 3072 | 12 | 102.27M (100.0%) | 85.65M (100.0%) | 12/768/3072/12 | 102.3M | 85.7M |" in table
    assert "| MiniRBT-H288 | 6 | 288 | 1152 | 8 | 12.31M (12.0%) | 6.08M (7.1%) | 6/288/1152/8 | 12.3M | 6.1M |" in table


def test_speed_table_shows_speed_up_milliseconds_and_published():
    table = speed_table({("cpu", 128): {"RoBERTa": 0.4, "RBT3": 0.1}, ("cuda", 512): {"RoBERTa": 0.02, "RBT3": 0.008}})
    assert table.splitlines()[0] == "| Model | CPU, 128 tokens | CUDA, 512 tokens | Published |"
    assert cells(table, "RBT3") == ["RBT3", "4.0× (100.0 ms)", "2.5× (8.0 ms)", "2.8×"]
    assert speedups({"a": 3.0, "b": 1.5, "c": 0.5}) == {"a": 1.0, "b": 2.0, "c": 6.0}


def test_comparison_of_own_models(call, corpus, tmp_path):
    out = call(
        compare_models,
        *("--models", f"big (12)={corpus.teacher}", f"RBT3={corpus.student_json}"),
        *("--sequence_lengths", 8, 64, "--batch_size", 1, "--rounds", 1, "--output_dir", tmp_path),
    )
    big, small = (parameter_counts(read_config(path, "")) for path in (corpus.teacher / "config.json", corpus.student_json))
    row = cells(out, "RBT3")
    assert row[:5] == ["RBT3", "2", "16", "32", "2"]
    assert row[5:7] == [f"{s / 1e6:.2f}M ({s / b:.1%})" for s, b in zip(small, big)]
    assert row[7:] == ["3/768/3072/12", "38.5M", "21.9M"]
    assert cells(out, "big (12)")[7:] == ["–", "–", "–"]
    assert "CPU, 8 tokens | CPU, 64 tokens" in out and "2.8×" in out
    written = (tmp_path / "model_comparison.md").read_text(encoding="utf-8")
    assert all(line in written for line in out.splitlines() if line.startswith("|"))
    assert (tmp_path / "model_comparison.png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model_comparison.md", "model_comparison.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "{teacher}"], "write NAME=PATH"),
        (["--models", "a|b={teacher}"], "write NAME=PATH"),
        (["--models", "a={teacher}", "a={student}"], "the name a occurs twice"),
        (["--models", "a=/no/such/config.json"], "/no/such/config.json: no such file (the config of a)"),
        (["--models", "a={vocabulary}/vocab.txt"], "vocab.txt:1: the config of a is not valid JSON"),
        (["--models", "a={teacher}", "--sequence_lengths", "8", "65"], "--sequence_lengths 65: a has only 64 positions"),
        (["--rounds", "0"], "--rounds 0: must be a whole number above 0"),
        (["--batch_size", "-1"], "--batch_size -1: must be a whole number above 0"),
        (["--sequence_lengths", "8", "0"], "--sequence_lengths 0: must be a whole number above 0"),
        (["--output_dir", "{student}"], "is a file, not a directory"),
    ],
)
def test_comparison_errors(call, corpus, arguments, message):
    paths = {"teacher": corpus.teacher, "student": corpus.student_json, "vocabulary": corpus.vocabulary}
    with pytest.raises(UserError) as error:
        call(compare_models, *(argument.format(**paths) for argument in arguments))
    assert message in str(error.value)
