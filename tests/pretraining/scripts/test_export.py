"""export.py: the exported models against PyTorch, its files, its one-line errors."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertForQuestionAnswering, BertForSequenceClassification, BertModel

from pretraining.exporting.onnx_export import load_for_export
from pretraining.scripts import export
from pretraining.utils import UserError
from tests import tiny
from tests.pretraining.scripts.helpers import cells
from tests.workplace import PRETRAINING


@pytest.fixture
def onnxruntime():
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="pip install -r pretraining/requirements-export.txt")
    return pytest.importorskip("onnxruntime", reason="pip install -r pretraining/requirements-export.txt")


def save_model(model_class, corpus, directory: Path, **changes) -> Path:
    """A model of 2 layers whose weights are large enough for its outputs to depend on every token."""
    torch.manual_seed(5)
    values = {**tiny.config(len(corpus.tokenizer), 2, 32, 4), "initializer_range": 0.2, "max_position_embeddings": 160, **changes}
    model_class(BertConfig(**values)).save_pretrained(str(directory))
    tiny.write_vocabulary(directory)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "loaded", "changes", "outputs"),
    [
        (BertForMaskedLM, BertModel, {}, ["last_hidden_state"]),
        (BertForSequenceClassification, BertForSequenceClassification, {"num_labels": 3}, ["logits"]),
        (BertForQuestionAnswering, BertForQuestionAnswering, {}, ["start_logits", "end_logits"]),
    ],
)
def test_export_equals_pytorch(call, corpus, tmp_path, onnxruntime, saved, loaded, changes, outputs):
    directory = save_model(saved, corpus, tmp_path / "model", **changes)
    out = call(export, directory, "--format", "onnx", "--int8")
    exported = tmp_path / "model-onnx"
    assert out.splitlines()[-1] == f"written: {exported}"
    assert {"model.onnx", "model_int8.onnx", "config.json", "vocab.txt", "tokenizer.json"} <= {path.name for path in exported.iterdir()}
    assert (exported / "vocab.txt").read_bytes() == (directory / "vocab.txt").read_bytes()
    assert (exported / "model_int8.onnx").stat().st_size < 0.6 * (exported / "model.onnx").stat().st_size
    row = cells(out, "onnxruntime float32")
    assert row[1] == "model.onnx" and float(row[3]) < 1e-4
    assert float(cells(out, "onnxruntime int8")[3]) > float(row[3])
    assert str(PRETRAINING).encode() not in (exported / "model.onnx").read_bytes()

    session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [value.name for value in session.get_outputs()] == outputs
    model = loaded.from_pretrained(str(directory)).eval()
    for texts, pairs in (
        (["今天"], None),
        (["他明白", "老师说学校的图书馆早上八点开门。"] * 4, None),
        (tiny.SENTENCES[:3], tiny.SENTENCES[3:6]),
    ):
        batch = corpus.tokenizer(texts, pairs, padding=True, return_tensors="pt")
        with torch.inference_mode():
            expected = model(**batch)
        got = session.run(outputs, {name: tensor.numpy() for name, tensor in batch.items()})
        for name, array in zip(outputs, got):
            torch.testing.assert_close(torch.from_numpy(array), expected[name], rtol=0, atol=1e-4)


def test_pooler_is_exported_only_if_it_was_trained(corpus, tmp_path):
    with_pooler = load_for_export(save_model(BertModel, corpus, tmp_path / "encoder"))
    assert with_pooler.outputs == ("last_hidden_state", "pooler_output") and with_pooler.model.pooler is not None
    without_pooler = load_for_export(save_model(BertForMaskedLM, corpus, tmp_path / "masked_lm"))
    assert without_pooler.outputs == ("last_hidden_state",) and without_pooler.model.pooler is None
    assert not with_pooler.training and not with_pooler.model.training and not without_pooler.model.training


def test_missing_packages_are_named(call, corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.chdir(PRETRAINING)
    with pytest.raises(UserError, match="export.py needs onnx,.* onnxruntime; run: pip install -r requirements-export.txt$"):
        call(export, corpus.teacher)


def test_export_errors(call, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "PACKAGES", ())  # these errors come before the packages are used

    def error(directory: Path, *arguments) -> str:
        with pytest.raises(UserError) as caught:
            call(export, directory, *arguments)
        return str(caught.value)

    assert "no such directory" in error(tmp_path / "nothing")
    assert "exists already" in error(corpus.teacher, "--output_dir", corpus.vocabulary)
    assert "--format: invalid choice: 'tflite'" in error(corpus.teacher, "--format", "tflite")
    assert "config.json: no such file" in error(corpus.vocabulary, "--output_dir", tmp_path / "x")

    other = shutil.copytree(corpus.teacher, tmp_path / "other")
    values = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**values, "architectures": ["BertForMultipleChoice"]}))
    assert "is a BertForMultipleChoice; export.py knows" in error(other)
    (other / "config.json").write_text(json.dumps({**values, "architectures": ["BertForSequenceClassification"]}))
    assert "the weights of the model to export lack 4 tensors" in error(other)
    assert "first bert.pooler.dense.bias" in error(other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "the weights of the model to export cannot be loaded" in error(other)
    assert not (tmp_path / "other-onnx").exists() and not (tmp_path / "x").exists()
