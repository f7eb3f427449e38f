"""The definitions of the downstream tasks: each is a JSON file in ``tasks/`` with the fields of :class:`Task`.

A new task of a known layout needs its JSON file and nothing else.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pretraining.corpus.files import read_json
from pretraining.utils import UserError

TASKS_DIR = Path(__file__).with_name("tasks")
LAYOUTS = ("squad", "jsonl", "table")


@dataclasses.dataclass(frozen=True)
class Task:
    """What differs between the tasks.

    Attributes:
        name: as on the command line; also the name of the task's JSON file.
        title: as the tables print it.
        position: its column in the tables, from 1.
        layout: of the files: "squad" (SQuAD-style JSON), "jsonl" (one JSON object per line) or "table" (one row per line:
            tab-separated without quotes; in a ``.csv`` comma-separated with quotes).
        files: the accepted file names of each split, first the name as distributed.
        sizes: the official number of examples of each split.
        max_seq_length: default number of tokens per row, special tokens included.
        learning_rate_roberta, learning_rate_small: the published best learning rates of RoBERTa and of the small models.
        fields: the keys or columns with the text: one for sentences, two for pairs.
        columns: the order of all columns in a table without a header.
        labels: in the order of their indices. Empty: the data comes with a ``labels.json``.
        skipped_labels: rows with these labels are not used.
    """

    name: str
    title: str
    position: int
    layout: str
    files: dict[str, tuple[str, ...]]
    sizes: dict[str, int]
    max_seq_length: int
    learning_rate_roberta: float
    learning_rate_small: float
    fields: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    skipped_labels: tuple[str, ...] = ()

    @property
    def is_reading(self) -> bool:
        """True if the answer is a span of a text, False if it is a label."""
        return self.layout == "squad"

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, all in percent; the first one ranks."""
        return ("f1", "em") if self.is_reading else ("accuracy",)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(_is_text(item) for item in value)


# For each type of a Task's field: the test for its JSON value, and what the error message asks for.
RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (_is_text, "a text"),
    int: (_is_count, "a whole number above 0"),
    float: (lambda value: type(value) in (int, float) and 0 < value < math.inf, "a number above 0"),
    tuple[str, ...]: (_is_texts, "a list of texts"),
    dict[str, int]: (lambda value: isinstance(value, dict) and all(map(_is_count, value.values())), "an object of whole numbers above 0"),
    dict[str, tuple[str, ...]]: (
        lambda value: isinstance(value, dict) and all(_is_texts(names) and names for names in value.values()),
        "an object of lists of texts, none of them empty",
    ),
}


def read_task(path: Path) -> Task:
    """Reads the JSON file of one task.

    Raises:
        UserError: a field is missing, unknown, of another type or does not fit the others.
    """
    values = read_json(path, "a task")
    fields = {field.name: field for field in dataclasses.fields(Task)}
    for name, field in fields.items():
        if name not in values and field.default is dataclasses.MISSING:
            raise UserError(f"{path}: has no {name!r}")
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{path}: {name!r} is not a field of a task; the fields are {', '.join(fields)}")
        accepts, rule = RULES[fields[name].type]
        if not accepts(value):
            raise UserError(f"{path}: {name!r} must be {rule}")
        if isinstance(value, list):
            values[name] = tuple(value)
    values["files"] = {split: tuple(names) for split, names in values["files"].items()}
    task = Task(**values)
    _check_task(path, task)
    return task


def _check_task(path: Path, task: Task) -> None:
    """Refuses fields that do not fit one another."""
    if task.name != path.stem:
        raise UserError(f"{path}: 'name' is {task.name!r}; it must be the name of the file, {path.stem!r}")
    if task.layout not in LAYOUTS:
        raise UserError(f"{path}: 'layout' is {task.layout!r}; it must be one of {', '.join(LAYOUTS)}")
    if not {"train", "dev"} <= task.files.keys() or task.files.keys() != task.sizes.keys():
        raise UserError(f"{path}: 'files' and 'sizes' must have the same splits, train and dev among them")
    if not task.is_reading and len(task.fields) not in (1, 2):
        raise UserError(f"{path}: 'fields' must name one or two texts")
    if task.layout == "table" and not {*task.fields, "label"} <= set(task.columns):
        raise UserError(f"{path}: 'columns' must name the fields and 'label'")
    if len(task.labels) == 1 or len(set(task.labels)) != len(task.labels):
        raise UserError(f"{path}: 'labels' must have at least two labels, each once")


def read_tasks(directory: Path) -> dict[str, Task]:
    """Reads all tasks of a directory, in the order of their positions.

    Raises:
        UserError: as :func:`read_task`, or two tasks have the same position.
    """
    at_position: dict[int, Task] = {}
    for path in sorted(directory.glob("*.json")):
        task = read_task(path)
        other = at_position.setdefault(task.position, task)
        if other is not task:
            raise UserError(f"{path}: 'position' is {task.position}, as in {directory / other.name}.json; give each task its own")
    return {at_position[position].name: at_position[position] for position in sorted(at_position)}


class TaskFiles(Mapping[str, Task]):
    """The tasks of a directory by name, in the order of the tables.

    Reads the files at first use, not on import: so a command reports an error in one of them in one line.
    """

    def __init__(self, directory: Path):
        self.directory = directory

    @cached_property
    def tasks(self) -> dict[str, Task]:
        return read_tasks(self.directory)

    def __getitem__(self, name: str) -> Task:
        return self.tasks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def __len__(self) -> int:
        return len(self.tasks)


TASKS = TaskFiles(TASKS_DIR)
