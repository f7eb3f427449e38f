"""What is not plain text, though a user may take it for a text file: compressed files, tables, UTF-16, JSON lines."""

import json
import re
import shlex
from pathlib import Path
from typing import BinaryIO

from pretraining.utils import UserError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # of UTF-8
JSON_LINES = 5  # so many lines that are JSON objects, or all lines of a shorter file, are no accident

# What a file begins with, its name, and the way to text. Each contains a byte or a mark that no text begins with.
FORMATS = (
    (rb"\x1f\x8b", "is a gzip file", "unpack it: gzip -dk {path}"),
    (rb"\x28\xb5\x2f\xfd", "is a Zstandard file", "unpack it: zstd -d {path}"),
    (rb"\xfd7zXZ\x00", "is an xz file", "unpack it: xz -dk {path}"),
    (rb"BZh\d1AY&SY", "is a bzip2 file", "unpack it: bzip2 -dk {path}"),
    (rb"PK\x03\x04", "is a zip file", "unpack it: unzip {path}"),
    (rb"PAR1\x15", "is a Parquet file", "convert it: python scripts/prepare_corpus.py --sources {path} --output_dir dataset/corpus"),
    (rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "is in UTF-32", "convert it to UTF-8: iconv -f UTF-32 -t UTF-8 {path} > {new}"),
    (rb"\xff\xfe|\xfe\xff", "is in UTF-16", "convert it to UTF-8: iconv -f UTF-16 -t UTF-8 {path} > {new}"),
)


def refuse_other_formats(path: str | Path, beginning: bytes) -> None:
    """Raises UserError if the first bytes of a file are those of one of ``FORMATS``; the error names it and the way to text."""
    for pattern, name, advice in FORMATS:
        if re.match(pattern, beginning):
            raise UserError(f"{path}: {name}, not text in UTF-8; {advice.format(path=shlex.quote(str(path)), new=_new_name(path))}")


def require_plain_text(path: str | Path, file: BinaryIO) -> None:
    """Raises UserError if a text is in another format, or if its first lines are JSON objects: their keys are no text to train on.

    Args:
        file: the text, at its start; only the first bytes are read where they are not those of JSON.
    """
    beginning = file.read(64)
    refuse_other_formats(path, beginning)
    if not beginning.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"{"):
        return
    file.seek(0)
    objects: list[dict] = []
    while len(objects) < JSON_LINES and (line := file.readline(1 << 20)):
        try:
            value = json.loads(line.decode("utf-8-sig")) if line.strip() else None
        except (ValueError, RecursionError):  # no UTF-8, no JSON, or JSON that cannot be read
            return
        if not isinstance(value, dict) and line.strip():
            return
        objects += [value] if isinstance(value, dict) else []
    if objects:
        texts = {key: value for key, value in objects[0].items() if isinstance(value, str)}
        key = max(texts, key=lambda key: len(texts[key])) if texts else "text"
        source = Path(path).with_suffix(".jsonl")
        rename = "" if Path(path) == source else f"mv {shlex.quote(str(path))} {shlex.quote(str(source))} && "
        options = f"--sources {shlex.quote(str(source))} --text_key {shlex.quote(key)} --output_dir dataset/corpus"
        raise UserError(f"{path}: holds JSON objects, not plain text; convert them: {rename}python scripts/prepare_corpus.py {options}")


def _new_name(path: str | Path) -> str:
    return shlex.quote(str(Path(path).with_name(f"{Path(path).name.split('.')[0]}_text.txt")))
