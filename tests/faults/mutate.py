"""Wrong files out of right ones: a seeded mutator of bytes, of JSON and of Python values."""

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

NUMBERS = [0, -1, 1, 2, 3, 255, 2**15, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 10**30, -(10**30), 0.5, -0.0, 1e308, float("inf"), float("nan")]
TEXTS = [
    "",
    " ",
    "\0",
    "\ud800",
    "\u2028",
    "\ufeff",
    "../x",
    "/dev/zero",
    "/",
    "[CLS]",
    "##今",
    "今天" * 400,
    "true",
    "1",
    "{}",
    "%s",
    "🙂",
    "LABEL_0",
]
VALUES: list[Any] = [*NUMBERS, *TEXTS, None, True, False, [], {}, [[]], [None], {"": None}, [{}], [0, 1], {"a": [1]}]
SNIPPETS = [
    *(text.encode("utf-8", "surrogatepass") for text in TEXTS),
    *b'[ ] { } , : " \\ \n \r \t'.split(b" "),
    b"\xff",
    b"\xed\xa0\x80",
    b"\r\n",
    b"NaN",
    b"-1",
    b"1e999",
    b"9" * 5000,
    b"[" * 100_000,
    b'{"a":' * 5000,
    b'"\\ud800"',
    b"null",
]
Mutator = Callable[[bytes, random.Random], bytes]


def mutated_bytes(right: bytes, draw: random.Random) -> bytes:
    """One to three changes of bytes: cut, inserted, overwritten, deleted, repeated, one bit turned."""
    content = right
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place = draw.randint(0, len(content))
        length = draw.choice((1, 1, 2, 8, 64, 1024))
        before, part, after = content[:place], content[place : place + length], content[place + length :]
        kind = draw.randrange(6)
        if kind == 0:
            content = before
        elif kind == 1:
            content = before + draw.choice(SNIPPETS) + part + after
        elif kind == 2:
            content = before + draw.randbytes(len(part)) + after
        elif kind == 3:
            content = before + after
        elif kind == 4:
            content = before + part * draw.choice((2, 3, 50)) + after
        elif part:
            content = before + bytes([part[0] ^ 1 << draw.randrange(8)]) + part[1:] + after
    return content


def mutated_value(right: Any, draw: random.Random, values: list[Any] | None = None) -> Any:
    """A copy of nested dicts and lists with one to three changes: a value replaced, taken out, doubled or moved."""
    value = copy.deepcopy(right)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holders = list(_holders(value))
        if not holders:
            return draw.choice(values or VALUES)
        holder, other = draw.choice(holders), draw.choice(holders)
        key = draw.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        kind = draw.randrange(8)
        if kind == 0:
            del holder[key]
        elif kind == 1:
            holder[key] = copy.deepcopy(draw.choice(list(other.values()) if isinstance(other, dict) else other))
        elif kind == 2 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(holder[key]))
        elif kind == 3 and isinstance(holder, dict):
            holder[draw.choice(TEXTS)] = holder[key]
        elif kind == 4 and type(holder[key]) in (int, float):
            holder[key] += draw.choice((-1, 1, 7, 256))
        else:
            holder[key] = copy.deepcopy(draw.choice(values or VALUES))
    return value


def _holders(value: Any) -> Iterator[Any]:
    """All dicts and lists in a value that hold something."""
    if isinstance(value, dict | list) and value:
        yield value
        for item in value.values() if isinstance(value, dict) else value:
            yield from _holders(item)


def mutated_json(right: bytes, draw: random.Random) -> bytes:
    """A JSON file with other values, mostly; sometimes with other bytes."""
    if draw.random() < 0.3:
        return mutated_bytes(right, draw)
    return json.dumps(mutated_value(json.loads(right), draw), ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")


def mutated_json_lines(right: bytes, draw: random.Random) -> bytes:
    """The same for one line of a file with a JSON value in each."""
    lines = right.split(b"\n")
    number = draw.randrange(len(lines) - 1)
    lines[number] = mutated_json(lines[number], draw)
    return b"\n".join(lines)
