"""Checkpoints of older versions of this program, and of runs under older releases of transformers, resume."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import BertConfig

from pretraining import config
from pretraining.config import FREE_TO_CHANGE, TrainingArguments
from pretraining.corpus import shards
from pretraining.corpus.files import read_data_json
from pretraining.corpus.shards import load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.distillation import checkpoint
from pretraining.utils import UserError
from tests import tiny

RUN_OF_3D33EEA = Path(__file__).parent / "run_of_3d33eea"


@pytest.fixture
def old_run(tmp_path, monkeypatch) -> Path:
    """The run of commit 3d33eea, killed after step 4 of 8; the working directory is its own."""
    directory = tmp_path / "old"
    shutil.copytree(RUN_OF_3D33EEA, directory)
    monkeypatch.chdir(directory)
    return directory


def arguments(**changes) -> list[str]:
    """The command line of the run, as it noted it; --compile had the values true and false."""
    noted = json.loads((RUN_OF_3D33EEA / "run" / "arguments.json").read_text())
    values = {**noted, "compile": "no", "resume_from_checkpoint": "latest", **changes}
    line = []
    for name, value in values.items():
        if value is not None:
            line += [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]
    return line


def test_a_run_of_3d33eea_resumes_and_ends_as_an_uninterrupted_one(old_run, monkeypatch):
    """Its user sees a run that continues. The corpus is one file: all rows but the last are as they were, that one is full from now on."""
    tiny.run_train(arguments())
    with monkeypatch.context() as until_step_4:
        until_step_4.setattr(shards, "load_shards", lambda *args, **options: load_shards(*args, **{**options, "fill_last_row": False}))
        tiny.run_train(arguments(output_dir="whole", resume_from_checkpoint=None))
    shutil.rmtree(old_run / "whole/gs8")
    tiny.run_train(arguments(output_dir="whole"))
    resumed, whole = (old_run / side for side in ("run", "whole"))
    started_alike = (resumed / "gs4/model.safetensors").read_bytes() == (whole / "gs4/model.safetensors").read_bytes()
    if started_alike:  # a processor of another kind rounds otherwise
        assert (resumed / "gs8/model.safetensors").read_bytes() == (whole / "gs8/model.safetensors").read_bytes()
    assert tiny.largest_difference(resumed / "gs8", whole / "gs8") < 1e-6
    assert checkpoint.load_state(resumed / "gs8")["format"] == checkpoint.FORMAT
    assert "format" not in torch.load(RUN_OF_3D33EEA / "run/gs4/training_state.pt", weights_only=True)


def test_a_run_of_3d33eea_with_several_files_is_refused_unless_the_user_ignores_it(old_run):
    """Its user sees the line about other data: the rows go across the ends of files now. The fingerprint is the one of that commit."""
    lines = {suffix: Path(f"text.{suffix}").read_text(encoding="utf-8").splitlines(keepends=True) for suffix in ("txt", "refs")}
    for suffix, found in lines.items():
        Path(f"first.{suffix}").write_text("".join(found[:6]), encoding="utf-8")
        Path(f"second.{suffix}").write_text("".join(found[6:]), encoding="utf-8")
    tiny.write_data_json(Path("data.json"), [Path("first.txt"), Path("second.txt")], [])
    files = read_data_json("data.json")["train"]
    descriptions = shards.describe_shards(files, shards.ShardSpec("shards", 32, load_tokenizer("teacher")))
    of_shards = [hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest() for description in descriptions]

    state = torch.load("run/gs4/training_state.pt", weights_only=True)
    state["identity"]["data"] = hashlib.sha256("".join(of_shards).encode()).hexdigest()
    torch.save(state, "run/gs4/training_state.pt")
    Path("run/gs4/checksums.json").unlink()
    checkpoint.write_checksums(Path("run/gs4"))
    with pytest.raises(UserError, match="^run/gs4: was trained on other data; --ignore_data_fingerprint resumes nevertheless$"):
        tiny.run_train(arguments())
    tiny.run_train(arguments(ignore_data_fingerprint=True))
    assert (old_run / "run/gs8").is_dir()


def with_new_argument(monkeypatch, value: float) -> None:
    """As if the next version of train.py had one argument more, with default 0, given as ``value``."""
    new = dataclasses.make_dataclass(
        "Arguments", [("label_smoothing", float, config.argument(default=0.0, help="x"))], bases=(TrainingArguments,)
    )
    monkeypatch.setattr(checkpoint, "TrainingArguments", new)
    real = checkpoint.run_identity
    monkeypatch.setattr(checkpoint, "run_identity", lambda *args: {**real(*args), "label_smoothing": value})


def test_an_argument_that_a_checkpoint_does_not_know_had_its_default(old_run, monkeypatch):
    with_new_argument(monkeypatch, 0.1)
    with pytest.raises(UserError, match=r"run/gs4: belongs to a run with another label_smoothing \(0.0 there, 0.1 here\); give"):
        tiny.run_train(arguments())
    with_new_argument(monkeypatch, 0.0)
    tiny.run_train(arguments())
    assert (old_run / "run/gs8").is_dir()


def test_an_argument_that_this_version_does_not_know_is_refused(old_run):
    saved = checkpoint.load_state(old_run / "run/gs4")["identity"]
    with pytest.raises(UserError, match=r"another unknown \(1 there, null here\)"):
        checkpoint.check_identity(Path("gs4"), {**saved, "unknown": 1}, saved, ignore_data=False)


def test_defaults_of_arguments_that_older_checkpoints_do_not_know():
    """A new argument is added here with its default. Its default may never change: older checkpoints were computed with it."""
    saved = checkpoint.load_state(RUN_OF_3D33EEA / "run/gs4")["identity"]
    added = {field.name: field.default for field in dataclasses.fields(TrainingArguments) if field.name not in {*FREE_TO_CHANGE, *saved}}
    assert added == {"kd_weight": 1.0, "hard_label_weight": 0.0}


def release_with_keys(monkeypatch, defaults: dict) -> None:
    """As if a release of transformers wrote more keys into every config."""
    for name in ("to_dict", "to_diff_dict"):
        real = getattr(BertConfig, name)
        monkeypatch.setattr(BertConfig, name, lambda self, real=real: {**defaults, **real(self)})


def test_a_key_that_a_release_of_transformers_adds_is_no_difference(old_run, monkeypatch):
    release_with_keys(monkeypatch, {"is_causal": False, "rope": {"type": "none"}})
    tiny.run_train(arguments())
    assert checkpoint.load_state(old_run / "run/gs8")["identity"]["student_config is_causal"] is False
    monkeypatch.undo()
    monkeypatch.chdir(old_run)
    tiny.run_train(arguments())  # and under the release before it, which does not know the keys
    student = json.loads(Path("student.json").read_text())
    Path("student.json").write_text(json.dumps({**student, "layer_norm_eps": 1e-5}))
    with pytest.raises(UserError, match=r"another student_config layer_norm_eps \(1e-12 there, 1e-05 here\)"):
        tiny.run_train(arguments())


def test_a_checkpoint_of_a_later_format_is_refused(old_run):
    state = checkpoint.load_state(old_run / "run/gs4")
    torch.save({**state, "format": 9}, old_run / "run/gs4/training_state.pt")
    (old_run / "run/gs4/checksums.json").unlink()
    checkpoint.write_checksums(old_run / "run/gs4")
    with pytest.raises(
        UserError, match="training_state.pt: has format 9, this version reads format 1; resume with the version that wrote it"
    ):
        tiny.run_train(arguments())


def test_a_finished_run_that_is_asked_for_more_steps_says_how_to_train_further(old_run):
    """And the command that it names works."""
    tiny.run_train(arguments())
    message = "run/gs8: the run has done all of its 8 steps, .* give --student_pretrained_weights run/gs8, .* and a new --output_dir"
    with pytest.raises(UserError, match=message):
        tiny.run_train(arguments(num_train_steps=12))
    with pytest.raises(UserError, match=r"belongs to a run with another num_train_steps \(8 there, 12 here\), learning_rate"):
        tiny.run_train(arguments(num_train_steps=12, learning_rate=1e-3))
    tiny.run_train(arguments(num_train_steps=4, output_dir="further", student_pretrained_weights="run/gs8"))
    assert (old_run / "further/gs4").is_dir()
