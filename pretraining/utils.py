"""What several scripts share: one-line errors, the one way to read lines, checks of the input files, whole-or-nothing writes."""

import hashlib
import json
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

MAX_LINE_BYTES = 16 << 20
BLOCK_BYTES = 1 << 22
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, where, and what to do."""


def first_line(error: Exception) -> str:
    """What a library's exception says, without the advice that some put below it."""
    return f"{error}\n".splitlines()[0] or type(error).__name__


def run_script(main: Callable[[], None]) -> None:
    """Runs a script's ``main``; a :class:`UserError` or a failed file operation ends it with one line on stderr and status 2."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with SIGINT ignored
    warnings.filterwarnings("ignore", module=r"torch\._weights_only_unpickler")  # it warns of a file that is refused anyway
    try:
        main()
    except (UserError, OSError) as error:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        text = f"{where}{error.strerror}" if isinstance(error, OSError) and error.strerror else str(error)
        print("error:", " ".join(text.split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which not every script imports
            raise
        print("error: out of GPU memory; is another program using the GPU? If not, give a smaller batch", file=sys.stderr)
        sys.exit(2)


def parse_one_line_errors(parser, argv: list[str] | None = None):
    """``parse_args`` whose errors are one line, as everywhere here, instead of a usage page."""

    def fail(message: str):
        raise UserError(f"{message} (see python {os.path.basename(sys.argv[0])} --help)")

    parser.error = fail
    return parser.parse_args(argv)


@contextmanager
def progress_bar(**settings):
    """A tqdm bar that goes away when its block fails, so that the error stands alone on its line."""
    with tqdm(**settings) as bar:
        try:
            yield bar
        except BaseException:
            bar.leave = False
            raise


# ---------------------------------------------------------------- lines


@contextmanager
def opened(path: str | Path):
    """Opens a file to read its bytes; a failed read names the file, as a failed open does."""
    try:
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def read_line_blocks(path: str | Path, allow_bom: bool = False) -> Iterator[list[str]]:
    r"""Yields the file's lines in order, in lists of a few megabytes each.

    This is the only definition of a line in the project: it ends at ``\n`` (a ``\r`` before it goes) and at nothing else.

    Raises:
        UserError: invalid UTF-8, a NUL byte, a line over 16 MiB, or a byte-order mark where it is not allowed (where it is, it goes),
            with the line's number.
    """
    number, rest = 1, b""
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            if number == 1 and not rest and block.startswith(b"\xef\xbb\xbf"):
                if not allow_bom:
                    raise UserError(f"{path}:1: begins with a byte-order mark; save the file as UTF-8 without BOM")
                block = block[3:]
            block = rest + block
            cut = block.rfind(b"\n") + 1
            block, rest = block[:cut], block[cut:]
            if len(rest) > MAX_LINE_BYTES:
                long_line = number + block.count(b"\n")
                raise UserError(f"{path}:{long_line}: a line of over 16 MiB; is this a text file with one paragraph a line?")
            if block:
                lines = _decode(path, number, block).split("\n")[:-1]
                number += len(lines)
                yield lines
    if rest:
        yield [_decode(path, number, rest)]


def _decode(path: str | Path, number: int, block: bytes) -> str:
    nul = block.find(b"\0")
    if nul >= 0:
        line = number + block.count(b"\n", 0, nul)
        raise UserError(f"{path}:{line}: holds a NUL byte; is this a text file?")
    try:
        text = block.decode("utf-8")
    except UnicodeDecodeError as error:
        line = number + block.count(b"\n", 0, error.start)
        raise UserError(f"{path}:{line}: not valid UTF-8; convert the file to UTF-8 or mend that line") from None
    return text.replace("\r\n", "\n")


class FileFacts(NamedTuple):
    """A file's content in short: SHA-256 (hex) and number of lines."""

    sha256: str
    lines: int


def file_facts(path: str | Path) -> FileFacts:
    """Hashes a file and counts its lines in one pass, in constant memory."""
    digest, lines, last = hashlib.sha256(), 0, b"\n"
    with opened(path) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            lines += block.count(b"\n")
            last = block[-1:]
    return FileFacts(digest.hexdigest(), lines + (last != b"\n"))


# ---------------------------------------------------------------- input files


def require_file(path: str | Path, what: str) -> Path:
    """Returns ``path`` if it is a readable file, else says what it should have been."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path}: {what} is expected here, but this is a directory")
    if not path.is_file():
        raise UserError(f"{path}: no such file ({what})")
    if not os.access(path, os.R_OK):
        raise UserError(f"{path}: cannot be read; check its permissions ({what})")
    return path


def read_json(path: str | Path, what: str) -> dict:
    """Reads a JSON object; an error names the file and the line."""
    with opened(require_file(path, what)) as file:
        text = file.read()
    try:
        value = json.loads(text.decode("utf-8"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: {what} is not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: {what} is not valid JSON ({error.msg})") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, thousands of brackets in one another
        raise UserError(f"{path}: {what} is not valid JSON that could be read") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: {what} must be a JSON object")
    return value


class TextAndRefs(NamedTuple):
    """One text file of ``data.json`` and its whole-word reference file."""

    text: Path
    refs: Path


def sidecar_of(refs: Path) -> Path:
    """Where run_chinese_ref.py notes what made a reference file."""
    return refs.with_name(refs.name + ".json")


def read_data_json(path: str | Path) -> dict[str, list[TextAndRefs]]:
    """Reads ``jsons/data.json``: ``{"train": {"train_files": [...], "train_ref_files": [...]}, "dev": {"dev_files": ...}}``.

    Returns:
        for "train" and "dev" the pairs of text and reference file, in the file's order. The text files were seen to exist.

    Raises:
        UserError: other keys, lists of different length, a missing text file, or two files whose shards or refs would collide.
    """
    data = read_json(path, "the list of data files")
    if set(data) - {"train", "dev"} or "train" not in data:
        raise UserError(f'{path}: must have the keys "train" and "dev", has {sorted(data)}')
    splits: dict[str, list[TextAndRefs]] = {"train": [], "dev": []}
    for split, entry in data.items():
        keys = (f"{split}_files", f"{split}_ref_files")
        if not isinstance(entry, dict) or set(entry) != set(keys):
            raise UserError(f'{path}: "{split}" must have exactly the keys "{keys[0]}" and "{keys[1]}"')
        texts, refs = entry[keys[0]], entry[keys[1]]
        for key, names in zip(keys, (texts, refs)):
            if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
                raise UserError(f'{path}: "{key}" must be a list of file names')
        if len(texts) != len(refs):
            raise UserError(f'{path}: "{keys[0]}" names {len(texts)} files, "{keys[1]}" {len(refs)}; each text needs its reference file')
        splits[split] = [TextAndRefs(Path(text), Path(ref)) for text, ref in zip(texts, refs)]
    if not splits["train"]:
        raise UserError(f'{path}: "train_files" is an empty list; name at least one text file')
    pairs = splits["train"] + splits["dev"]
    for index, pair in enumerate(pairs):
        require_file(pair.text, f"a text file of {path}")
        for other in pairs[:index]:
            if pair.text.stem == other.text.stem:
                raise UserError(
                    f"{path}: {other.text} and {pair.text} have the same name, so one would overwrite the other's shard; rename one"
                )
            if pair.refs == other.refs:
                raise UserError(f"{path}: {pair.refs} is named as reference file twice; give each text its own")
    return splits


def require_writable_place(path: str | Path, what: str) -> None:
    """Checks that a directory can be made at ``path``, or is there and can be written to."""
    folder = Path(path)
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{what} {path}: cannot be written, {folder} is no directory that you may write to; choose another place")


def load_tokenizer(directory: str | Path):
    """Loads the BERT tokenizer of a model directory (``vocab.txt``), after checks that the library does not make.

    Returns:
        transformers.BertTokenizer
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory (expected a BERT model directory with vocab.txt)")
    vocabulary = require_file(directory / "vocab.txt", "the BERT vocabulary, one token a line")
    with opened(vocabulary) as file:
        has_returns = b"\r" in file.read()
    if has_returns:
        raise UserError(f"{vocabulary}: has carriage returns, which would become part of the tokens; save it with \\n line ends")
    tokens = [line for block in read_line_blocks(vocabulary) for line in block]
    for token in SPECIAL_TOKENS:
        if token not in tokens:
            raise UserError(f"{vocabulary}: has no {token}; this is not a BERT vocabulary")
    if len(set(tokens)) != len(tokens):
        twice = next(token for number, token in enumerate(tokens) if token in tokens[:number])
        raise UserError(f"{vocabulary}:{len(tokens) - tokens[::-1].index(twice)}: {twice!r} stands there twice")
    from transformers import BertTokenizer  # takes seconds to import; not before the checks above

    try:
        tokenizer = BertTokenizer.from_pretrained(str(directory))
    except Exception as error:  # the library raises a different exception for each way in which these files can be wrong
        raise UserError(f"{directory}: its tokenizer.json or tokenizer_config.json cannot be read ({error}); remove them") from None
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json keeps those of the program that wrote it
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.get_vocab() != {token.rstrip(): number for number, token in enumerate(tokens)}:  # as BERT has it, with U+2028 for one
        raise UserError(f"{directory}: vocab.txt and tokenizer.json hold different tokens; remove the wrong file")
    return tokenizer


def tokenizer_sha256(tokenizer) -> str:
    """Fingerprint of all that decides how a tokenizer splits text: vocabulary, normaliser, pre-tokeniser."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


# ---------------------------------------------------------------- whole or nothing


def fsync_path(path: str | Path) -> None:
    """Makes a file's content, or a directory's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Writes the tokenizer with the vocab.txt that BERT directories have had from the start, which the library leaves out."""
    tokenizer.save_pretrained(str(directory))
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8", newline="\n")


@contextmanager
def whole_file(path: str | Path, mode: str = "w"):
    """Opens a file beside ``path`` that takes its place when the block ends well; else ``path`` stays as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with open(partial, mode, encoding=None if "b" in mode else "utf-8", newline=None if "b" in mode else "\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        fsync_path(path.parent)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror}); free some space or choose another place and run again"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_directory(path: str | Path):
    """Yields a directory beside ``path`` that takes its place, synced, when the block ends well; else ``path`` stays as it was."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, previous = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.previous")
    try:
        if previous.exists() and not path.exists():  # killed between the two renames below
            previous.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
        partial.mkdir()
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            fsync_path(entry)
        if path.exists():
            path.rename(previous)
        partial.rename(path)
        fsync_path(path.parent)
        shutil.rmtree(previous, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror}); free some space or choose another place and run again"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
