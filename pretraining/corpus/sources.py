"""Any corpus -> documents: text, JSON lines, CSV and Parquet files, plain or compressed, and data sets saved by Hugging Face datasets.

datatrove's readers leave out a broken line with a line in a log, and know neither its number nor other encodings than UTF-8. These name
it. Positions are counted from 1.
"""

import bz2
import codecs
import csv
import glob
import gzip
import io
import json
import lzma
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from pretraining.corpus.files import require_file
from pretraining.corpus.formats import BYTE_ORDER_MARK
from pretraining.utils import UserError

COMPRESSIONS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".xz": lzma.LZMAFile,
    ".bz2": bz2.BZ2File,
    ".zst": lambda file: pa.CompressedInputStream(pa.PythonFile(file), "zstd"),
}
TEXT_KINDS = (".txt", ".jsonl", ".json", ".csv")
MAX_TEXT_DOCUMENT = 1 << 20  # characters; a text without blank lines is cut into documents of this size, at line ends
DATASET = "data set"


class Source(NamedTuple):
    """A file of documents, or a saved data set.

    Attributes:
        kind: a suffix of ``TEXT_KINDS``, ".parquet", or ``DATASET``.
        compression: a key of ``COMPRESSIONS``, or "".
        size: bytes on the disk.
    """

    path: Path
    kind: str
    compression: str
    size: int


class Document(NamedTuple):
    """A document, or what is wrong with it.

    Attributes:
        place: where it begins, for messages.
        text: of a document that can be read.
        error: of one that cannot.
        done: bytes of the source that were read so far, of ``Source.size``.
    """

    place: str
    text: str
    error: str
    done: int


# ---------------------------------------------------------------- which files


def find_sources(names: list[str]) -> list[Source]:
    """The sources that files, folders and glob patterns name, each folder in alphabetical order.

    Raises:
        UserError: no such file, another kind of file, a folder without any source, or a source that is named twice.
    """
    sources: list[Source] = []
    for name in names:
        paths = [Path(path) for path in sorted(glob.glob(name, recursive=True))] if glob.has_magic(name) else [Path(name)]
        if not paths:
            raise UserError(f"{name}: no file has such a name")
        for path in paths:
            sources += _sources_of_folder(path) if path.is_dir() else [_source_of(require_file(path, "a source of text"))]
    seen: set[Path] = set()
    for source in sources:
        if source.path.resolve() in seen:
            raise UserError(f"{source.path}: is named twice, and its documents would be doubled")
        seen.add(source.path.resolve())
    return sources


def _sources_of_folder(folder: Path) -> list[Source]:
    if _is_dataset(folder):
        return [Source(folder, DATASET, "", sum(path.stat().st_size for path in folder.rglob("*.arrow")))]
    found = [path for path in sorted(folder.rglob("*")) if path.is_file() and _kind_of(path) and not path.name.startswith(".")]
    if not found:
        raise UserError(f"{folder}: has no {', '.join(TEXT_KINDS)} or .parquet file")
    return [_source_of(path) for path in found]


def _is_dataset(folder: Path) -> bool:
    return (folder / "dataset_info.json").is_file() or (folder / "dataset_dict.json").is_file()


def _kind_of(path: Path) -> tuple[str, str] | None:
    """Kind and compression, by the name."""
    compression = path.suffix if path.suffix in COMPRESSIONS else ""
    kind = Path(path.stem).suffix if compression else path.suffix
    return (kind, compression) if kind in TEXT_KINDS or kind == ".parquet" and not compression else None


def _source_of(path: Path) -> Source:
    kind = _kind_of(path)
    if kind is None:
        raise UserError(f"{path}: is no {', '.join(TEXT_KINDS)}, plain or with {', '.join(COMPRESSIONS)}, and no .parquet file")
    return Source(path, *kind, path.stat().st_size)


# ---------------------------------------------------------------- documents


def read_documents(source: Source, text_key: str, encoding: str) -> Iterator[Document]:
    """Yields the documents of a source in order, in memory that does not grow with the source.

    A document of a text file ends at a blank line, or at ``MAX_TEXT_DOCUMENT`` characters.

    Args:
        text_key: field or column with the text; not of text files.
        encoding: of text files, JSON lines and CSV.
    """
    if source.kind == ".parquet":
        yield from _read_parquet(source, text_key)
    elif source.kind == DATASET:
        yield from _read_dataset(source, text_key)
    else:
        with open(source.path, "rb") as file:
            unpacked = COMPRESSIONS[source.compression](file) if source.compression else file
            lines = _Lines(source.path, io.BufferedReader(unpacked, 1 << 20) if source.compression else unpacked, encoding)
            for place, text, error in {".txt": _read_text, ".csv": _read_csv}.get(source.kind, _read_json_lines)(lines, text_key):
                yield Document(place, text, error, file.tell())


class _Lines:
    """The decoded lines of a file, without their ends; None for a line that is not in the encoding.

    Attributes:
        number: of the line that was read last.
        error: why there are no more lines, if the file is not at its end.
    """

    def __init__(self, path: Path, file: Any, encoding: str):
        self.path, self.file, self.encoding, self.number, self.error = path, file, encoding, 0, ""
        self.wrong_encoding = f"is not in {encoding}; name the right --encoding"

    @property
    def place(self) -> str:
        return f"{self.path}:{self.number}"

    def __iter__(self) -> Iterator[str | None]:
        try:
            for line in self._decoded():
                self.number += 1
                yield line if line is None else line.rstrip("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            self.number += error.object.count(b"\n", 0, error.start)
            self.error = self.wrong_encoding
        except (EOFError, OSError, lzma.LZMAError) as error:
            self.error = f"is damaged or cut off ({error}); copy it again"
        self.number += 1

    def _decoded(self) -> Iterator[str | None]:
        if "\n".encode(self.encoding) != b"\n":  # UTF-16 and UTF-32: a byte of another character may be that of a line end
            reader = io.TextIOWrapper(self.file, encoding=self.encoding, newline="\n")
            yield from reader
            reader.detach()  # else it would close the file
            return
        decode = codecs.getdecoder(self.encoding)
        for number, line in enumerate(self.file):
            try:
                yield decode(line.removeprefix(BYTE_ORDER_MARK) if number == 0 else line)[0]
            except UnicodeDecodeError:
                yield None


Read = Iterator[tuple[str, str, str]]  # place, text, error


def _read_text(lines: _Lines, text_key: str) -> Read:
    block: list[str] = []
    place, broken, size = "", "", 0

    def document() -> tuple[str, str, str]:
        return (broken, "", lines.wrong_encoding) if broken else (place, "\n".join(block), "")

    for line in lines:
        if line is None:
            broken = broken or lines.place
        elif line.strip():
            place = place or lines.place
            block.append(line)
            size += len(line)
        if (line is not None and not line.strip() or size >= MAX_TEXT_DOCUMENT) and (block or broken):
            yield document()
            block, place, broken, size = [], "", "", 0
    if lines.error:
        yield lines.place, "", lines.error
    elif block or broken:
        yield document()


def _read_json_lines(lines: _Lines, text_key: str) -> Read:
    for line in lines:
        if line is None:
            yield lines.place, "", lines.wrong_encoding
        elif line.strip():
            yield lines.place, *_text_of_json(line, text_key)
    if lines.error:
        yield lines.place, "", lines.error


def _text_of_json(line: str, text_key: str) -> tuple[str, str]:
    """Text and error of a line of JSON."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return "", "is not JSON; each line must be one JSON object"
    if not isinstance(value, dict):
        return "", "is not a JSON object"
    if text_key not in value:
        return "", f"has no {text_key!r}, but {sorted(value)[:5]}; name the right --text_key"
    text = value[text_key]
    return (text, "") if isinstance(text, str) else ("", f"its {text_key!r} is not a text")


def _read_csv(lines: _Lines, text_key: str) -> Read:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(_lines_of_csv(lines), strict=True)
    try:
        columns = list(reader.fieldnames or ())
        if columns and text_key not in columns:
            yield f"{lines.path}:1", "", f"there is no column {text_key!r}, but {columns[:5]}; name the right --text_key"
            return
        place = f"{lines.path}:{lines.number + 1}"
        for row in reader:
            yield (place, row[text_key], "") if row[text_key] is not None else (place, "", "has too few columns")
            place = f"{lines.path}:{lines.number + 1}"
    except csv.Error as error:
        yield lines.place, "", f"is not CSV ({error})"  # where the next row begins is not known
    if lines.error:
        yield lines.place, "", lines.error


def _lines_of_csv(lines: _Lines) -> Iterator[str]:
    for line in lines:
        if line is None:
            lines.error = lines.wrong_encoding
            return
        yield f"{line}\n"


def _read_parquet(source: Source, text_key: str) -> Iterator[Document]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(source.path) as file:
            if text_key not in file.schema_arrow.names:
                names = file.schema_arrow.names[:5]
                yield Document(str(source.path), "", f"there is no column {text_key!r}, but {names}; name the right --text_key", 0)
                return
            batches = (batch.column(0) for batch in file.iter_batches(batch_size=1000, columns=[text_key]))
            yield from _documents_of_columns(source, text_key, batches, file.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        yield Document(str(source.path), "", f"is damaged or cut off ({str(error).splitlines()[0]}); copy it again", source.size)


def _read_dataset(source: Source, text_key: str) -> Iterator[Document]:
    from datasets import DatasetDict, load_from_disk

    try:
        loaded = load_from_disk(str(source.path))
    except Exception as error:  # each damage of a saved data set raises another exception
        yield Document(str(source.path), "", f"is no data set that can be read ({str(error).splitlines()[0]})", source.size)
        return
    for name, split in loaded.items() if isinstance(loaded, DatasetDict) else [("", loaded)]:
        if text_key not in split.column_names:
            yield Document(
                str(source.path / name), "", f"there is no column {text_key!r}, but {split.column_names[:5]}; name the right --text_key", 0
            )
            return
        table = split.select_columns([text_key]).with_format("arrow")
        named = source._replace(path=source.path / name)
        yield from _documents_of_columns(named, text_key, (batch.column(0) for batch in table.iter(1000)), len(split))


def _documents_of_columns(source: Source, text_key: str, columns: Iterator[Any], rows: int) -> Iterator[Document]:
    number = 0
    for column in columns:
        for text in column.to_pylist():
            number += 1
            error = "" if isinstance(text, str) else f"its {text_key!r} is not a text"
            yield Document(f"{source.path}: row {number}", "" if error else text, error, source.size * number // rows)
