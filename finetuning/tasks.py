"""The data of the downstream tasks: finds and reads their files.

    python finetuning/tasks.py --task lcqmc --data_dir data/lcqmc

prints the splits in a directory, their sizes and, for classification, the share of the most frequent label.
The tasks are defined in ``tasks/``, see ``task_definitions.py``.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from finetuning.task_definitions import TASKS, Task
from pretraining.corpus.files import read_json, read_lines, require_file
from pretraining.utils import ArgumentParser, UserError, run_script

SURROGATE = re.compile("[\ud800-\udfff]")


class Example(NamedTuple):
    """One sentence or pair; ``id`` is its line in the file, counted from 1, ``label`` an index into the labels of the task."""

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


class TaskData(NamedTuple):
    """The data of one task: its labels, and for "train" and "dev" the file and its examples."""

    labels: tuple[str, ...]
    paths: dict[str, Path]
    examples: dict[str, list]


# ---------------------------------------------------------------- the files of a task


def find_file(task: Task, data_dir: str | Path, split: str) -> Path:
    """Returns the file of a split.

    Raises:
        UserError: the directory has none of the accepted names.
    """
    for name in task.files[split]:
        if (Path(data_dir) / name).is_file():
            return Path(data_dir) / name
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such directory (--data_dir, the files of {task.name})")
    raise UserError(f"{data_dir}: no {split} file of {task.name}; put {' or '.join(task.files[split])} there")


def task_labels(task: Task, data_dir: str | Path) -> tuple[str, ...]:
    """Returns the labels in the order of their indices; none for reading. Those of tnews are in ``labels.json``."""
    if task.labels or task.is_reading:
        return task.labels
    path = require_file(Path(data_dir) / "labels.json", f"the labels of {task.name}, a JSON object a line")
    labels = tuple(str(_value(path, number, row, "label")) for number, row in _json_rows(path))
    if len(labels) < 2 or len(set(labels)) != len(labels):
        raise UserError(f"{path}: must list at least two labels, each once")
    return labels


def load_split(task: Task, path: str | Path, labels: tuple[str, ...]) -> list[Example] | list[Question]:
    """Reads one file of a task.

    Raises:
        UserError: anything that is wrong with the file; the message has the line.
    """
    examples: list[Example] | list[Question]
    if task.is_reading:
        examples = _read_squad(path)
    else:
        rows = _json_rows(path) if task.layout == "jsonl" else _table_rows(task, path)
        examples = list(_to_examples(task, path, rows, labels))
    if not examples:
        raise UserError(f"{path}: has no examples")
    return examples


def size_line(task: Task, split: str, path: Path, examples: list) -> str:
    """Returns one line to print; it has a note if the size differs from the official one."""
    official = task.sizes[split]
    note = "" if len(examples) == official else f"; the official {split} set has {official}"
    return f"{task.name} {split}: {len(examples)} examples ({path}{note})"


# ---------------------------------------------------------------- sentences and pairs

Rows = Iterator[tuple[int, Any]]  # line number, counted from 1, and the row: column or key -> value


def _to_examples(task: Task, path: str | Path, rows: Rows, labels: tuple[str, ...]) -> Iterator[Example]:
    index = {label: position for position, label in enumerate(labels)}
    for number, row in rows:
        label = str(_value(path, number, row, "label"))
        if label in task.skipped_labels:
            continue
        if label not in index:
            raise UserError(f"{path}:{number}: label {label!r} is none of {', '.join(labels)}")
        texts = tuple(_value(path, number, row, field) for field in task.fields)
        if not all(map(_is_text, texts)):
            raise UserError(f"{path}:{number}: {' and '.join(task.fields)} must be text")
        yield Example(str(number), texts, index[label])


def _value(path: str | Path, number: int, row: Any, key: str) -> Any:
    if not isinstance(row, dict) or key not in row:
        raise UserError(f"{path}:{number}: must be a JSON object with the key {key!r}")
    return row[key]


def _is_text(value: Any) -> bool:
    r"""True for text that can be tokenised: without half a surrogate pair, which JSON can write as \ud800."""
    return isinstance(value, str) and not SURROGATE.search(value)


def _lines(path: str | Path) -> Iterator[str]:
    """All lines without the byte-order mark; BQ is distributed with one."""
    return read_lines(path)


def _json_rows(path: str | Path) -> Rows:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); write one JSON object a line") from None
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of nested brackets
            raise UserError(f"{path}:{number}: not valid JSON that can be read; write one JSON object a line") from None


def _table_rows(task: Task, path: str | Path) -> Rows:
    """Rows as dicts. A first row with a cell "label" is a header and names the columns."""
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
            raise UserError(f"{path}:{number}: {len(row)} columns instead of {len(columns)} ({', '.join(columns)})")
        yield number, dict(zip(columns, row))


def _csv_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a comma-separated file, each with its first line; a quoted cell may hold commas, quotes and line ends."""
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


def _read_squad(path: str | Path) -> list[Question]:
    """SQuAD-style JSON: data[].paragraphs[].qas[], each with id, question and answers[] of text and answer_start."""
    questions, seen, where = [], set(), "data"
    data = read_json(path, "a SQuAD-style file")
    try:
        for a, article in enumerate(data["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                where = f"data[{a}].paragraphs[{p}]"
                for q, entry in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    question = _to_question(entry, paragraph["context"])
                    if question.id in seen:
                        raise UserError(f"{path}: {where}: the id {question.id!r} is a duplicate")
                    seen.add(question.id)
                    questions.append(question)
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{path}: {where}: not as in a SQuAD-style file (context; qas with id, question, answers)") from None
    return questions


def _to_question(entry: dict, context: str) -> Question:
    answers = entry["answers"]
    question = Question(
        id=str(entry["id"]),
        question=entry["question"],
        context=context,
        answers=tuple(answer["text"] for answer in answers),
        answer_start=answers[0]["answer_start"],
    )
    if not all(map(_is_text, (question.question, question.context, *question.answers))) or type(question.answer_start) is not int:
        raise TypeError
    return question


# ---------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument("--data_dir", required=True)
    args = parser.parse_args(argv)
    task = TASKS[args.task]
    labels = task_labels(task, args.data_dir)
    paths: dict[str, Path] = {}
    for split in task.files:
        try:
            paths[split] = find_file(task, args.data_dir, split)
        except UserError as missing:
            if split in ("train", "dev"):
                raise
            print(missing)
    for split, path in paths.items():
        examples: list = load_split(task, path, labels)
        print(size_line(task, split, path, examples))
        if not task.is_reading:
            label, count = Counter(example.label for example in examples).most_common(1)[0]
            print(f"    most frequent label: {labels[label]}, {100 * count / len(examples):.2f} %")


if __name__ == "__main__":
    run_script(main)
