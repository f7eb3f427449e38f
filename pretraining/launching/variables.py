"""The variables of distill.sh: how they are declared, read from words such as ``train_steps=1000``, and printed."""

import shlex
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from pretraining.matches import fault_of_name
from pretraining.utils import UserError, positive_int

LARGEST_COUNT = 999_999_999
LINE_WIDTH = 120

Settings = TypeVar("Settings", bound=Any)  # a dataclass of variables


class SettingError(UserError):
    """A variable of distill.sh has a wrong name or value."""

    def __init__(self, message: str):
        super().__init__(f"distill.sh: {message}")


# ---------------------------------------------------------------- declared


def variable(convert: Callable[[str], Any], default: str) -> Any:
    """A dataclass field for a variable.

    Args:
        convert: reads its text. As for the argparse types of utils.py, its errors begin with the text.
        default: its published text; empty if it depends on the machine or another variable.
    """
    return field(metadata={"convert": convert, "default": default})


def count(text: str) -> int:
    """A whole number above 0 of at most nine digits."""
    number = positive_int(text)
    if number > LARGEST_COUNT:
        raise ArgumentTypeError(f"{text}: must be at most {LARGEST_COUNT}")
    return number


def count_or_unset(text: str) -> int:
    """0 stands for a variable that is not set."""
    return count(text) if text else 0


def count_or_auto(text: str) -> int:
    """0 stands for ``auto``."""
    return 0 if text == "auto" else count(text)


def text_of(convert: Callable[[str], Any], text: str) -> str:
    """The text as it was given, after a check that ``convert`` reads it."""
    convert(text)
    return text


def mapping_names(text: str) -> list[str]:
    """Names of layer mappings, separated by blanks."""
    names = text.split()
    for name in names:
        if fault := fault_of_name(name):
            raise ArgumentTypeError(f"{text}: {name}: {fault}" if len(names) > 1 else f"{name}: {fault}")
    return names


def flags_of(choices: dict[str, list[str]], text: str) -> list[str]:
    """The flags of train.py that a word stands for."""
    if text not in choices:
        raise ArgumentTypeError(f"{text}: choose {listing(list(choices))}")
    return choices[text]


def listing(words: list[str]) -> str:
    """``a, b or c``"""
    return f"{', '.join(words[:-1])} or {words[-1]}"


# ---------------------------------------------------------------- read


def read_words(words: list[str], names: list[str]) -> dict[str, str]:
    """Texts by name, from the words after ``sh distill.sh``: the recipe, or none, and ``name=value``; empty words are dropped.

    Raises:
        UserError: no variable has that name, one is given twice, or one has no value.
    """
    texts: dict[str, str] = {}
    for word in filter(None, words):
        name, equals, text = word.partition("=") if "=" in word else ("recipe", "=", word)
        if name not in names:
            raise SettingError(f"{word}: no such variable; {_advice(name, names)}")
        if name in texts:
            earlier = texts[name] if name == "recipe" else f"{name}={texts[name]}"
            raise SettingError(f"{word}: {earlier} is given too; give {'one recipe' if name == 'recipe' else 'it once'}")
        if not text:
            raise SettingError(f"{word}: has no value; write {name}=VALUE or leave it out")
        texts[name] = text
    return texts


def convert_texts(settings_class: type[Settings], texts: dict[str, str]) -> Settings:
    """The variables, each read by its own converter.

    Raises:
        UserError: a converter refuses its text.
    """
    values: dict[str, Any] = {}
    for entry in fields(settings_class):
        try:
            values[entry.name] = entry.metadata["convert"](texts[entry.name])
        except ArgumentTypeError as error:
            raise SettingError(f"{entry.name}={error}") from None
    return settings_class(**values)


def refuse_unused(settings: Any, unused: tuple[str, ...], texts: dict[str, str]) -> None:
    """Refuses a variable that the recipe does not use, unless it is the default."""
    for entry in fields(settings):
        if entry.name in unused and texts[entry.name] != entry.metadata["default"]:
            raise SettingError(f"{entry.name}={texts[entry.name]}: recipe {settings.recipe.name} does not use it; leave it out")


def _advice(name: str, names: list[str]) -> str:
    nearest = get_close_matches(name.lstrip("-").lower(), names, n=1, cutoff=0.5)
    return f"did you mean {nearest[0]}=…?" if nearest else "the head of distill.sh lists them"


# ---------------------------------------------------------------- printed


def settings_table(settings: Any, texts: dict[str, str]) -> str:
    """The variables in force as ``name=value``, and which of them are not the default.

    Args:
        settings: a dataclass of variables; it has the values of those whose default depends on something.
        texts: the text of each variable, as it was given.
    """
    in_force, changed = [], []
    for entry in fields(settings)[1:]:  # the recipe has its own place
        default, value = entry.metadata["default"], getattr(settings, entry.name)
        text = texts[entry.name] if default else " ".join(value) if isinstance(value, list) else str(value)
        in_force.append(f"{entry.name}={shlex.quote(text)}")
        if texts[entry.name] != default:
            changed.append(in_force[-1] + (f" (default {default})" if default else ""))
    lines = [""]
    for word in in_force:
        if len(lines[-1]) + len(word) > LINE_WIDTH:
            lines.append("")
        lines[-1] += f"  {word}"
    return "\n".join([f"==== {settings.recipe.name}, with these settings:", *lines, f"not the default: {', '.join(changed) or 'nothing'}"])
