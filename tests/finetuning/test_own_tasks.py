"""Tasks of one's own: a JSON file describes any data set; what is wrong with it is one line before time is spent."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from finetuning import table, tasks
from finetuning.examples import Example, Question, Sentence
from finetuning.task_definitions import TASKS, TASKS_DIR, definition, find_task, resolved, to_task
from finetuning.units import TASK_FILE
from pretraining.utils import UserError
from tests import tiny
from tests.finetuning.helpers import jsonl, results_of, run_main

EXAMPLES = Path(__file__).parents[2] / "examples" / "own_task"
KINDS = {
    "sentence": {"kind": "classification", "layout": "table", "fields": ["text"]},
    "pair": {"kind": "classification", "layout": "jsonl", "fields": ["a", "b"], "label": "same"},
    "reading": {"kind": "reading", "layout": "jsonl", "fields": ["question", "text"], "label": "answers"},
    "tags": {"kind": "labelling", "layout": "conll"},
    "rows": {"kind": "labelling", "layout": "jsonl", "fields": ["text"], "label": "tags"},
}


def write(directory: Path, kind: str, train: str, dev: str | None = None, suffix: str = ".csv", **more) -> Path:
    """An own task of these two files."""
    for split, text in (("train", train), ("dev", train if dev is None else dev)):
        (directory / f"{split}{suffix}").write_text(text, encoding="utf-8")
    path = directory / "mine.json"
    path.write_text(json.dumps({**KINDS[kind], "files": {"train": f"train{suffix}", "dev": f"dev{suffix}"}, **more}))
    return path


def load(path: Path) -> tuple[tuple[str, ...], dict[str, list]]:
    task, data_dir = tasks.find_data(str(path), None)
    labels = tasks.task_labels(task, data_dir)
    return labels, {split: tasks.load_split(task, tasks.find_file(task, data_dir, split), labels) for split in ("train", "dev")}


def test_the_examples_of_the_project_are_read():
    for name, labels, sizes in (
        ("reviews", ("中评", "好评", "差评"), (30, 9)),
        ("pairs", ("不同", "相同"), (20, 6)),
        ("entities", ("O", "B-人名", "I-人名", "B-地名", "I-地名", "B-机构", "I-机构"), (18, 6)),
    ):
        found, examples = load(EXAMPLES / f"{name}.json")
        assert (found, tuple(map(len, examples.values()))) == (labels, sizes)


def test_every_layout_becomes_examples(tmp_path):
    labels, examples = load(write(tmp_path, "sentence", 'id,text,label\n1,"好,的",yes\n2,坏,no\n', "text,label\n坏,no\n"))
    assert labels == ("no", "yes") and examples["train"] == [Example("2", ("好,的",), 1), Example("3", ("坏",), 0)]
    rows = jsonl({"a": "甲", "b": "乙", "same": 1}, {"a": "丙", "b": "丁", "same": 0})
    assert load(write(tmp_path, "pair", rows)) == (
        ("0", "1"),
        dict.fromkeys(("train", "dev"), [Example("1", ("甲", "乙"), 1), Example("2", ("丙", "丁"), 0)]),
    )
    rows = jsonl(
        {"question": "哪里?", "text": "他在北京。", "answers": ["北京", "在北京"]}, {"question": "谁?", "text": "他在", "answers": "他"}
    )
    _, examples = load(write(tmp_path, "reading", rows))
    assert examples["dev"] == [Question("1", "哪里?", "他在北京。", ("北京", "在北京"), -1), Question("2", "谁?", "他在", ("他",), -1)]
    expected = [Sentence("1", ("王", "明", "在"), (1, 2, 0)), Sentence("6", ("他",), (0,))]
    assert load(write(tmp_path, "tags", "王 B-P\n明 I-P\n在 O\n\n\n他\tO\n"))[1]["train"] == expected
    rows = jsonl({"text": "王明在", "tags": ["B-P", "I-P", "O"]}, {"text": ["他"], "tags": "O"})
    assert load(write(tmp_path, "rows", rows))[1]["train"] == [expected[0], Sentence("2", ("他",), (0,))]


SENTENCES = "text,label\n好,yes\n坏,no\n"


@pytest.mark.parametrize(
    "kind, train, dev, more, message",
    [
        ("sentence", "content,label\n好,yes\n", None, {}, r"train.csv:1: the header has no column 'text', only content, label$"),
        ("sentence", SENTENCES, "text,label\n好,maybe\n", {}, r"dev.csv:2: label 'maybe' is none of no, yes, the labels of the train file$"),
        ("sentence", SENTENCES, "text,label\n好,maybe\n", {"labels": ["no", "yes"]}, r"dev.csv:2: label 'maybe' is none of no, yes$"),
        ("sentence", "text,label\n好,yes\n\n坏,no\n", None, {}, r"train.csv:3: the line is empty; remove it$"),
        ("sentence", "text,label\n好,yes\n ,no\n", None, {}, r"train.csv:3: text is empty$"),
        ("sentence", "text,label\n好,yes\n好,\n", None, {}, r"train.csv:3: label must be a label, a text or a whole number$"),
        ("sentence", "text,label\n好,yes\n", None, {}, r"train.csv: has 1 different labels in 'label'; at least two are needed$"),
        ("sentence", SENTENCES, "text,label\n", {}, r"dev.csv: has no examples$"),
        ("pair", jsonl({"a": "甲", "same": 1}), None, {}, r"train.csv:1: must be a JSON object with the key 'b'$"),
        ("pair", jsonl({"a": "甲", "b": "乙", "same": True}), None, {}, r"train.csv:1: same must be a label, a text or a whole number$"),
        ("reading", jsonl({"question": "?", "text": "甲", "answers": []}), None, {}, r"train.csv:1: answers must be the answer, or a list of answers$"),
        ("tags", "王 B-P\n明 I-L\n", None, {"labels": ["P", "L"]}, r"train.csv:2: tag 'I-L' follows 'B-P'; an entity begins with B-L$"),
        ("tags", "王 B-P\n\n明 I-P\n", None, {}, r"train.csv:3: tag 'I-P' follows 'O'; an entity begins with B-P$"),
        ("tags", "王 B-P\n明 E-P\n", None, {}, r"train.csv:2: tag 'E-P' is none of BIO: O, B-TYPE, I-TYPE$"),
        ("tags", "王 B-P\n", "王 B-L\n", {}, r"dev.csv:1: tag 'B-L' is none of O, B-P, I-P, the labels of the train file$"),
        ("tags", "王 B-P\n明\n", None, {}, r"train.csv:2: must be a token and its tag, with a tab or a space between them$"),
        ("tags", "王 O\n", None, {}, r"train.csv: has no entity; tags are O, B-TYPE and I-TYPE$"),
        ("rows", jsonl({"text": "王明", "tags": "O"}), None, {}, r"train.csv:1: 2 tokens, but 1 tags; each token or character needs one$"),
        ("rows", jsonl({"text": "", "tags": ""}), None, {}, r"train.csv:1: text must be text or a list of tokens, none of them empty$"),
        ("rows", jsonl({"text": "王", "tags": [1]}), None, {}, r"train.csv:1: tags must be a list of tags, or tags with spaces between them$"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, kind, train, dev, more, message):
    path = write(tmp_path, kind, train, dev, **more)
    with pytest.raises(UserError) as error:
        load(path)
    assert str(error.value).startswith(str(tmp_path)) and re.search(message, str(error.value)), error.value


def test_a_definition_of_ones_own_is_told_from_those_of_the_project(tmp_path):
    path = write(tmp_path, "sentence", SENTENCES, position=3)
    with pytest.raises(UserError, match="mine.json: 'position' is for the tasks of the project; leave it out"):
        find_task(str(path))
    with pytest.raises(UserError, match="bq.json: bq is a task of the project; give the file another name"):
        find_task(str(shutil.copy(write(tmp_path, "sentence", SENTENCES), tmp_path / "bq.json")))
    with pytest.raises(UserError, match="--task bq needs --data_dir, the directory with its files"):
        tasks.find_data("bq", None)
    with pytest.raises(UserError, match="mine.json: 'name' is 'other'; it must be the name of the file, 'mine'"):
        find_task(str(write(tmp_path, "sentence", SENTENCES, name="other")))


def test_a_definition_is_written_and_read_back():
    for task in TASKS.values():
        assert to_task(TASKS_DIR, json.loads(json.dumps(definition(task)))) == task
    task = find_task(str(EXAMPLES / "entities.json"))
    assert resolved(task, ("O", "B-人名", "I-人名"), 32).labels == ("人名",)


def test_cluewsc_marks_both_spans_and_csl_joins_its_keywords(tmp_path):
    target = {"span1_text": "伤口", "span1_index": 3, "span2_text": "它", "span2_index": 9}
    row = {"text": "裂开的伤口里有沙，它很疼", "label": "true", "target": target}
    (tmp_path / "dev.json").write_text(jsonl(row), encoding="utf-8")
    assert tasks.load_split(TASKS["cluewsc"], tmp_path / "dev.json", ("true", "false")) == [
        Example("1", ("裂开的[伤口]里有沙，_它_很疼",), 0)
    ]
    (tmp_path / "dev.json").write_text(jsonl({**row, "target": {**target, "span1_index": 4}}), encoding="utf-8")
    with pytest.raises(UserError, match="dev.json:1: span1_text does not stand at span1_index of the text"):
        tasks.load_split(TASKS["cluewsc"], tmp_path / "dev.json", ("true", "false"))
    (tmp_path / "dev.json").write_text(jsonl({"keyword": ["水", "火"], "abst": "文", "label": "1"}), encoding="utf-8")
    assert tasks.load_split(TASKS["csl"], tmp_path / "dev.json", ("0", "1")) == [Example("1", ("水 火", "文"), 1)]


# ---------------------------------------------------------------- runs


def tagged_sentences() -> str:
    """北京 and 公园 are places; every sentence four times."""
    lines = []
    for sentence in tiny.SENTENCES * 4:
        tags = ["O"] * len(sentence)
        for place in ("北京", "公园"):
            if place in sentence:
                start = sentence.index(place)
                tags[start : start + 2] = ["B-LOC", "I-LOC"]
        lines.append("".join(f"{character}\t{tag}\n" for character, tag in zip(sentence, tags)))
    return "\n".join(lines)


def own_arguments(world: Path, task: Path, output_dir: Path, *more) -> list[str]:
    given = ["--model_name_or_path", world / "student", "--task", task, "--output_dir", output_dir, "--learning_rate", "1e-2"]
    return [*map(str, given), "--num_train_epochs", "12", "--seeds", "5", "--per_device_train_batch_size", "4", *map(str, more)]


def test_entities_are_learnt_and_the_model_has_its_task(world, tmp_path, capsys):
    task = write(tmp_path, "tags", tagged_sentences(), max_seq_length=16)  # some sentences need two windows
    given = own_arguments(world, task, tmp_path / "out")
    run_main(*given)
    results, predictions = results_of(tmp_path / "out")
    assert results["best"]["entity_f1_mean"] > 80 and results["metrics"] == ["entity_f1"]
    assert predictions["1"].split().count("O") == len(tiny.SENTENCES[0]) - 2
    stored = json.loads((tmp_path / "out" / "model" / TASK_FILE).read_text())
    assert (stored["name"], stored["labels"], stored["max_seq_length"]) == ("mine", ["LOC"], 16)
    assert load_file(tmp_path / "out" / "model" / "model.safetensors")["classifier.weight"].shape[0] == 3
    table.main([str(tmp_path / "out"), "--output_dir", str(tmp_path / "tables")])
    head, *_, measured = capsys.readouterr().out.split("### Relative")[0].split("### Results")[1].splitlines()[2:-1]
    assert head.endswith("| ChnSentiCorp | mine |") and measured.endswith(f"| - | {results['best']['entity_f1_mean']:.2f} |")

    write(tmp_path, "tags", tagged_sentences(), max_seq_length=16, layout="jsonl", fields=["text"])
    with pytest.raises(UserError, match="train.csv:1: not valid JSON"):
        run_main(*given)


@pytest.mark.slow
def test_macro_f1_ranks_and_a_changed_definition_needs_another_directory(world, tmp_path):
    train = "text\tlabel\n" + "".join(f"{sentence}\t{n % 2}\n" for n, sentence in enumerate(tiny.SENTENCES))
    task = write(tmp_path, "sentence", train, suffix=".tsv", metric="macro_f1")
    given = own_arguments(world, task, tmp_path / "out")
    run_main(*given)
    results, _ = results_of(tmp_path / "out")
    assert results["metrics"] == ["macro_f1", "accuracy"] and results["settings"]["metric"] == "macro_f1"
    assert set(results["runs"][0]["metrics"]) == {"macro_f1", "accuracy"}
    write(tmp_path, "sentence", train, suffix=".tsv", metric="accuracy")
    with pytest.raises(UserError, match="holds runs with metric macro_f1, this one has accuracy; give another --output_dir"):
        run_main(*given)
