"""The definitions of the downstream tasks: each is a JSON file with the fields of :class:`Task`.

Those in ``tasks/`` belong to the project. A task of your own is such a file anywhere, beside its data.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pretraining.corpus.files import read_json
from pretraining.utils import UserError

TASKS_DIR = Path(__file__).with_name("tasks")
# By kind: the layouts of its files, and by metric the names of its figures; the first metric is the default.
LAYOUTS = {
    "classification": ("jsonl", "table", "cluewsc"),
    "reading": ("squad", "jsonl", "table"),
    "labelling": ("conll", "jsonl", "table"),
}
METRICS: dict[str, dict[str, tuple[str, ...]]] = {
    "classification": {"accuracy": ("accuracy",), "macro_f1": ("macro_f1", "accuracy")},
    "reading": {"f1_em": ("f1", "em")},
    "labelling": {"entity_f1": ("entity_f1",)},
}
WITHOUT_FIELDS = ("squad", "conll")  # layouts that name their parts themselves
SHORTEST_ROW = 16  # tokens; enough for a question and a window
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclasses.dataclass(frozen=True)
class Task:
    """What differs between the tasks. A task of one's own needs ``kind``, ``layout``, ``files``, and mostly ``fields``.

    Attributes:
        name: as on the command line; the name of the JSON file, which is the default.
        kind: "classification" of sentences or pairs, "reading" comprehension, or "labelling" of sequences (entities, BIO).
        layout: of the files. "jsonl": one JSON object per line. "table": one row per line, tab-separated without quotes; in a ``.csv``
            comma-separated with quotes. "squad": SQuAD-style JSON. "conll": a token and its tag per line, a blank line after each
            sentence. "cluewsc": the JSON lines of CLUEWSC2020.
        files: the accepted file names of each split, first the name as distributed; "train" and "dev" are needed.
        title: as the tables print it; default: the name.
        position: its column in the tables, from 1; 0 for a task of one's own.
        sizes: the official number of examples of each split; empty: not known.
        max_seq_length: default number of tokens per row, special tokens included.
        learning_rate_roberta, learning_rate_small: defaults for models of RoBERTa's size and for smaller ones; of the seven published
            tasks the published best ones.
        fields: the keys or columns with the text: one for sentences and labelling, two for pairs, question and context for reading.
        label: the key or column with the label, the answer or the tags.
        columns: the order of all columns in a table without a header. Empty: the first row is the header.
        labels: the labels in the order of their indices; for labelling the types of entities. Empty: those of the train file.
        labels_file: a file beside the data with a JSON object per line, each with a "label"; instead of ``labels``.
        skipped_labels: rows with these labels are not used.
        metric: "accuracy" or "macro_f1", "f1_em", "entity_f1".
    """

    name: str
    kind: str
    layout: str
    files: dict[str, tuple[str, ...]]
    title: str = ""
    position: int = 0
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    max_seq_length: int = 128
    learning_rate_roberta: float = 2e-5
    learning_rate_small: float = 1e-4
    fields: tuple[str, ...] = ()
    label: str = "label"
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    labels_file: str = ""
    skipped_labels: tuple[str, ...] = ()
    metric: str = ""

    @property
    def is_reading(self) -> bool:
        """True if the answer is a span of a text."""
        return self.kind == "reading"

    @property
    def is_labelling(self) -> bool:
        """True if every token has a tag."""
        return self.kind == "labelling"

    @property
    def is_own(self) -> bool:
        """True for a user's task, False for one of the project. Blank lines and texts are errors in its files."""
        return self.position == 0

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, all in percent; the first one ranks."""
        return METRICS[self.kind][self.metric]


def is_text(value: Any) -> bool:
    r"""True for text that can be tokenised and printed: without half a surrogate pair, which JSON can write as \ud800."""
    return isinstance(value, str) and not SURROGATE.search(value)


def _is_name(value: Any) -> bool:
    return is_text(value) and value != ""


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(_is_name(item) for item in value)


# For each type of a Task's field: the test for its JSON value, and what the error message asks for.
RULES: dict[Any, tuple[Callable[[Any], bool], str]] = {
    str: (_is_name, "a text"),
    int: (_is_count, "a whole number above 0"),
    float: (lambda value: type(value) in (int, float) and 0 < value < math.inf, "a number above 0"),
    tuple[str, ...]: (_is_names, "a list of texts"),
    dict[str, int]: (lambda value: isinstance(value, dict) and all(map(_is_count, value.values())), "an object of whole numbers above 0"),
    dict[str, tuple[str, ...]]: (
        lambda value: isinstance(value, dict) and all(_is_name(names) or (_is_names(names) and names) for names in value.values()),
        "an object of file names or lists of them, none of them empty",
    ),
}


def read_task(path: Path) -> Task:
    """Reads the JSON file of one task.

    Raises:
        UserError: a field is missing, unknown, of another type or does not fit the others.
    """
    task = to_task(path, {"name": path.stem, **read_json(path, "a task")})
    if task.name != path.stem:
        raise UserError(f"{path}: 'name' is {task.name!r}; it must be the name of the file, {path.stem!r}")
    return task


def to_task(path: Path, values: dict[str, Any]) -> Task:
    """Makes a task of JSON values; ``path`` is for the messages.

    Raises:
        UserError: as :func:`read_task`.
    """
    fields = {field.name: field for field in dataclasses.fields(Task)}
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}: has no {name!r}")
    for name, value in values.items():
        if name not in fields:
            raise UserError(f"{path}: {name!r} is not a field of a task; the fields are {', '.join(fields)}")
        accepts, rule = RULES[fields[name].type]
        if not accepts(value):
            raise UserError(f"{path}: {name!r} must be {rule}")
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    given["files"] = {split: (names,) if isinstance(names, str) else tuple(names) for split, names in values["files"].items()}
    kind = given["kind"]
    if kind not in METRICS:
        raise UserError(f"{path}: 'kind' is {kind!r}; it must be one of {', '.join(METRICS)}")
    defaults: dict[str, Any] = {"title": given["name"], "metric": next(iter(METRICS[kind]))}
    task = Task(**{**defaults, **given})
    _check_task(path, task)
    return task


def _check_task(path: Path, task: Task) -> None:
    """Refuses fields that do not fit one another."""
    for name, allowed in (("layout", LAYOUTS[task.kind]), ("metric", tuple(METRICS[task.kind]))):
        if getattr(task, name) not in allowed:
            raise UserError(f"{path}: {name!r} is {getattr(task, name)!r}; for {task.kind} it must be one of {', '.join(allowed)}")
    if task.max_seq_length < SHORTEST_ROW:
        raise UserError(f"{path}: 'max_seq_length' must be at least {SHORTEST_ROW}")
    if not {"train", "dev"} <= task.files.keys():
        raise UserError(f"{path}: 'files' must have the splits train and dev")
    if task.sizes and task.files.keys() != task.sizes.keys():
        raise UserError(f"{path}: 'files' and 'sizes' must have the same splits")
    if task.layout not in WITHOUT_FIELDS:
        counts, what = {
            "classification": ((1, 2), "one or two texts"),
            "reading": ((2,), "the question and the context"),
            "labelling": ((1,), "the text"),
        }[task.kind]
        if len(task.fields) not in counts or task.label in task.fields:
            raise UserError(f"{path}: 'fields' must name {what}")
        if task.columns and not {*task.fields, task.label} <= set(task.columns):
            raise UserError(f"{path}: 'columns' must name the fields and {task.label!r}")
    if len(set(task.columns)) != len(task.columns):
        raise UserError(f"{path}: 'columns' names one column twice")
    fewest = 1 if task.is_labelling else 2
    if task.labels and (len(task.labels) < fewest or len(set(task.labels)) != len(task.labels)):
        raise UserError(f"{path}: 'labels' must have at least {'one label' if fewest == 1 else 'two labels'}, each once")


def resolved(task: Task, labels: tuple[str, ...], max_seq_length: int) -> Task:
    """The task with the labels and the length that a model was fine-tuned with.

    Args:
        labels: as :func:`finetuning.tasks.task_labels` returns them.
    """
    names = tuple(tag[2:] for tag in labels if tag.startswith("B-")) if task.is_labelling else labels
    return dataclasses.replace(task, labels=names, labels_file="", max_seq_length=max_seq_length)


def definition(task: Task) -> dict[str, Any]:
    """The JSON values of a task, without those that are the default; :func:`to_task` reads them."""
    values = {field.name: getattr(task, field.name) for field in dataclasses.fields(Task)}
    defaults = {field.name: field.default for field in dataclasses.fields(Task)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items() if value and value != defaults[name]}


# ---------------------------------------------------------------- the tasks of the project


def read_tasks(directory: Path) -> dict[str, Task]:
    """Reads all tasks of a directory, in the order of their positions.

    Raises:
        UserError: as :func:`read_task`, or two tasks have the same position.
    """
    at_position: dict[int, Task] = {}
    for path in sorted(directory.glob("*.json")):
        task = read_task(path)
        if task.is_own:
            raise UserError(f"{path}: has no 'position', its column in the tables, from 1")
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


def find_task(text: str) -> Task:
    """The task of a name, or of the JSON file of a task of one's own.

    Raises:
        UserError: neither; or a file that is wrong, has a ``position``, or has the name of a task of the project.
    """
    if text in TASKS:
        return TASKS[text]
    path = Path(text)
    if path.suffix != ".json":
        raise UserError(f"--task {text}: choose from {', '.join(TASKS)}, or give the JSON file of a task of your own")
    task = read_task(path)
    if not task.is_own:
        raise UserError(f"{path}: 'position' is for the tasks of the project; leave it out")
    if task.name in TASKS:
        raise UserError(f"{path}: {task.name} is a task of the project; give the file another name")
    return task
