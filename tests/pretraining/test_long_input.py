"""Text longer than a saved model: ``truncation=True`` cuts it to the model's own length."""

import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertTokenizer, pipeline

from pretraining.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256
from pretraining.scripts import export, init_checkpoint_TA
from tests import tiny
from tests.finetuning.conftest import undisturbed, world  # noqa: F401

LONG = "我们[MASK]起去公园" + "今天天气很好" * 100


def assert_cuts(directory: Path, length: int) -> None:
    tokenizer = BertTokenizer.from_pretrained(str(directory))
    assert tokenizer.model_max_length == length
    assert len(tokenizer(LONG, truncation=True)["input_ids"]) == length


@pytest.fixture(scope="module")
def checkpoint(corpus, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("long") / "run"
    tiny.run_train(corpus.arguments(output_dir, num_train_steps=1, ckpt_steps=1))
    return output_dir / "gs1"


def test_a_checkpoint_fills_masks_of_long_text(checkpoint):
    assert_cuts(checkpoint, 64)
    fill = pipeline("fill-mask", model=str(checkpoint), tokenizer_kwargs={"truncation": True})
    assert len(fill(LONG)) == 5


def test_a_tokenizer_of_a_checkpoint_splits_as_before(checkpoint, corpus):
    """The length is no part of how text is split; a run that takes this vocabulary has the same identity."""
    assert tokenizer_sha256(load_tokenizer(checkpoint)) == tokenizer_sha256(load_tokenizer(corpus.vocabulary))
    assert load_tokenizer(checkpoint).backend_tokenizer.truncation is None


def test_first_weights_of_an_assistant_cut_long_text(corpus, tmp_path):
    target = tmp_path / "init"
    init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", "0", "2"])
    assert_cuts(target, 64)
    assert len(pipeline("fill-mask", model=str(target), tokenizer_kwargs={"truncation": True})(LONG)) == 5


def test_a_fine_tuned_model_classifies_long_text(undisturbed):  # noqa: F811
    directory = undisturbed["chnsenticorp"] / "model"
    assert_cuts(directory, 64)
    (answer,) = pipeline("text-classification", model=str(directory))(LONG.replace("[MASK]", "一"), truncation=True)
    assert answer["label"] in ("0", "1")


@pytest.mark.slow
def test_an_export_cuts_long_text(checkpoint, tmp_path, monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install -r pretraining/requirements-export.txt")
    export.main([str(checkpoint), "--output_dir", str(tmp_path / "onnx")])
    assert_cuts(tmp_path / "onnx", 64)


@pytest.mark.parametrize("length", [64, 512])
@pytest.mark.parametrize("model_class", [BertForMaskedLM, BertForSequenceClassification])
def test_the_length_is_the_models_whatever_its_tokenizer_said(model_class, length, corpus, tmp_path):
    """512 is also the default of BertConfig."""
    tokenizer = load_tokenizer(corpus.vocabulary)
    config = BertConfig(**{**tiny.config(len(tokenizer), 1, 16, 2), "max_position_embeddings": length})
    model_class(config).save_pretrained(str(tmp_path))
    before = tokenizer.model_max_length
    save_tokenizer(tokenizer, tmp_path)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))["model_max_length"] == length
    assert tokenizer.model_max_length == before
    assert_cuts(tmp_path, length)
