"""Reads files of rows: JSON lines, tables, CoNLL. Every row comes with its line, counted from 1, for the error messages."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetuning.task_definitions import Task, is_text
from pretraining.corpus.files import read_lines
from pretraining.utils import UserError

Rows = Iterator[tuple[int, dict[str, Any]]]  # line number and the row: column or key -> value
Tagged = list[tuple[int, str, str]]  # of each token of a sentence: line number, token, tag


def read_rows(task: Task, path: str | Path, with_label: bool = True) -> Rows:
    """The rows of a file in the layout of a task.

    Args:
        with_label: False for a file to predict; its rows need only the texts.

    Raises:
        UserError: a row that is not in the layout, or lacks a field of the task; in an own task's file a blank line.
    """
    needed = (task.label, *task.fields) if with_label else task.fields
    if task.layout == "table":
        return _table_rows(task, path, needed)
    return json_rows(path, needed, strict=task.is_own)


def json_rows(path: str | Path, needed: tuple[str, ...], strict: bool = False) -> Rows:
    """One JSON object per line with the keys ``needed``; blank lines are skipped, or refused if ``strict``."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            if strict:
                raise blank_line(path, number)
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not valid JSON ({error.msg}); write one JSON object a line") from None
        except (ValueError, RecursionError):  # a number of thousands of digits, thousands of nested brackets
            raise UserError(f"{path}:{number}: not valid JSON that can be read; write one JSON object a line") from None
        for key in needed:
            if not isinstance(row, dict) or key not in row:
                raise UserError(f"{path}:{number}: must be a JSON object with the key {key!r}")
        yield number, row


def blank_line(path: str | Path, number: int) -> UserError:
    """The error of a line without text."""
    return UserError(f"{path}:{number}: the line is empty; remove it")


def _table_rows(task: Task, path: str | Path, needed: tuple[str, ...]) -> Rows:
    """Rows as dicts. The first row is a header and names the columns if the task does not name them, or if it has their label."""
    rows = _csv_rows(path) if Path(path).suffix == ".csv" else _tab_rows(path)
    columns, is_first = task.columns, True
    for number, row in rows:
        if not row:
            if task.is_own:
                raise blank_line(path, number)
            continue
        if is_first and (not columns or task.label in row):
            columns = tuple(row)
            for name in task.columns or needed:
                if name not in columns:
                    raise UserError(f"{path}:{number}: the header has no column {name!r}, only {', '.join(columns)}")
        elif len(row) != len(columns):
            raise UserError(f"{path}:{number}: {len(row)} columns instead of {len(columns)} ({', '.join(columns)})")
        else:
            yield number, dict(zip(columns, row))
        is_first = False


def _tab_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a tab-separated file; a blank line is an empty row."""
    for number, line in enumerate(read_lines(path), start=1):
        yield number, line.split("\t") if line.strip() else []


def _csv_rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """Rows of a comma-separated file, each with its first line; a quoted cell may hold commas, quotes and line ends."""
    reader = csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{path}:{number}: not valid CSV ({error}); is a quote left open?") from None
        if row is None:
            return
        yield number, row


def read_tagged(task: Task, path: str | Path) -> Iterator[Tagged]:
    """The sentences of a labelling task with their tags; a text in a row is labelled character by character.

    Raises:
        UserError: as :func:`read_rows`, a text without a token, or another number of tags than tokens.
    """
    if task.layout == "conll":
        yield from _conll_sentences(path)
        return
    for number, row in read_rows(task, path):
        tokens, tags = to_tokens(path, number, task, row), row[task.label]
        if isinstance(tags, str):
            tags = tags.split()
        if not isinstance(tags, list) or not all(map(is_text, tags)):
            raise UserError(f"{path}:{number}: {task.label} must be a list of tags, or tags with spaces between them")
        if len(tags) != len(tokens):
            raise UserError(f"{path}:{number}: {len(tokens)} tokens, but {len(tags)} tags; each token or character needs one")
        yield [(number, token, tag) for token, tag in zip(tokens, tags)]


def to_tokens(path: str | Path, number: int, task: Task, row: dict[str, Any]) -> tuple[str, ...]:
    """The tokens of a row to label: those of a list, or the characters of a text."""
    field = task.fields[0] if task.fields else "tokens"
    value = row[field]
    tokens = tuple(value) if isinstance(value, str | list) else ()
    if not tokens or not all(is_text(token) and token for token in tokens):
        raise UserError(f"{path}:{number}: {field} must be text or a list of tokens, none of them empty")
    return tokens


def _conll_sentences(path: str | Path) -> Iterator[Tagged]:
    """Sentences of lines with a token and its tag, with a tab or a space between them."""
    sentence: Tagged = []
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            if sentence:
                yield sentence
            sentence = []
            continue
        parts = line.split("\t" if "\t" in line else " ")
        if len(parts) != 2 or not all(parts):
            raise UserError(f"{path}:{number}: must be a token and its tag, with a tab or a space between them")
        sentence.append((number, parts[0], parts[1]))
    if sentence:
        yield sentence
