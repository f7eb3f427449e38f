"""The BERT tokenizer: loaded with the checks that the library does not make, saved with its vocab.txt, fingerprinted."""

import hashlib
import json
from pathlib import Path
from typing import Any

from pretraining.corpus.files import opened, read_json, read_lines, require_file
from pretraining.corpus.formats import BYTE_ORDER_MARK
from pretraining.utils import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The CJK ideographs as BERT's tokenizer defines them (first and last code point): each is a token of its own.
CHINESE_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def load_tokenizer(directory: str | Path) -> Any:
    """Loads the BERT tokenizer of a model directory; truncation and padding are off.

    Returns:
        transformers.BertTokenizer

    Raises:
        UserError: no vocab.txt, not a BERT vocabulary, a duplicate token, or other tokenizer files that contradict vocab.txt.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory (expected a BERT model directory with vocab.txt)")
    tokens = _read_vocabulary(require_file(directory / "vocab.txt", "the BERT vocabulary, one token per line"))
    vocabulary = {token.rstrip(): number for number, token in enumerate(tokens)}  # as BERT reads U+2028, for example
    options: dict[str, Any] = {}
    if not (directory / "tokenizer.json").is_file() and _has_byte_order_mark(directory / "vocab.txt"):
        options["vocab"] = vocabulary  # the library would take the mark for a part of the first token

    from transformers import BertTokenizer  # takes a second to import; the checks above come first

    try:
        tokenizer = BertTokenizer.from_pretrained(str(directory), **options)
        tokenizer("今天 [MASK]", "token")  # settings of a wrong type fail at the first use
    except Exception as error:  # the library raises a different exception for each way in which these files can be wrong
        raise UserError(f"{directory}: its tokenizer.json or tokenizer_config.json cannot be read ({error}); remove them") from None
    tokenizer.backend_tokenizer.no_truncation()  # a tokenizer.json keeps the settings of the program that wrote it
    tokenizer.backend_tokenizer.no_padding()
    if tokenizer.get_vocab() != vocabulary:
        raise UserError(f"{directory}: vocab.txt and tokenizer.json hold different tokens; remove the wrong file")
    return tokenizer


def _has_byte_order_mark(path: Path) -> bool:
    with opened(path) as file:
        return file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK


def _read_vocabulary(path: Path) -> list[str]:
    with opened(path) as file:
        has_returns = b"\r" in file.read()
    if has_returns:
        raise UserError(f"{path}: has carriage returns, which would become part of the tokens; save it with \\n line ends")
    tokens = list(read_lines(path))
    for token in SPECIAL_TOKENS:
        if token not in tokens:
            raise UserError(f"{path}: has no {token}; this is not a BERT vocabulary")
    first_line_of: dict[str, int] = {}
    for line, token in enumerate(tokens, start=1):
        if token in first_line_of:
            raise UserError(f"{path}:{line}: {token!r} is a duplicate of line {first_line_of[token]}")
        first_line_of[token] = line
    return tokens


def save_tokenizer(tokenizer: Any, directory: Path) -> None:
    """Writes the tokenizer, and the vocab.txt that BERT directories have always had and the library omits.

    ``tokenizer_config.json`` gets the length of the model whose config.json is there, so that ``truncation=True`` cuts a text to it.
    """
    tokenizer.save_pretrained(str(directory))
    path = directory / "tokenizer_config.json"
    length = read_json(directory / "config.json", "the model's config")["max_position_embeddings"]
    settings = {**read_json(path, "the tokenizer's settings"), "model_max_length": length}
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")
    tokens = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token, _ in tokens), encoding="utf-8", newline="\n")


def tokenizer_sha256(tokenizer: Any) -> str:
    """Fingerprint (hex) of all that decides how a tokenizer splits text: vocabulary, normaliser, pre-tokeniser."""
    return hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
