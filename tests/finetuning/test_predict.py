"""predict.py: a fine-tuned model or an ONNX file, texts in every format; what comes out, and what is refused."""

import importlib.util
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from transformers import BertForSequenceClassification, BertTokenizer

from finetuning import predict
from finetuning.examples import Question
from finetuning.predictor import answers
from finetuning.reading import Window
from finetuning.units import TASK_FILE
from pretraining.reporting import timing
from pretraining.utils import UserError
from tests import tiny
from tests.finetuning.helpers import BAD, GOOD, jsonl, results_of, run_main
from tests.finetuning.test_own_tasks import own_arguments, tagged_sentences, write


def predicted(capsys, *given) -> list[dict]:
    """The predictions of a command line, from jsonl."""
    capsys.readouterr()
    predict.main([str(part) for part in given])
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def labeller(world, tmp_path_factory) -> Path:
    """A model that has learnt that 北京 and 公园 are places."""
    place = tmp_path_factory.mktemp("labeller")
    run_main(*own_arguments(world, write(place, "tags", tagged_sentences(), max_seq_length=16), place / "out"))
    return place / "out" / "model"


def test_labels_and_probabilities_are_the_models_in_the_order_of_the_input(undisturbed, tmp_path, capsys):
    model = undisturbed["chnsenticorp"] / "model"
    texts = [GOOD, BAD * 3, "好", GOOD * 2, BAD, "天"]
    (tmp_path / "new.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    found = predicted(capsys, model, tmp_path / "new.txt", "--batch_size", 2)
    assert [each["text_a"] for each in found] == texts
    network, tokenizer = BertForSequenceClassification.from_pretrained(str(model)).eval(), BertTokenizer.from_pretrained(str(model))
    for text, each in zip(texts, found):
        shares = network(**tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
        assert each["label"] == str(int(np.argmax(shares))) and each["probability"] == max(each["probabilities"].values())
        assert list(each["probabilities"].values()) == pytest.approx(shares, abs=1e-5)


def test_the_dev_set_is_predicted_as_run_py_did(undisturbed, world, labeller, tmp_path, capsys):
    _, predictions = results_of(undisturbed["chnsenticorp"])
    found = predicted(capsys, undisturbed["chnsenticorp"] / "model", world / "chnsenticorp" / "dev.tsv")
    assert [each["label"] for each in found] == list(predictions.values())

    _, predictions = results_of(undisturbed["cmrc2018"])
    questions = [{"question": "哪里?", "context": sentence} for sentence in tiny.SENTENCES * 2]
    (tmp_path / "questions.jsonl").write_text(jsonl(*questions), encoding="utf-8")
    found = predicted(capsys, undisturbed["cmrc2018"] / "model", tmp_path / "questions.jsonl")
    assert [each["answer"] for each in found] == list(predictions.values())
    assert all(question["context"][each["start"] : each["end"]] == each["answer"] for question, each in zip(questions, found))

    (tmp_path / "places.txt").write_text("\n".join(tiny.SENTENCES), encoding="utf-8")
    found = predicted(capsys, labeller, tmp_path / "places.txt")
    assert [each["text"] for each in found] == tiny.SENTENCES
    sentence = tiny.SENTENCES[0]
    assert {"type": "LOC", "start": sentence.index("公园"), "end": sentence.index("公园") + 2, "text": "公园"} in found[0]["entities"]


def test_the_score_of_an_answer_is_its_share_of_all_spans_of_all_windows():
    def window(question: int, first: int, tokens: int) -> Window:
        offsets = np.array([[first + n, first + n + 1] for n in range(tokens)], dtype=np.int32).reshape(-1, 2)
        return Window(question, np.zeros(tokens + 3, dtype=np.int32), 2, offsets, 0, 0)

    windows = [window(0, 0, 2), window(0, 1, 1), window(1, 0, 0)]
    logits = [[np.array([9.0, 9, 1, 2, 9]), np.array([9.0, 9, 0, 3, 9])], [np.array([9.0, 9, 1, 9]), np.array([9.0, 9, 1, 9])]]
    logits.append([np.zeros(3), np.zeros(3)])
    scores = np.array([1 + 0, 1 + 3, 2 + 3, 1 + 1.0])  # (0, 0), (0, 1), (1, 1) of the first window; (0, 0) of the second
    found = answers([Question("1", "?", "甲乙", (), -1), Question("2", "?", "", (), -1)], windows, logits)
    assert found[0] == {
        "question": "?",
        "answer": "乙",
        "start": 1,
        "end": 2,
        "score": pytest.approx(np.exp(5) / np.exp(scores).sum(), abs=1e-6),
    }
    assert found[1] == {"question": "?", "answer": "", "start": 0, "end": 0, "score": 0.0}


def test_a_table_goes_to_a_file_and_the_speed_to_stderr(labeller, undisturbed, tmp_path, capsys):
    (tmp_path / "new.jsonl").write_text(jsonl({"text": "我喜欢北京"}, {"text": ["我", "北", "京"]}), encoding="utf-8")
    predict.main([str(labeller), str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "out.tsv"), "--output_format", "tsv"])
    assert (tmp_path / "out.tsv").read_text().splitlines() == ["text\tentities", "我喜欢北京\tLOC:北京[3,5)", "我北京\tLOC:北京[1,3)"]
    printed = capsys.readouterr()
    (tmp_path / "new.txt").write_text(f"{GOOD}\n", encoding="utf-8")
    predict.main([str(undisturbed["chnsenticorp"] / "model"), str(tmp_path / "new.txt"), "--output_format", "tsv"])
    head, row = capsys.readouterr().out.splitlines()
    assert head == "text_a\tlabel\tprobability" and re.fullmatch(rf"{GOOD}\t1\t0\.\d+", row)
    assert printed.out == "" and re.search(r"^2 sentences in [\d.]+ s: [\d.]+ sentences/s$", printed.err, re.MULTILINE)


PAIR = {
    "kind": "classification",
    "layout": "jsonl",
    "fields": ["a", "b"],
    "labels": ["0", "1"],
    "files": {"train": "t", "dev": "d"},
    "name": "p",
}


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("new.txt", "好\n\n好\n", r"new.txt:2: the line is empty; remove it$"),
        ("new.txt", "", r"new.txt: has no text$"),
        ("new.csv", "text\n好\n", r"new.csv:1: the header has no column 'text_a', only text$"),
        ("new.jsonl", '{"text_a": "好"}\n{"text": "好"}\n', r"new.jsonl:2: must be a JSON object with the key 'text_a'$"),
        ("new.jsonl", '{"text_a": " "}\n', r"new.jsonl:1: text_a is empty$"),
        ("missing.txt", None, r"missing.txt: no such file \(the texts to predict\)$"),
    ],
)
def test_a_wrong_input_is_one_line_before_the_model_is_loaded(undisturbed, tmp_path, monkeypatch, name, text, message):
    if text != "":
        monkeypatch.setitem(sys.modules, "finetuning.predictor", None)
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        predict.main([str(undisturbed["chnsenticorp"] / "model"), str(tmp_path / name)])
    assert str(error.value).startswith(str(tmp_path)) and re.search(message, str(error.value)), error.value


def test_a_model_of_another_task_is_one_line(undisturbed, labeller, world, tmp_path):
    (tmp_path / "new.txt").write_text("好\t好\n", encoding="utf-8")
    new = str(tmp_path / "new.txt")
    reader = shutil.copytree(undisturbed["cmrc2018"] / "model", tmp_path / "reader")
    (reader / TASK_FILE).write_text(json.dumps(PAIR))
    with pytest.raises(UserError, match="reader: is BertForQuestionAnswering, but p is a task of classification and needs BertForSequence"):
        predict.main([str(reader), new])
    (reader / TASK_FILE).unlink()
    with pytest.raises(UserError, match="reader: has no task.json; is it a model that run.py saved"):
        predict.main([str(reader), new])
    predict.main([str(reader), new, "--task", "cmrc2018"])
    with pytest.raises(UserError, match="its labels are 0, 1, those of ocnli are entailment, neutral, contradiction"):
        predict.main([str(undisturbed["chnsenticorp"] / "model"), new, "--task", "ocnli"])
    with pytest.raises(UserError, match="new.txt:1: has 1 parts instead of 2; write question and context with a tab between them"):
        (tmp_path / "new.txt").write_text("好\n", encoding="utf-8")
        predict.main([str(undisturbed["cmrc2018"] / "model"), new])
    with pytest.raises(UserError, match="vocab.txt: is no ONNX file; give a model directory of run.py"):
        predict.main([str(world / "student" / "vocab.txt"), new])
    with pytest.raises(UserError, match="is a model without a head, but|is BertForMaskedLM, but"):
        predict.main([str(world / "student"), new, "--task", "chnsenticorp"])


@pytest.mark.slow
def test_an_exported_model_predicts_the_same(undisturbed, labeller, tmp_path, capsys, monkeypatch):
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    from pretraining.scripts import export

    monkeypatch.setattr(timing, "_seconds_per_call", lambda run, turn_seconds: 0.001)
    (tmp_path / "new.txt").write_text(f"{GOOD}\t{GOOD}\n", encoding="utf-8")
    for model in (undisturbed["cmrc2018"] / "model", labeller):
        export.main([str(model), "--output_dir", str(tmp_path / model.parent.name)])
        of_onnx = predicted(capsys, tmp_path / model.parent.name / "model.onnx", tmp_path / "new.txt")
        (of_pytorch,) = predicted(capsys, model, tmp_path / "new.txt")
        assert of_onnx == [{**of_pytorch, "score": pytest.approx(of_pytorch["score"], abs=1e-3)} if "score" in of_pytorch else of_pytorch]


def test_a_wrong_line_of_standard_input_is_named_when_it_comes(undisturbed, tmp_path, monkeypatch, capsys):
    (tmp_path / "stdin").write_text(f"{GOOD}\n{BAD}\n\n", encoding="utf-8")
    monkeypatch.setattr(predict, "STDIN", str(tmp_path / "stdin"))
    monkeypatch.setattr(predict, "BLOCK", 1)
    with pytest.raises(UserError, match="stdin:3: the line is empty; remove it"):
        predict.main([str(undisturbed["chnsenticorp"] / "model")])
    assert [json.loads(line)["text_a"] for line in capsys.readouterr().out.splitlines()] == [GOOD, BAD]


@pytest.mark.slow
def test_standard_input_a_closed_pipe_and_ctrl_c(undisturbed, tmp_path):
    command = [sys.executable, predict.__file__, str(undisturbed["chnsenticorp"] / "model")]
    (tmp_path / "many.txt").write_text(f"{BAD}\n" * 50_000, encoding="utf-8")
    shell = f"cat {tmp_path}/many.txt | {' '.join(command)} | head -1; echo ${{PIPESTATUS[1]}}"
    ended = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=240, text=True)
    first, status = ended.stdout.splitlines()
    assert json.loads(first)["text_a"] == BAD and status == "141" and "Traceback" not in ended.stderr
    running = subprocess.Popen([*command, f"{tmp_path}/many.txt", "--output", f"{tmp_path}/out"], stderr=subprocess.PIPE)
    said = io.BytesIO()
    while b"predict:   0%" not in said.getvalue():
        said.write(running.stderr.read1())
        assert running.poll() is None, said.getvalue()
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    said.write(running.stderr.read())
    assert running.wait(60) == 130 and b"Traceback" not in said.getvalue() and not (tmp_path / "out").exists()
