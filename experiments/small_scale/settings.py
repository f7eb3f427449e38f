"""The settings of the experiment: read from settings.toml before a run, and from a work directory after it."""

import re
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from pretraining.corpus.files import opened, read_lines, require_file
from pretraining.utils import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SETTINGS_FILE = Path(__file__).with_name("settings.toml")
SCALES = ("gpu", "dry")
SCALE_NAME = "SCALE"  # the name of ``scale`` in a work directory's settings.txt
NO_RESULT = ("teacher_save_steps", "student_save_steps")  # settings that change no result; settings.txt leaves them out


@dataclass(frozen=True)
class Shape:
    """The size of a BERT encoder, written ``LAYERS/HIDDEN/FFN/HEADS``."""

    layers: int
    hidden: int
    ffn: int
    heads: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """An argparse type."""
        if not re.fullmatch(r"\d+(/\d+){3}", text):
            raise ArgumentTypeError(f"{text}: write LAYERS/HIDDEN/FFN/HEADS")
        return cls(*map(int, text.split("/")))

    def __str__(self) -> str:
        return f"{self.layers}/{self.hidden}/{self.ffn}/{self.heads}"


@dataclass(frozen=True)
class TaskSample:
    """A task and how many examples of it are used, the first ones of each file; written ``NAME:TRAIN:DEV``."""

    name: str
    train: int
    dev: int

    @classmethod
    def parse(cls, text: str) -> "TaskSample":
        """An argparse type."""
        if not re.fullmatch(r"\w+(:\d+){2}", text):
            raise ArgumentTypeError(f"{text}: write NAME:TRAIN:DEV")
        name, train, dev = text.split(":")
        return cls(name, int(train), int(dev))

    def __str__(self) -> str:
        return f"{self.name}:{self.train}:{self.dev}"


@dataclass(frozen=True)
class ScaleSettings:
    """What settings.toml says of one scale; the reasons stand there. Learning rates are kept as they are written, such as ``5e-4``."""

    scale: str
    shallow_shape: Shape
    teacher_shape: Shape
    ta_shape: Shape
    narrow_deep_shape: Shape
    wide_shallow_shape: Shape
    positions: int
    teacher_layers: tuple[int, ...]
    ta_layers: tuple[int, ...]
    corpus_bytes: int
    dev_every: int
    length: int
    learning_rate: str
    temperature: int
    precision: str
    teacher_batch: int
    shallow_steps: int
    teacher_steps: int
    student_batch: int
    student_steps: int
    seeds: tuple[int, ...]
    tasks: tuple[TaskSample, ...]
    learning_rates: tuple[str, ...]
    epochs: int
    finetune_batch: int
    train_jobs: int
    finetune_jobs: int
    teacher_save_steps: int  # of the teacher and its first layers; 0 if read from a settings.txt
    student_save_steps: int  # of students and assistants; likewise

    @classmethod
    def from_texts(cls, texts: Mapping[str, str], source: Path) -> "ScaleSettings":
        """Parses the values of all settings; the items of a list stand between spaces.

        Raises:
            UserError: a setting is missing, unknown or not of its type; the message names ``source`` and the setting.
        """
        types = get_type_hints(cls)
        for name in [*types, *texts]:
            if name not in types or name not in texts:
                raise UserError(
                    f"{source}: the setting {name} is {'missing' if name in types else 'unknown'}; compare with {SETTINGS_FILE}"
                )
        values = {}
        for name, text in texts.items():
            try:
                values[name] = PARSERS[types[name]](text)
            except (ValueError, ArgumentTypeError) as error:
                raise UserError(f"{source}: {name}: {error}") from None
        return cls(**values)

    def shape_of(self, name: str) -> Shape:
        """The shape of ``shallow``, ``teacher``, ``ta``, ``narrow_deep`` or ``wide_shallow``."""
        return getattr(self, f"{name}_shape")

    def lines(self) -> list[str]:
        """``NAME=VALUE`` of every setting that can change a result."""
        names = [field.name for field in fields(self) if field.name not in NO_RESULT]
        return [f"{SCALE_NAME if name == 'scale' else name}={_text(getattr(self, name))}" for name in names]


PARSERS: dict[Any, Callable[[str], Any]] = {
    str: str,
    int: int,
    Shape: Shape.parse,
    tuple[int, ...]: lambda text: tuple(map(int, text.split())),
    tuple[str, ...]: lambda text: tuple(text.split()),
    tuple[TaskSample, ...]: lambda text: tuple(map(TaskSample.parse, text.split())),
}


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def read_settings(scale: str, path: Path = SETTINGS_FILE) -> ScaleSettings:
    """Reads one scale of settings.toml: the values at its top, and those of the table ``[scale]``.

    Raises:
        UserError: the file is not valid TOML, or its settings are not those of :class:`ScaleSettings`.
    """
    with opened(require_file(path, "the settings of the experiment")) as file:
        try:
            content = tomllib.load(file, parse_float=str)  # 5e-4 stays 5e-4, in commands and in names of directories
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: is not valid TOML ({error})") from None
    shared = {name: value for name, value in content.items() if name not in SCALES}
    values = {**shared, **content.get(scale, {}), "scale": scale}
    return ScaleSettings.from_texts({name: _text(value) for name, value in values.items()}, path)


def read_noted_settings(path: Path) -> ScaleSettings:
    """Reads the settings.txt of a work directory, which run.py wrote.

    Raises:
        UserError: there is none, or it is not what run.py writes.
    """
    lines = read_lines(require_file(path, "the experiment's settings, written by run.py"))
    texts = dict(line.split("=", 1) for line in lines if "=" in line)
    if SCALE_NAME in texts:
        texts["scale"] = texts.pop(SCALE_NAME)
    return ScaleSettings.from_texts({**texts, **dict.fromkeys(NO_RESULT, "0")}, path)
