"""The seven tasks: their files, the CMRC metric, runs that are killed and go on, distillation while fine-tuning, the tables."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import reading
import run
import table
import tasks
import tiny
import torch
import torch.nn.functional as F
import training
from distilling import DistillingTrainer
from reading import f1_and_em, locate_answer, make_windows, reading_metrics, segments
from safetensors.torch import load_file
from tasks import TASKS, Example, Question
from transformers import BertForQuestionAnswering, BertForSequenceClassification
from utils import UserError

FINETUNING = Path(run.__file__).parent
GOOD, BAD = "今天天气很好", "我明白了因为下雨"


class Killed(BaseException):
    """Stands for a process's death: nothing in the project catches it."""


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def squad(*questions: tuple) -> str:
    """(context, question, answers, answer_start) -> the official layout, ids q0, q1, ..."""
    paragraphs = [
        {
            "id": f"p{n}",
            "context": context,
            "qas": [{"id": f"q{n}", "question": asked, "answers": [{"text": text, "answer_start": start} for text in answers]}],
        }
        for n, (context, asked, answers, start) in enumerate(questions)
    ]
    return json.dumps({"version": "v1.0", "data": [{"paragraphs": paragraphs, "id": "d", "title": "t"}]}, ensure_ascii=False, indent=1)


def load(directory: Path, name: str, files: dict[str, str | bytes], split: str = "train") -> list:
    for file, content in files.items():
        (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
    task = TASKS[name]
    return tasks.load_split(task, tasks.find_file(task, directory, split), tasks.task_labels(task, directory))


# ---------------------------------------------------------------- the files of the seven tasks


def test_cmrc_and_drcd_files_are_read(tmp_path):
    text = squad(("他在北京。", "他在哪?", ["北京", "在北京"], 2), ("她在公園", "誰?", ["她"], -1))
    expected = [Question("q0", "他在哪?", "他在北京。", ("北京", "在北京"), 2), Question("q1", "誰?", "她在公園", ("她",), -1)]
    assert load(tmp_path, "cmrc2018", {"cmrc2018_dev.json": text}, "dev") == expected
    assert load(tmp_path, "drcd", {"DRCD_training.json": text}) == expected


def test_ocnli_drops_rows_without_a_label_and_counts_lines(tmp_path):
    rows = [{"sentence1": "甲", "sentence2": "乙", "label": label, "genre": "lit"} for label in ("neutral", "-", "contradiction")]
    assert load(tmp_path, "ocnli", {"train.50k.json": jsonl(*rows)}) == [Example("1", ("甲", "乙"), 1), Example("3", ("甲", "乙"), 2)]


@pytest.mark.parametrize(
    "name, text", [("train.txt", "甲\t乙\t1\n丙 \t丁\t0"), ("train.tsv", "text_a\ttext_b\tlabel\n甲\t乙\t1\n丙 \t丁\t0\n\n")]
)
def test_lcqmc_with_and_without_header(tmp_path, name, text):
    first = 1 + text.startswith("text_a")
    expected = [Example(str(first), ("甲", "乙"), 1), Example(str(first + 1), ("丙 ", "丁"), 0)]
    assert load(tmp_path, "lcqmc", {name: text}) == expected


def test_bq_csv_has_a_bom_quotes_commas_and_line_ends(tmp_path):
    text = '\ufeffsentence1,sentence2,label\n"借,款","说""好""",1\r\n"两\n行",丙,0\n甲,乙,1\n'
    expected = [Example("2", ("借,款", '说"好"'), 1), Example("3", ("两\n行", "丙"), 0), Example("5", ("甲", "乙"), 1)]
    assert load(tmp_path, "bq", {"train.csv": text}) == expected


def test_bq_tab_separated_takes_quotes_as_they_are(tmp_path):
    assert load(tmp_path, "bq", {"train.tsv": '甲"\t"乙,\t1\n'}) == [Example("1", ('甲"', '"乙,'), 1)]


def test_tnews_takes_the_order_of_its_labels_file(tmp_path):
    files = {
        "labels.json": jsonl({"label": "103", "label_desc": "sports"}, {"label": "100", "label_desc": "story"}),
        "train.json": jsonl({"label": "100", "sentence": "句", "keywords": ""}, {"label": 103, "sentence": "子\u2028行"}),
    }
    assert load(tmp_path, "tnews", files) == [Example("1", ("句",), 1), Example("2", ("子\u2028行",), 0)]


def test_chnsenticorp_has_quotes_and_may_have_a_qid_column(tmp_path):
    assert load(tmp_path, "chnsenticorp", {"train.tsv": 'label\ttext_a\n1\t"好, 很\n0\t差"\n'}) == [
        Example("2", ('"好, 很',), 1),
        Example("3", ('差"',), 0),
    ]
    assert load(tmp_path, "chnsenticorp", {"dev.tsv": "qid\tlabel\ttext_a\n0\t1\t好\n"}, "dev") == [Example("2", ("好",), 1)]


LABELS = jsonl({"label": "100"}, {"label": "101"})


@pytest.mark.parametrize(
    "name, files, message",
    [
        ("ocnli", {}, r": no train file of ocnli; put train.50k.json or train.json there$"),
        ("ocnli", {"train.json": jsonl({"label": "-", "sentence1": "", "sentence2": ""})}, r"train.json: has no examples$"),
        ("ocnli", {"train.json": '\n{"label": "neu\n'}, r"train.json:2: not valid JSON .*; one JSON object a line is expected$"),
        ("ocnli", {"train.json": jsonl({"label": "neutral"})}, r"train.json:1: must be a JSON object with the key 'sentence1'$"),
        ("ocnli", {"train.json": "[1]\n"}, r"train.json:1: must be a JSON object with the key 'label'$"),
        ("tnews", {"train.json": "{}"}, r"labels.json: no such file \(the labels of tnews"),
        (
            "tnews",
            {"labels.json": LABELS, "train.json": jsonl({"label": "9", "sentence": "x"})},
            r"train.json:1: label '9' is none of 100, 101$",
        ),
        ("tnews", {"labels.json": LABELS, "train.json": jsonl({"label": "100", "sentence": 3})}, r"train.json:1: sentence must be text$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n甲\t乙\n"}, r"train.txt:2: 2 columns, 3 are expected \(text_a, text_b, label\)$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n甲\t乙\t2\n"}, r"train.txt:2: label '2' is none of 0, 1$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n".encode() + b"\xff\t\xfe\t1\n"}, r"train.txt:2: not valid UTF-8"),
        ("bq", {"train.csv": '甲,乙,1\n"甲,乙,0\n甲,乙,0\n'}, r"train.csv:2: not valid CSV .*is a quote left open\?$"),
        ("chnsenticorp", {"train.tsv": "label\treview\n1\t好\n"}, r"train.tsv:1: the header has no column 'text_a', only label, review$"),
        ("cmrc2018", {"train.json": squad(("甲", "?", ["甲"], 0))[:60]}, r"train.json:\d+: a SQuAD-style file is not valid JSON"),
        ("cmrc2018", {"train.json": squad(("甲", "?", [], 0))}, r"train.json: data\[0\].paragraphs\[0\].qas\[0\]: not as in a SQuAD-style"),
        ("cmrc2018", {"train.json": '{"version": 1}'}, r"train.json: data: not as in a SQuAD-style file"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, files, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, name, files)
    assert str(error.value).startswith(str(tmp_path)) and re.search(message, str(error.value)), error.value


def test_an_unexpected_size_is_said(tmp_path):
    task = TASKS["bq"]
    assert tasks.size_line(task, "dev", tmp_path, [0] * 10000) == f"bq dev: 10000 examples ({tmp_path})"
    assert tasks.size_line(task, "dev", tmp_path, [0] * 9) == f"bq dev: 9 examples ({tmp_path}; the official dev set has 10000)"


# ---------------------------------------------------------------- the metric


@pytest.mark.parametrize(
    "prediction, answers, f1, em",
    [
        ("红楼梦", ("西游记", "《红楼梦》。"), 1.0, 1.0),  # several answers: the best; punctuation does not count
        ("曹雪芹的红楼梦", ("红楼梦", "曹雪芹的红"), 2 * 5 / 12, 0.0),  # 5 of 7 and 5 of 5 beat 3 of 7 and 3 of 3
        ("“1-2”", ("12",), 1.0, 1.0),  # punctuation goes before the words are split
        ("红楼 梦", ("红楼梦",), 1.0, 0.0),  # white space splits, but a Chinese character stands alone anyway
        ("甲乙五丁戊", ("甲乙丙丁戊",), 0.4, 0.0),  # the longest run has no gap: 2 of 5
        ("Python 语言", ("使用PYTHON 3语言",), 2 * 2 / (3 + 6), 0.0),  # python, 语, 言 against 使, 用, python, 3, 语, 言
        ("python", ("Python",), 1.0, 1.0),
        ("Pythons", ("Python",), 0.0, 0.0),  # a Latin word counts whole
        ("3.5%", ("约3.5%",), 2 * 2 / 5, 0.0),  # 3.5 and %
        ("1,200 U.S. dollars.", ("1,200 u.s. dollars",), 2 * 3 / 7, 0.0),  # ASCII stops are words of their own
        ("", ("北京",), 0.0, 0.0),
        ("，", ("北京",), 0.0, 0.0),
        ("中華民國", ("中華民國政府",), 0.8, 0.0),
        ("中华民国", ("中華民國",), 0.25, 0.0),  # Simplified is not Traditional
    ],
)
def test_f1_and_em_equal_hand_computed_cases(prediction, answers, f1, em):
    assert f1_and_em(prediction, answers) == (pytest.approx(f1), em)


def test_mixed_segmentation():
    assert segments(" 在《NBA》打了20年… It's 3:30, OK? ") == [*"在", "nba", *"打了", "20", "年", "…", "it", "'s", "330", ",", "ok", "?"]


def test_a_question_without_prediction_counts_zero():
    questions = [Question(str(n), "", "", ("北京",), 0) for n in range(4)]
    assert reading_metrics(questions, {"0": "北京", "1": "北", "2": ""}) == {"f1": pytest.approx(100 * (1 + 2 / 3) / 4), "em": 25.0}


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "context, answer, start, expected",
    [
        ("甲乙甲乙", "乙", 3, 3),
        ("甲乙甲乙", "乙", 0, 1),
        ("甲乙甲乙", "乙", -1, 1),
        ("甲乙甲乙", "乙", 4, 3),
        ("甲", "丙", 0, None),
        ("aaa", "aa", 2, 1),
    ],
)
def test_answers_are_found_by_text(context, answer, start, expected):
    assert locate_answer(context, answer, start) == expected


@pytest.fixture(scope="module")
def questions():
    long = "".join(tiny.SENTENCES) * 3
    return [
        Question("short", "谁?", "老师说train很好", ("train", "老师"), 0),
        Question("long", "他们在哪?" * 20, long, ("火车站",), long.rindex("火车站")),
        Question("lost", "谁?", "老师说", ("学校",), 0),
    ]


def test_windows_cover_the_context_and_hold_the_answer(tiny_tokenizer, questions):
    windows, left_out = make_windows(questions, tiny_tokenizer, 48, with_answers=True)
    assert left_out == 1 and [w.question for w in windows] == [0] + [1] * (len(windows) - 1)
    for window in windows:
        question = questions[window.question]
        assert len(window.input_ids) <= 48 and window.input_ids[0] == tiny_tokenizer.cls_token_id
        assert list(np.flatnonzero(window.input_ids == tiny_tokenizer.sep_token_id)) == [
            window.context_start - 1,
            len(window.input_ids) - 1,
        ]
        if window.end:
            begin, end = window.offsets[window.start - window.context_start, 0], window.offsets[window.end - window.context_start, 1]
            assert question.context[begin:end] == question.answers[0]
    assert windows[0].end - windows[0].start == 0  # one token: train
    assert any(window.end for window in windows[1:]) and not all(window.end for window in windows[1:])
    covered = sorted({tuple(offset) for window in windows[1:] for offset in window.offsets.tolist()})
    whole = tiny_tokenizer(questions[1].context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert covered == whole
    assert len(make_windows(questions, tiny_tokenizer, 48, with_answers=False)[0]) == len(windows) + 1


def test_the_best_span_is_taken_over_all_windows(tiny_tokenizer, questions, monkeypatch):
    windows, _ = make_windows(questions, tiny_tokenizer, 48, with_answers=True)
    logits = np.zeros((2, len(windows), 60), dtype=np.float32)
    logits[:, :, 0] = logits[:, :, 48:] = 9  # [CLS] and padding are no answers
    right = next(i for i, window in enumerate(windows) if window.question == 1 and window.end)
    logits[0, right, windows[right].start] = logits[1, right, windows[right].end] = 5
    logits[0, right - 1, windows[right - 1].context_start + 1] = 4
    logits[1, right - 1, windows[right - 1].context_start] = 8  # before the start
    assert reading.best_answers(questions, windows, *logits)["long"] == "火车站"
    logits[1, 0, windows[0].context_start + 3] = logits[0, 0, windows[0].context_start] = 5
    assert reading.best_answers(questions, windows, *logits) == {"short": "老师说train", "long": "火车站", "lost": ""}
    monkeypatch.setattr(reading, "MAX_ANSWER_TOKENS", 3)
    assert reading.best_answers(questions, windows, *logits)["short"] != "老师说train"


def test_batches_are_padded_and_the_second_segment_is_marked(tiny_tokenizer):
    examples = [Example("1", ("今天", "天气很好"), 1), Example("2", ("火车", "慢"), 0)]
    batch = training.collate(training.sentence_features(examples, tiny_tokenizer, 8, with_labels=True))
    assert tiny_tokenizer.batch_decode(batch["input_ids"]) == ["[CLS] 今 天 [SEP] 天 气 很 [SEP]", "[CLS] 火 车 [SEP] 慢 [SEP] [PAD] [PAD]"]
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 8, [1] * 6 + [0] * 2]
    assert batch["labels"].tolist() == [1, 0]


# ---------------------------------------------------------------- runs


def write_task(directory: Path, name: str) -> Path:
    """A tiny, easy copy of chnsenticorp or cmrc2018."""
    directory.mkdir(parents=True)
    if name == "chnsenticorp":
        text = "label\ttext_a\n" + "".join(f"1\t{GOOD}{'好' * (n % 5)}\n0\t{BAD}{'雨' * (n % 3)}\n" for n in range(24))
    else:
        text = squad(*((sentence, "哪里?", [sentence[2:4]], 2) for sentence in tiny.SENTENCES * 2))
    for split in ("train", "dev"):
        (directory / TASKS[name].files[split][0]).write_text(text, encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny tasks, a student (2 layers of size 16), and a teacher (4 of size 32) that is not fine-tuned."""
    directory = tmp_path_factory.mktemp("finetuning")
    for name in ("chnsenticorp", "cmrc2018"):
        write_task(directory / name, name)
    for name, shape in (("student", (2, 16, 2)), ("teacher", (4, 32, 4))):
        tokenizer = tiny.write_vocabulary(directory / name)
        tiny.model(tiny.config(len(tokenizer), *shape), seed=3).save_pretrained(str(directory / name))
    return directory


def arguments(world: Path, task: str, output_dir: Path, *more, model: str = "student") -> list[str]:
    given = {
        "model_name_or_path": world / model,
        "task": task,
        "data_dir": world / task,
        "output_dir": output_dir,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
    }
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)] + [str(part) for part in more]


def run_main(monkeypatch, *given) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    run.main()


def results_of(output_dir: Path) -> tuple[dict, dict]:
    return tuple(json.loads((output_dir / name).read_text()) for name in ("results.json", "predictions.json"))


def without_names(results: dict) -> dict:
    return {key: value for key, value in results.items() if key != "settings"}


def test_a_run_fills_results_predictions_and_model(world, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    given = arguments(world, "chnsenticorp", out, "--num_train_epochs", 1, 8, "--seeds", 1, 2, "--max_train_samples", 40)
    run_main(monkeypatch, *given)
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
    tokenizer = training.transformers.BertTokenizer.from_pretrained(str(out / "model"))
    assert model.config.id2label == {0: "0", 1: "1"} and (out / "model" / "vocab.txt").is_file()
    label = str(model(**tokenizer([GOOD], return_tensors="pt")).logits.argmax().item())
    assert label == predictions["2"] and units[best["num_train_epochs"], best["seed"]] == max(units.values())
    printed = capsys.readouterr().out
    assert "chnsenticorp train: 48 examples" in printed and "the official train set has 9600" in printed

    monkeypatch.setattr(training, "fine_tune", lambda *_: pytest.fail("a finished run was done again"))
    run_main(monkeypatch, *given)
    assert results_of(out) == (results, predictions)
    with pytest.raises(UserError, match="holds runs with learning_rate 0.01, this one has 0.1; give another --output_dir"):
        run_main(monkeypatch, *given, "--learning_rate", "0.1")


@pytest.fixture(scope="module")
def undisturbed(world, tmp_path_factory):
    """The directories of runs that nothing interrupted, by task."""
    made = {}
    for task in ("chnsenticorp", "cmrc2018"):
        made[task] = tmp_path_factory.mktemp("undisturbed") / task
        with pytest.MonkeyPatch.context() as monkeypatch:
            run_main(monkeypatch, *arguments(world, task, made[task], "--num_train_epochs", 3, "--seeds", 5))
    return made


def assert_same_outcome(left: Path, right: Path) -> None:
    (left_results, left_predictions), (right_results, right_predictions) = results_of(left), results_of(right)
    assert without_names(left_results) == without_names(right_results) and left_predictions == right_predictions
    left_weights, right_weights = (load_file(out / "model" / "model.safetensors") for out in (left, right))
    assert all(torch.equal(left_weights[name], right_weights[name]) for name in right_weights)


@pytest.mark.parametrize("task, steps", [("chnsenticorp", 8), ("cmrc2018", 3)])  # in the middle of an epoch
def test_a_killed_run_goes_on_as_though_it_had_not_been(world, undisturbed, tmp_path, monkeypatch, task, steps):
    given = arguments(world, task, tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    training_step, done = training.Trainer.training_step, []

    def counted(*args, **kwargs):
        if len(done) == steps:
            raise Killed
        done.append(1)
        return training_step(*args, **kwargs)

    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(training.Trainer, "training_step", counted)
        run_main(monkeypatch, *given)
    checkpoints = list((tmp_path / "out" / "unfinished" / "epochs3-seed5").iterdir())
    assert [path.name for path in checkpoints] == [f"checkpoint-{steps}"]

    half_written = checkpoints[0].with_name("checkpoint-999")
    half_written.mkdir()
    (half_written / "trainer_state.json").write_text('{"epoch"')
    done.clear()
    monkeypatch.setattr(training.Trainer, "training_step", lambda *a, **k: (done.append(1), training_step(*a, **k))[1])
    run_main(monkeypatch, *given)
    total = 18 if task == "chnsenticorp" else 6
    assert len(done) == total - steps
    assert_same_outcome(tmp_path / "out", undisturbed[task])


KILL_ITSELF = """
import os, signal, sys, training
training.SAVE_EVERY_SECONDS = 0
step, done = training.Trainer.training_step, []
def counted(*args, **kwargs):
    done.append(1)
    if len(done) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*args, **kwargs)
training.Trainer.training_step = counted
import run
run.main()
"""


@pytest.mark.slow
def test_sigkill_while_training(world, undisturbed, tmp_path):
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    path = os.pathsep.join([str(FINETUNING), str(FINETUNING.parent / "pretraining")])
    environment = {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
    killed = subprocess.run([sys.executable, "-c", KILL_ITSELF, *given], env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert [path.name for path in (tmp_path / "out" / "unfinished" / "epochs3-seed5").iterdir()] == ["checkpoint-7"]
    subprocess.run([sys.executable, FINETUNING / "run.py", *given], env=environment, check=True, capture_output=True)
    assert_same_outcome(tmp_path / "out", undisturbed["chnsenticorp"])


def test_a_damaged_checkpoint_is_not_gone_on_from(world, undisturbed, tmp_path, monkeypatch, capfd):
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 3, "--seeds", 5)
    step, done = training.Trainer.training_step, []

    def counted(*args, **kwargs):
        done.append(1)
        if len(done) == 8:
            raise Killed
        return step(*args, **kwargs)

    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(training, "SAVE_EVERY_SECONDS", 0)
        killing.setattr(training.Trainer, "training_step", counted)
        run_main(monkeypatch, *given)
    optimizer = tmp_path / "out" / "unfinished" / "epochs3-seed5" / "checkpoint-7" / "optimizer.pt"
    os.truncate(optimizer, 1000)
    run_main(monkeypatch, *given)
    assert f"warning: {optimizer.parent} is not whole and was removed" in capfd.readouterr().err
    assert_same_outcome(tmp_path / "out", undisturbed["chnsenticorp"])


def test_a_model_that_diverged_is_no_result(world, tmp_path, monkeypatch):
    def diverge(model):
        with torch.no_grad():
            model.bert.embeddings.word_embeddings.weight[5] = float("nan")
        return model

    load_model = training.load_model
    monkeypatch.setattr(training, "load_model", lambda *args, **kwargs: diverge(load_model(*args, **kwargs)))
    monkeypatch.setattr(training, "evaluate", lambda *_: pytest.fail("was evaluated"))
    with pytest.raises(UserError, match="1 epochs, seed 5: the weights are no longer finite; give a lower --learning_rate"):
        run_main(monkeypatch, *arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 5))
    assert not list(tmp_path.glob("out/units/*")) and not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize("where", ["the model", "a checkpoint"])
def test_a_full_disk_is_one_line(world, tmp_path, monkeypatch, where):
    """safetensors and torch have exceptions of their own for it."""

    def full(*_, **__):
        raise RuntimeError("I/O error: No space left on device\nmore")

    if where == "a checkpoint":
        monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0)
        monkeypatch.setattr(training.Trainer, "_save_checkpoint", full)
    else:
        monkeypatch.setattr(training.BertForSequenceClassification, "save_pretrained", full)
    with pytest.raises(
        UserError, match=r"could not be written; is the disk full\? \(I/O error: No space left on device\); free some space"
    ):
        run_main(monkeypatch, *arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 5))
    assert not list(tmp_path.glob("out/units/*")) and not (tmp_path / "out" / "model").exists()


def test_cmrc_is_learnt(undisturbed):
    results, predictions = results_of(undisturbed["cmrc2018"])
    assert list(predictions) == [f"q{n}" for n in range(16)]
    assert 0 <= results["best"]["em_mean"] <= results["best"]["f1_mean"] <= 100 and results["metrics"] == ["f1", "em"]
    assert all(answer in sentence for answer, sentence in zip(predictions.values(), tiny.SENTENCES * 2))


def test_default_learning_rates_are_the_published_ones(world, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "fine_tune", lambda *_: pytest.fail("must not train"))
    given = [part for part in arguments(world, "cmrc2018", tmp_path / "out") if part not in ("--learning_rate", "0.01")]
    with pytest.raises(pytest.fail.Exception):
        run_main(monkeypatch, *given)
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["learning_rate"] == 1e-4
    published = [(task.learning_rate_roberta, task.learning_rate_small) for task in TASKS.values()]
    assert published == [(3e-5, 1e-4), (3e-5, 1e-4), (2e-5, 5e-5), (2e-5, 1e-4), (3e-5, 1e-4), (2e-5, 1e-4), (2e-5, 1e-4)]


@pytest.mark.parametrize(
    "changed, message",
    [
        (["--data_dir", "nowhere"], "nowhere: no such directory"),
        (["--model_name_or_path", "nowhere"], "nowhere: no such directory"),
        (["--task", "sst2"], "argument --task: invalid choice"),
        (["--seeds", "1", "1"], "--seeds 1 1: each must be at least 0 and stand there once"),
        (["--num_train_epochs", "0"], "--num_train_epochs 0: each must be at least 1"),
        (["--learning_rate", "nan"], "--learning_rate nan: must be a number greater than 0"),
        (["--learning_rate", "inf"], "--learning_rate inf: must be a number greater than 0"),
        (["--matches", "L3_hidden_mse"], "--matches needs a teacher"),
        (["--epochs", "3"], "unrecognized arguments: --epochs 3"),
    ],
)
def test_a_wrong_argument_is_one_line(world, tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments(world, "chnsenticorp", tmp_path / "out"), *changed])
    with pytest.raises(UserError, match=re.escape(message)):
        run.main()
    assert not (tmp_path / "out").exists()


def test_the_command_ends_with_one_line_and_status_2(world, tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext_a\n2\t好\n", encoding="utf-8")
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--data_dir", tmp_path)
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n1\t好\n", encoding="utf-8")
    ended = subprocess.run([sys.executable, FINETUNING / "run.py", *given], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {tmp_path}/train.tsv:2: label '2' is none of 0, 1\n"


# ---------------------------------------------------------------- distillation


def head(task: str, teacher: bool):
    """A model with the task's head, its weights random but for the seed."""
    torch.manual_seed(7 if teacher else 8)
    config = training.transformers.BertConfig(**tiny.config(60, *((4, 32, 4) if teacher else (2, 16, 2)), dropout=0.0))
    return (BertForQuestionAnswering if task == "cmrc2018" else BertForSequenceClassification)(config)


@pytest.mark.parametrize("task", ["chnsenticorp", "cmrc2018"])
def test_the_distillation_loss_is_textbrewers_terms(tmp_path, task):
    from matches import get_matches

    student, teacher = head(task, teacher=False), head(task, teacher=True)
    matches = get_matches(["L2h16_L4h32_hidden_mse"], student.config, teacher.config)
    recipe = training.Recipe(TASKS[task], ("0", "1"), [], [], [], [], "", 1e-3, 8, False)
    settings = training.trainer_arguments(recipe, tmp_path / "unit", 1, 0)
    trainer = DistillingTrainer(student, teacher, 2.0, matches, settings, data_collator=training.collate)
    features = [{"input_ids": np.arange(5, 5 + n, dtype=np.int32), "second": 3} for n in (9, 6)]
    goal = {"start_positions": 3, "end_positions": 4} if task == "cmrc2018" else {"labels": 1}
    batch = training.collate([{**feature, **goal} for feature in features])
    loss = trainer.compute_loss(student.eval(), dict(batch)).item()

    with torch.no_grad():
        S, T = student(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
        real = batch["attention_mask"].bool()
        soft = 0.0
        for name in ("start_logits", "end_logits") if task == "cmrc2018" else ("logits",):
            rows = []
            for row in range(2):
                places = real[row] if task == "cmrc2018" else slice(None)
                rows.append(-(F.softmax(T[name][row][places] / 2, -1) * F.log_softmax(S[name][row][places] / 2, -1)).sum())
            soft += sum(rows) / 2
        projections = student.get_submodule("distillation_projections")
        assert len(projections) == 3
        hidden = sum(
            F.mse_loss(projection(S.hidden_states[layer])[real], T.hidden_states[2 * layer][real])
            for layer, projection in enumerate(projections)
        )
    assert loss == pytest.approx(float(4 * soft + S.loss + hidden), rel=1e-5)
    assert not any(name.startswith("distillation_projections") for name in trainer.get_decay_parameter_names(student))
    trainer.drop_projections()
    assert not any("projections" in name for name in student.state_dict())


@pytest.mark.parametrize("task", ["chnsenticorp", "cmrc2018"])
def test_distilling_from_a_fine_tuned_teacher(world, undisturbed, tmp_path, monkeypatch, capsys, task):
    before = []
    drop = DistillingTrainer.drop_projections
    monkeypatch.setattr(DistillingTrainer, "drop_projections", lambda self: (before.append(self), drop(self))[1])
    teacher = ["--num_train_epochs", 3, "--seeds", 5, "--teacher", undisturbed[task] / "model", "--temperature", 2]
    given = arguments(world, task, tmp_path / "out", *teacher, "--matches", "L4h32_L2h16_hidden_mse", model="teacher")
    with pytest.raises(UserError, match="2 teacher layers cannot be spaced evenly over 4"):
        run_main(monkeypatch, *given)

    given = arguments(world, task, tmp_path / "out", *teacher, "--matches", "L2h16_L2h16_hidden_mse", "--bf16")
    run_main(monkeypatch, *given)
    losses = [entry["loss"] for entry in before[0].state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert "teacher: f1" in (printed := capsys.readouterr().out) or "teacher: accuracy" in printed
    settings = results_of(tmp_path / "out")[0]["settings"]
    assert (settings["temperature"], settings["matches"]) == (2.0, ["L2h16_L2h16_hidden_mse"])
    assert not any("projections" in name for name in load_file(tmp_path / "out" / "model" / "model.safetensors"))


def test_a_killed_distillation_goes_on_with_its_projections(world, undisturbed, tmp_path, monkeypatch):
    teacher = [
        "--num_train_epochs",
        2,
        "--seeds",
        5,
        "--teacher",
        undisturbed["chnsenticorp"] / "model",
        "--matches",
        "L2h16_L2h16_hidden_mse",
    ]
    run_main(monkeypatch, *arguments(world, "chnsenticorp", tmp_path / "whole", *teacher))
    training_step, done = training.Trainer.training_step, []

    def counted(*args, **kwargs):
        if len(done) == 7:
            raise Killed
        done.append(1)
        return training_step(*args, **kwargs)

    monkeypatch.setattr(training, "SAVE_EVERY_SECONDS", 0)
    with monkeypatch.context() as killing, pytest.raises(Killed):
        killing.setattr(training.Trainer, "training_step", counted)
        run_main(monkeypatch, *arguments(world, "chnsenticorp", tmp_path / "killed", *teacher))
    run_main(monkeypatch, *arguments(world, "chnsenticorp", tmp_path / "killed", *teacher))
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def test_an_unfit_teacher_is_refused(world, undisturbed, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = arguments(world, "chnsenticorp", out, "--num_train_epochs", 1, "--seeds", 1, "--teacher")
    with pytest.raises(UserError, match="the weights of the teacher lack .*; give a model fine-tuned on chnsenticorp"):
        run_main(monkeypatch, *given, str(world / "teacher"))
    other = tmp_path / "other"
    tokenizer = tiny.write_vocabulary(other, extra=["新"])
    tiny.model(tiny.config(len(tokenizer), 2, 16, 2), seed=1).save_pretrained(str(other))
    with pytest.raises(UserError, match="both must have the same vocabulary"):
        run_main(monkeypatch, *given, str(other))
    config = json.loads((world / "teacher" / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**config, "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}})
    )
    with pytest.raises(UserError, match="has 3 labels, chnsenticorp 2"):
        run_main(monkeypatch, *given, str(other))


def test_weights_that_are_no_encoder_are_refused(world, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    broken = tmp_path / "broken"
    tiny.write_vocabulary(broken)
    (broken / "config.json").write_bytes((world / "student" / "config.json").read_bytes())
    weights = load_file(world / "student" / "model.safetensors")
    save_file({name: value for name, value in weights.items() if "layer.1" not in name}, broken / "model.safetensors", {"format": "pt"})
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds", 1, "--model_name_or_path", broken)
    with pytest.raises(UserError, match="the weights of the model to fine-tune lack bert.encoder.layer.1"):
        run_main(monkeypatch, *given)


# ---------------------------------------------------------------- tables


def write_results(path: Path, task: str, model: str, best: dict, epochs=(2, 3, 5, 10), seeds=(1, 2, 3), **settings) -> str:
    rows = [{"num_train_epochs": n, "seeds": list(seeds)} for n in epochs]
    defaults = {"max_seq_length": TASKS[task].max_seq_length, "per_device_train_batch_size": 32, "teacher": None}
    content = {"task": task, "model": model, "metrics": list(TASKS[task].metrics), "best": best, "by_epochs": rows}
    content["settings"] = {**defaults, "learning_rate": TASKS[task].learning_rate_small, **settings}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return str(path)


def test_tables_hold_published_and_measured_rows(tmp_path, monkeypatch, capsys):
    cmrc = write_results(tmp_path / "1.json", "cmrc2018", "saves/mini/gs30000", {"f1_mean": 79.996, "em_mean": 50.0})
    ocnli = write_results(
        tmp_path / "2.json",
        "ocnli",
        "saves/mini/gs30000",
        {"accuracy_mean": 60.0},
        epochs=(2, 3),
        seeds=(1,),
        max_train_samples=9,
        teacher="big/model",
    )
    big = write_results(tmp_path / "3.json", "cmrc2018", "big/", {"f1_mean": 90.0, "em_mean": 75.0})
    given = [cmrc, ocnli, f"TA={big}", "--teacher", "TA", "--two_stage", "mini", "--output_dir", str(tmp_path / "tables")]
    monkeypatch.setattr(sys, "argv", ["table.py", *given])
    table.main()
    printed = capsys.readouterr().out
    for line in (
        "| MiniRBT-H256 | published | 78.47/56.27 | 86.83/78.57 | 68.73 | 86.81 | 83.68 | 54.45 | 92.97 |",
        "| mini | measured | 80.00/50.00 | - | 60.00 | - | - | - | - |",
        "| TA | measured | 90.00/75.00 | - | - | - | - | - | - |",
        "| RBT6 (KD) | published | 96.7/94.6 | 96.7/95 | 95.1 | 99.4 | 98.6 | 96.3 | 98.5 |",
        "| mini | measured | 88.9/66.7 | - | - | - | - | - | - |",
        "| MiniRBT-H256 (one-stage) | published | 77.57/54.27 | 68.32 | 86.39 | 83.55 | 53.94 |",
        "| mini (two-stage) | measured | 80.00/50.00 | 60.00 | - | - | - |",
        "- mini, OCNLI: only 2, 3 epochs instead of 2, 3, 5, 10; only 1 of 3 seeds; only the first 9 training examples; teacher big/model.",
        "mini,measured,80.00,50.00,-,-,60.00,-,-,-,-",
        "RBT3,published,92,84.9,91,86.8,91.1,98,98.5,96.1,98.9",
    ):
        assert line in printed.splitlines(), line
    names = {"tables.md", "absolute.csv", "relative.csv", "stages.csv", "tables.png"}
    assert {path.name for path in (tmp_path / "tables").iterdir()} == names
    assert (tmp_path / "tables" / "absolute.csv").read_text().splitlines()[-2:] == [
        "mini,measured,80.00,50.00,-,-,60.00,-,-,-,-",
        "TA,measured,90.00,75.00,-,-,-,-,-,-,-",
    ]
    assert (tmp_path / "tables" / "tables.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_teacher_the_published_one_is_100_percent(tmp_path):
    results = table.read_results([write_results(tmp_path / "r.json", "lcqmc", "m", {"accuracy_mean": 44.535})])
    absolute, relative, stages = table.make_tables(results, None, None, None)
    assert relative.rows[-1] == table.Row("m", "measured", {"lcqmc": "50.0"})
    assert relative.title.startswith("Relative performance in percent (measured rows: of RoBERTa, published;")
    assert [row.source for row in stages.rows] == ["published", "published"] and len(absolute.rows) == 7


def test_a_teacher_without_a_right_answer_has_no_percent(tmp_path):
    zero = write_results(tmp_path / "0.json", "cmrc2018", "zero", {"f1_mean": 0.0, "em_mean": 0.0})
    results = table.read_results([zero, write_results(tmp_path / "1.json", "cmrc2018", "m", {"f1_mean": 5.0, "em_mean": 1.0})])
    tables = table.make_tables(results, "zero", None, None)
    assert tables[1].rows[-1] == table.Row("m", "measured", {"cmrc2018": "–/–"})
    table.draw(tables, tmp_path / "tables.png")
    assert (tmp_path / "tables.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name, message",
    [("missing.json", "no such file"), ("list.json", "must be a JSON object"), ("other.json", "is not a results.json of run.py")],
)
def test_a_wrong_results_file_is_named(tmp_path, name, message):
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(UserError, match=f"{name}: .*{message}"):
        table.read_results([str(tmp_path / name)])


def test_two_results_for_one_cell_are_refused(tmp_path):
    paths = [write_results(tmp_path / f"{n}.json", "bq", "m", {"accuracy_mean": 50.0}) for n in (1, 2)]
    with pytest.raises(UserError, match="m has two results for bq; name the models apart with NAME="):
        table.read_results(paths)
