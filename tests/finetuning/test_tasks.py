"""The files of the seven tasks are read as they are distributed; errors name the file and the line."""

import re
from pathlib import Path

import pytest

from finetuning import tasks
from finetuning.tasks import TASKS, Example, Question
from pretraining.utils import UserError
from tests.finetuning.helpers import jsonl, squad


def load(directory: Path, name: str, files: dict[str, str | bytes], split: str = "train") -> list:
    for file, content in files.items():
        (directory / file).write_bytes(content.encode() if isinstance(content, str) else content)
    task = TASKS[name]
    return tasks.load_split(task, tasks.find_file(task, directory, split), tasks.task_labels(task, directory))


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
        ("ocnli", {"train.json": '\n{"label": "neu\n'}, r"train.json:2: not valid JSON .*; write one JSON object a line$"),
        ("ocnli", {"train.json": jsonl({"label": "neutral"})}, r"train.json:1: must be a JSON object with the key 'sentence1'$"),
        ("ocnli", {"train.json": "[1]\n"}, r"train.json:1: must be a JSON object with the key 'label'$"),
        ("tnews", {"train.json": "{}"}, r"labels.json: no such file \(the labels of tnews"),
        (
            "tnews",
            {"labels.json": LABELS, "train.json": jsonl({"label": "9", "sentence": "x"})},
            r"train.json:1: label '9' is none of 100, 101$",
        ),
        ("tnews", {"labels.json": LABELS, "train.json": jsonl({"label": "100", "sentence": 3})}, r"train.json:1: sentence must be text$"),
        (
            "tnews",
            {"labels.json": LABELS, "train.json": '{"label": "100", "sentence": "\\ud800"}'},
            r"train.json:1: sentence must be text$",
        ),
        ("ocnli", {"train.json": "[" * 100_000}, r"train.json:1: not valid JSON that can be read; write one JSON object a line$"),
        ("ocnli", {"train.json": "9" * 5000}, r"train.json:1: not valid JSON that can be read; write one JSON object a line$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n甲\t乙\n"}, r"train.txt:2: 2 columns instead of 3 \(text_a, text_b, label\)$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n甲\t乙\t2\n"}, r"train.txt:2: label '2' is none of 0, 1$"),
        ("lcqmc", {"train.txt": "甲\t乙\t1\n".encode() + b"\xff\t\xfe\t1\n"}, r"train.txt:2: not valid UTF-8"),
        ("bq", {"train.csv": '甲,乙,1\n"甲,乙,0\n甲,乙,0\n'}, r"train.csv:2: not valid CSV .*is a quote left open\?$"),
        ("chnsenticorp", {"train.tsv": "label\treview\n1\t好\n"}, r"train.tsv:1: the header has no column 'text_a', only label, review$"),
        ("cmrc2018", {"train.json": squad(("甲", "?", ["甲"], 0))[:60]}, r"train.json:\d+: a SQuAD-style file is not valid JSON"),
        ("cmrc2018", {"train.json": squad(("甲", "?", [], 0))}, r"train.json: data\[0\].paragraphs\[0\].qas\[0\]: not as in a SQuAD-style"),
        (
            "cmrc2018",
            {"train.json": squad(*[("甲", "?", ["甲"], 0)] * 2).replace('"q1"', '"q0"')},
            r"train.json: data\[0\].paragraphs\[1\].qas\[0\]: the id 'q0' is a duplicate$",
        ),
        ("cmrc2018", {"train.json": '{"version": 1}'}, r"train.json: data: not as in a SQuAD-style file"),
        ("cmrc2018", {"train.json": squad(("甲", "\\ud800", ["甲"], 0)).replace("\\\\", "\\")}, r"qas\[0\]: not as in a SQuAD-style"),
        ("cmrc2018", {"train.json": squad(("甲", "?", ["甲"], None))}, r"qas\[0\]: not as in a SQuAD-style"),
        ("cmrc2018", {"train.json": squad(("甲", "?", ["甲"], "0"))}, r"qas\[0\]: not as in a SQuAD-style"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path, name, files, message):
    with pytest.raises(UserError) as error:
        load(tmp_path, name, files)
    assert str(error.value).startswith(str(tmp_path)) and re.search(message, str(error.value)), error.value


def test_an_unofficial_size_has_a_note(tmp_path):
    task = TASKS["bq"]
    assert tasks.size_line(task, "dev", tmp_path, [0] * 10000) == f"bq dev: 10000 examples ({tmp_path})"
    assert tasks.size_line(task, "dev", tmp_path, [0] * 9) == f"bq dev: 9 examples ({tmp_path}; the official dev set has 10000)"


@pytest.mark.parametrize("missing", ["train", "dev", "test"])
def test_the_command_refuses_a_directory_without_train_or_dev_file(tmp_path, missing, capsys):
    for split in {"train", "dev", "test"} - {missing}:
        (tmp_path / f"{split}.txt").write_text("甲\t乙\t1\n")
    given = ["--task", "lcqmc", "--data_dir", str(tmp_path)]
    message = f"{tmp_path}: no {missing} file of lcqmc; put {missing}.txt or {missing}.tsv there"
    if missing == "test":
        tasks.main(given)
        printed = capsys.readouterr().out
        assert message in printed and "lcqmc dev: 1 examples" in printed
    else:
        with pytest.raises(UserError, match=re.escape(message)):
            tasks.main(given)
