"""Runs that are killed resume; damaged checkpoints, full disks, diverged and unfit models end in one line."""

import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification

from finetuning import run, training
from pretraining.utils import UserError
from tests import tiny
from tests.finetuning.helpers import arguments, assert_same_outcome, count_steps, results_of, run_and_kill, run_main


@pytest.mark.parametrize("task, steps", [("chnsenticorp", 8), ("cmrc2018", 3)])  # in the middle of an epoch
def test_a_killed_run_resumes_to_the_same_result(world, undisturbed, tmp_path, monkeypatch, task, steps):
    given = arguments(world, task, tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    run_and_kill(*given, steps=steps)
    checkpoints = list((tmp_path / "out" / "unfinished" / "epochs3-seed5").glob("checkpoint-*"))
    assert [path.name for path in checkpoints] == [f"checkpoint-{steps}"]

    half_written = checkpoints[0].with_name("checkpoint-999")
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text('{"epoch"')
    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0)
    done = count_steps(monkeypatch)
    run_main(*given)
    total = 18 if task == "chnsenticorp" else 6
    assert len(done) == total - steps
    assert_same_outcome(tmp_path / "out", undisturbed[task])


KILL_ITSELF = """
import os, signal
from finetuning import run, training
training.SAVE_EVERY_SECONDS = 0
step, done = training.Trainer.training_step, []
def counted(*args, **kwargs):
    done.append(1)
    if len(done) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
training.Trainer.training_step = counted
run.main()
"""


@pytest.mark.slow
def test_sigkill_while_training(world, undisturbed, tmp_path):
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    killed = subprocess.run([sys.executable, "-c", KILL_ITSELF, *given], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out" / "unfinished" / "epochs3-seed5").glob("checkpoint-*")] == ["checkpoint-7"]
    subprocess.run([sys.executable, run.__file__, *given], env=environment, check=True, capture_output=True)
    assert_same_outcome(tmp_path / "out", undisturbed["chnsenticorp"])


def test_a_damaged_checkpoint_is_removed_and_not_used(world, undisturbed, tmp_path, capfd):
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    run_and_kill(*given, steps=7)
    optimizer = tmp_path / "out" / "unfinished" / "epochs3-seed5" / "checkpoint-7" / "optimizer.pt"
    os.truncate(optimizer, 1000)
    run_main(*given)
    assert f"warning: {optimizer.parent} is damaged and was removed" in capfd.readouterr().err
    assert_same_outcome(tmp_path / "out", undisturbed["chnsenticorp"])


def test_a_diverged_model_has_no_result(world, tmp_path, monkeypatch):
    def diverge(model):
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[5] = float("nan")
        return model

    load_model = training.load_model
    monkeypatch.setattr(training, "load_model", lambda *args, **kwargs: diverge(load_model(*args, **kwargs)))
    monkeypatch.setattr(training, "evaluate", lambda *_: pytest.fail("was evaluated"))
    with pytest.raises(UserError, match="1 epochs, seed 5: the weights are no longer finite; give a lower --learning_rate"):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 5))
    assert not list(tmp_path.glob("out/units/*.json")) and not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("where", ["the model", "a checkpoint"])
def test_a_full_disk_is_one_line(world, tmp_path, monkeypatch, where):
    """safetensors and torch have exceptions of their own for it."""

    def full(*_, **__):
        raise RuntimeError("I/O error: No space left on device\nmore")

    if where == "a checkpoint":
        monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0)
        monkeypatch.setattr(torch, "save", full)  # as the Trainer calls it for the optimizer
    else:
        monkeypatch.setattr(BertForSequenceClassification, "save_pretrained", full)
    with pytest.raises(
        UserError, match=r"could not be written; is the disk full\? \(I/O error: No space left on device\); free some space"
    ):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 5))
    assert not list(tmp_path.glob("out/units/*.json")) and not (tmp_path / "out" / "model").exists()


def test_cmrc_is_learnt(undisturbed):
    results, predictions = results_of(undisturbed["cmrc2018"])
    assert list(predictions) == [f"q{n}" for n in range(16)]
    assert 0 <= results["best"]["em_mean"] <= results["best"]["f1_mean"] <= 100 and results["metrics"] == ["f1", "em"]
    assert all(answer in sentence for answer, sentence in zip(predictions.values(), tiny.SENTENCES * 2))


def test_weights_without_an_encoder_layer_are_refused(world, tmp_path, no_tokenising):
    broken = tmp_path / "broken"
    tiny.write_vocabulary(broken)
    (broken / "config.json").write_bytes((world / "student" / "config.json").read_bytes())
    weights = load_file(world / "student" / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layer.1" not in name}, broken / "model.safetensors", {"format": "pt"})
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 1, "--model_name_or_path", broken)
    with pytest.raises(
        UserError, match="the weights of the model to fine-tune lack 16 tensors or have them in another shape, first bert.encoder.layer.1"
    ):
        run_main(*given)


def test_truncated_weights_are_refused(world, tmp_path, no_tokenising):
    shutil.copytree(world / "student", tmp_path / "cut")
    os.truncate(tmp_path / "cut" / "model.safetensors", 2000)
    with pytest.raises(UserError, match="cut: the weights of the model to fine-tune cannot be loaded"):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out", "--model_name_or_path", tmp_path / "cut"))
    assert not list(tmp_path.glob("out/unfinished/*"))
