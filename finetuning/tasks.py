"""The seven downstream tasks: how their files are named and read, their labels, official sizes and published learning rates.

    python finetuning/tasks.py --task lcqmc --data_dir data/lcqmc

prints what is there: the splits, their sizes, and for classification the share of the most frequent label.
"""

import argparse
import csv
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))
from utils import UserError, parse_one_line_errors, read_json, read_line_blocks, require_file, run_script

ZERO_ONE = ("0", "1")
NLI_LABELS = ("entailment", "neutral", "contradiction")


class Example(NamedTuple):
    """One sentence or pair; ``id`` is its line in the file, counted from 1, ``label`` an index into the task's labels."""

    id: str
    texts: tuple[str, ...]
    label: int


class Question(NamedTuple):
    """One reading-comprehension question; ``answer_start`` (of the first answer) is as in the file, and may be wrong."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    answer_start: int


@dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    ``layout`` is "squad" (SQuAD-style JSON), "jsonl" (a JSON object a line) or "table" (tab-separated; ``.csv`` with quotes);
    ``fields`` names the text keys or columns, ``columns`` the order of all columns where a table has no header;
    ``files`` gives for each split the accepted names, the first as distributed. The learning rates are the published best.
    """

    name: str
    layout: str
    files: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    max_seq_length: int
    learning_rate_roberta: float
    learning_rate_small: float
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def is_reading(self) -> bool:
        """True where the answer is a span of a text, False where it is a label."""
        return self.layout == "squad"

    @property
    def metrics(self) -> tuple[str, ...]:
        """In percent; the first one ranks."""
        return ("f1", "em") if self.is_reading else ("accuracy",)


def _names(extensions: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {split: tuple(f"{split}.{extension}" for extension in extensions) for split in ("train", "dev", "test")}


TASKS = {
    task.name: task
    for task in (
        Task(
            "cmrc2018",
            "squad",
            {"train": ("train.json", "cmrc2018_train.json"), "dev": ("dev.json", "cmrc2018_dev.json")},
            {"train": 10142, "dev": 3219},
            512,
            3e-5,
            1e-4,
        ),
        Task(
            "drcd",
            "squad",
            {
                "train": ("DRCD_training.json", "train.json"),
                "dev": ("DRCD_dev.json", "dev.json"),
                "test": ("DRCD_test.json", "test.json"),
            },
            {"train": 26936, "dev": 3524, "test": 3493},
            512,
            3e-5,
            1e-4,
        ),
        Task(
            "ocnli",
            "jsonl",
            {"train": ("train.50k.json", "train.json"), "dev": ("dev.json",)},
            {"train": 50437, "dev": 2950},
            128,
            2e-5,
            5e-5,
            fields=("sentence1", "sentence2"),
            labels=NLI_LABELS,
        ),
        Task(
            "lcqmc",
            "table",
            _names(("txt", "tsv")),
            {"train": 238766, "dev": 8802, "test": 12500},
            128,
            2e-5,
            1e-4,
            fields=("text_a", "text_b"),
            columns=("text_a", "text_b", "label"),
            labels=ZERO_ONE,
        ),
        Task(
            "bq",
            "table",
            _names(("csv", "tsv", "txt")),
            {"train": 100000, "dev": 10000, "test": 10000},
            128,
            3e-5,
            1e-4,
            fields=("sentence1", "sentence2"),
            columns=("sentence1", "sentence2", "label"),
            labels=ZERO_ONE,
        ),
        Task(
            "tnews",
            "jsonl",
            {"train": ("train.json",), "dev": ("dev.json",)},
            {"train": 53360, "dev": 10000},
            128,
            2e-5,
            1e-4,
            fields=("sentence",),
        ),
        Task(
            "chnsenticorp",
            "table",
            _names(("tsv",)),
            {"train": 9600, "dev": 1200, "test": 1200},
            256,
            2e-5,
            1e-4,
            fields=("text_a",),
            columns=("label", "text_a"),
            labels=ZERO_ONE,
        ),
    )
}


def find_file(task: Task, data_dir: str | Path, split: str) -> Path:
    """The file of a split.

    Raises:
        UserError: none of the accepted names is there.
    """
    for name in task.files[split]:
        if (Path(data_dir) / name).is_file():
            return Path(data_dir) / name
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such directory (--data_dir, the files of {task.name})")
    raise UserError(f"{data_dir}: no {split} file of {task.name}; put {' or '.join(task.files[split])} there")


def task_labels(task: Task, data_dir: str | Path) -> tuple[str, ...]:
    """The labels in the order of their indices; those of tnews stand in its ``labels.json``."""
    if task.labels or task.is_reading:
        return task.labels
    path = require_file(Path(data_dir) / "labels.json", f"the labels of {task.name}, a JSON object a line")
    labels = tuple(str(_key(path, number, row, "label")) for number, row in _json_lines(path))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise UserError(f"{path}: must list at least two labels, each once")
    return labels


def load_split(task: Task, path: str | Path, labels: tuple[str, ...]) -> list[Example] | list[Question]:
    """Reads one file of a task.

    Raises:
        UserError: whatever is wrong with the file, with its name and the line.
    """
    if task.is_reading:
        examples = _read_squad(path)
    else:
        rows = _json_lines(path) if task.layout == "jsonl" else _table_rows(task, path)
        examples = list(_to_examples(task, path, rows, labels))
    if not examples:
        raise UserError(f"{path}: has no examples")
    return examples


def size_line(task: Task, split: str, path: Path, examples: list) -> str:
    """One printable line; says so when the size is not the official one."""
    official = task.sizes[split]
    note = "" if len(examples) == official else f"; the official {split} set has {official}"
    return f"{task.name} {split}: {len(examples)} examples ({path}{note})"


# ---------------------------------------------------------------- sentences and pairs


def _to_examples(task: Task, path, rows: Iterator[tuple[int, dict]], labels: tuple[str, ...]) -> Iterator[Example]:
    index = {label: position for position, label in enumerate(labels)}
    for number, row in rows:
        label = str(_key(path, number, row, "label"))
        if task.name == "ocnli" and label == "-":  # the annotators did not agree; the task's authors leave these rows out
            continue
        if label not in index:
            raise UserError(f"{path}:{number}: label {label!r} is none of {', '.join(labels)}")
        texts = tuple(_key(path, number, row, field) for field in task.fields)
        if not all(isinstance(text, str) for text in texts):
            raise UserError(f"{path}:{number}: {' and '.join(task.fields)} must be text")
        yield Example(str(number), texts, index[label])


def _key(path, number: int, row, key: str):
    if not isinstance(row, dict) or key not in row:
        raise UserError(f"{path}:{number}: must be a JSON object with the key {key!r}")
    return row[key]


def _lines(path) -> Iterator[str]:
    """The lines, all of them; a leading byte-order mark is dropped, as BQ is distributed with one."""
    for block in read_line_blocks(path, allow_bom=True):
        yield from block


def _json_lines(path) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); one JSON object a line is expected") from None


def _table_rows(task: Task, path) -> Iterator[tuple[int, dict]]:
    """Rows as dicts. A first row that has a cell "label" is a header and names the columns."""
    if Path(path).suffix == ".csv":
        rows = _csv_rows(path)
    else:
        rows = ((number, line.split("\t")) for number, line in enumerate(_lines(path), start=1) if line.strip())
    columns = task.columns
    for position, (number, row) in enumerate(rows):
        if position == 0 and "label" in row:
            columns = tuple(row)
            for name in task.columns:
                if name not in columns:
                    raise UserError(f"{path}:{number}: the header has no column {name!r}, only {', '.join(columns)}")
            continue
        if len(row) != len(columns):
            raise UserError(f"{path}:{number}: {len(row)} columns, {len(columns)} are expected ({', '.join(columns)})")
        yield number, dict(zip(columns, row))


def _csv_rows(path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a comma-separated file, with the line each begins on; a quoted cell may hold commas, quotes and line ends."""
    reader = csv.reader((line + "\n" for line in _lines(path)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{number}: not valid CSV ({error}); is a quote left open?") from None
        if row is None:
            return
        if row:
            yield number, row


# ---------------------------------------------------------------- reading comprehension


def _read_squad(path) -> list[Question]:
    """SQuAD-style JSON: data[].paragraphs[].qas[], each with id, question and answers[] of text and answer_start."""
    questions, seen, where = [], set(), "data"
    data = read_json(path, "a SQuAD-style file")
    try:
        for a, article in enumerate(data["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                where = f"data[{a}].paragraphs[{p}]"
                for q, entry in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    answers = entry["answers"]
                    question = Question(
                        str(entry["id"]),
                        entry["question"],
                        paragraph["context"],
                        tuple(answer["text"] for answer in answers),
                        answers[0]["answer_start"],
                    )
                    if not all(isinstance(text, str) for text in (question.question, question.context, *question.answers)):
                        raise TypeError
                    if question.id in seen:
                        raise UserError(f"{path}: {where}: the id {question.id!r} stands there twice")
                    seen.add(question.id)
                    questions.append(question)
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{path}: {where}: not as in a SQuAD-style file (context; qas with id, question, answers)") from None
    return questions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data_dir", required=True)
    args = parse_one_line_errors(parser)
    task = TASKS[args.task]
    labels = task_labels(task, args.data_dir)
    for split in task.files:
        try:
            path = find_file(task, args.data_dir, split)
        except UserError as missing:
            print(missing)
            continue
        examples = load_split(task, path, labels)
        print(size_line(task, split, path, examples))
        if not task.is_reading:
            label, count = Counter(example.label for example in examples).most_common(1)[0]
            print(f"    most frequent label: {labels[label]}, {100 * count / len(examples):.2f} %")


if __name__ == "__main__":
    run_script(main)
