"""What the files of a task are read into."""

from pathlib import Path
from typing import NamedTuple


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


class Sentence(NamedTuple):
    """One sentence to label; ``id`` is its first line in the file, ``tags`` are indices into the labels of the task, one a token."""

    id: str
    tokens: tuple[str, ...]
    tags: tuple[int, ...]


class TaskData(NamedTuple):
    """The data of one task: its labels, and for "train" and "dev" the file and its examples."""

    labels: tuple[str, ...]
    paths: dict[str, Path]
    examples: dict[str, list]
