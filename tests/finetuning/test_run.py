"""The command: results, predictions and model; settings; wrong arguments."""

import re
import subprocess
import sys

import numpy as np
import pytest
from transformers import BertForSequenceClassification, BertTokenizer

from finetuning import run, training
from finetuning.tasks import TASKS
from pretraining.utils import UserError
from tests.finetuning.helpers import GOOD, arguments, results_of, run_main


def test_a_run_writes_results_predictions_and_model(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = arguments(world, "chnsenticorp", out, "--num_train_epochs", 1, 8, "--seeds", 1, 2, "--max_train_samples", 40)
    run_main(*given)
    results, predictions = results_of(out)
    units = {(u["num_train_epochs"], u["seed"]): u["metrics"]["accuracy"] for u in results["runs"]}
    assert list(units) == [(1, 1), (1, 2), (8, 1), (8, 2)] and results["unfinished"] == []
    for row in results["by_epochs"]:
        values = [units[row["num_train_epochs"], seed] for seed in (1, 2)]
        assert row["seeds"] == [1, 2]
        assert row["accuracy_mean"] == pytest.approx(np.mean(values)) and row["accuracy_std"] == pytest.approx(np.std(values, ddof=1))
    assert results["best"]["accuracy_mean"] == max(row["accuracy_mean"] for row in results["by_epochs"]) > 90
    assert sorted(predictions, key=int) == [str(line) for line in range(2, 50)] and set(predictions.values()) == {"0", "1"}
    assert not (out / "unfinished").exists()

    best = results["predictions_and_model_of"]
    model = BertForSequenceClassification.from_pretrained(str(out / "model")).eval()
    tokenizer = BertTokenizer.from_pretrained(str(out / "model"))
    assert model.config.id2label == {0: "0", 1: "1"} and (out / "model" / "vocab.txt").is_file()
    label = str(model(**tokenizer([GOOD], return_tensors="pt")).logits.argmax().item())
    assert label == predictions["2"] and units[best["num_train_epochs"], best["seed"]] == max(units.values())
    printed = capsys.readouterr().out
    assert "chnsenticorp train: 48 examples" in printed and "the official train set has 9600" in printed

    monkeypatch.setattr(training, "fine_tune", lambda *_: pytest.fail("a finished run ran again"))
    run_main(*given)
    assert results_of(out) == (results, predictions)
    with pytest.raises(UserError, match="holds runs with learning_rate 0.01, this one has 0.1; give another --output_dir"):
        run_main(*given, "--learning_rate", "0.1")


def test_default_learning_rates_are_the_published_ones(world, tmp_path, monkeypatch):
    used = []

    def fine_tune(recipe, *_):
        used.append(recipe.learning_rate)
        pytest.fail("must not train")

    monkeypatch.setattr(training, "fine_tune", fine_tune)
    given = [part for part in arguments(world, "cmrc2018", tmp_path / "out") if part not in ("--learning_rate", "0.01")]
    with pytest.raises(pytest.fail.Exception):
        run_main(*given)
    assert used == [1e-4]
    published = [(task.learning_rate_roberta, task.learning_rate_small) for task in list(TASKS.values())[:7]]
    assert published == [(3e-5, 1e-4), (3e-5, 1e-4), (2e-5, 5e-5), (2e-5, 1e-4), (3e-5, 1e-4), (2e-5, 1e-4), (2e-5, 1e-4)]


def test_a_file_that_is_shorter_than_the_official_one_is_refused(world, tmp_path, monkeypatch):
    """As after a download that was cut off between two rows."""
    monkeypatch.setattr(training, "make_recipe", lambda *_: pytest.fail("was accepted"))
    given = [part for part in arguments(world, "chnsenticorp", tmp_path / "out") if part != "--allow_other_size"]
    short = "has 48 examples, the official {} set of chnsenticorp has {}; if the file was not cut off, give --allow_other_size"
    with pytest.raises(UserError, match=re.escape(f"{world}/chnsenticorp/train.tsv: {short.format('train', 9600)}")):
        run_main(*given)
    with pytest.raises(UserError, match=re.escape(f"{world}/chnsenticorp/dev.tsv: {short.format('dev', 1200)}")):
        run_main(*given, "--max_train_samples", 48)
    assert not (tmp_path / "out").exists()
    for more in (["--max_train_samples", 48, "--max_eval_samples", 8], ["--allow_other_size"]):
        with pytest.raises(pytest.fail.Exception, match="was accepted"):
            run_main(*given, *more)


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--data_dir", "nowhere"], "nowhere: no such directory"),
        (["--model_name_or_path", "nowhere"], "nowhere: no such directory"),
        (["--task", "sst2"], "--task sst2: choose from cmrc2018, drcd, "),
        (["--task", "sst2.json"], "sst2.json: no such file (a task)"),
        (["--seeds", "1", "1"], "--seeds 1 1: give each value once"),
        (["--num_train_epochs", "2", "2"], "--num_train_epochs 2 2: give each value once"),
        (["--seeds", "1", "-1"], "--seeds -1: must be a whole number, 0 or above"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0: must be a whole number above 0"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size 0: must be a whole number above 0"),
        (["--max_train_samples", "0"], "--max_train_samples 0: must be a whole number above 0"),
        (["--max_eval_samples", "-5"], "--max_eval_samples -5: must be a whole number above 0"),
        (["--max_seq_length", "15"], "--max_seq_length 15: must be at least 16"),
        (["--max_seq_length", "65"], "--max_seq_length 65: the model takes at most 64 tokens"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be a number above 0"),
        (["--learning_rate", "inf"], "--learning_rate inf: must be a number above 0"),
        (["--temperature", "0"], "--temperature 0: must be a number above 0"),
        (["--matches", "L3_hidden_mse"], "--matches needs a teacher"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
)
def test_a_wrong_argument_is_one_line(world, tmp_path, changed, message):
    with pytest.raises(UserError, match=re.escape(message)):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out"), *changed)
    assert not (tmp_path / "out").exists()


def test_several_processes_are_refused(world, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run.py must not be started by torchrun; on several GPUs give --jobs, or start one command a GPU"):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out"))


LIGHT = """
import sys
from finetuning import run, table, tasks
from pretraining.utils import UserError
try:
    run.main(sys.argv[1:])
except UserError as error:
    print(error)
    print(sorted({"torch", "transformers", "textbrewer", "matplotlib"} & set(sys.modules)))
"""


def test_a_refusal_imports_no_large_library(world, tmp_path):
    """They take seconds; the vocabulary is the last thing that is checked without them."""
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--model_name_or_path", tmp_path)
    ended = subprocess.run([sys.executable, "-c", LIGHT, *given], capture_output=True, text=True, check=True)
    error, imported = ended.stdout.splitlines()[-2:]
    assert error == f"{tmp_path}/vocab.txt: no such file (the BERT vocabulary, one token per line)" and imported == "[]"


def test_the_command_ends_with_one_line_and_status_2(world, tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext_a\n2\t好\n", encoding="utf-8")
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--data_dir", tmp_path)
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n1\t好\n", encoding="utf-8")
    ended = subprocess.run([sys.executable, run.__file__, *given], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {tmp_path}/train.tsv:2: label '2' is none of 0, 1\n"
