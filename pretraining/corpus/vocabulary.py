"""A smaller vocabulary: which tokens texts use, which of them stay, and the tokenizer of those."""

from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from pretraining.corpus.files import read_line_blocks
from pretraining.corpus.tokenizer import load_tokenizer, save_tokenizer
from pretraining.utils import progress_bar


def count_tokens(tokenizer: Any, texts: list[Path], description: str) -> np.ndarray:
    """How often each token occurs in each text, without [CLS] and [SEP]; int64, (texts, vocabulary).

    Args:
        description: the label of the progress bar.

    Raises:
        UserError: as :func:`pretraining.corpus.files.read_line_blocks`.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()  # a call with truncation=True leaves it on
    backend.no_padding()
    counts = np.zeros((len(texts), len(tokenizer)), np.int64)
    sizes = sum(text.stat().st_size for text in texts)
    with progress_bar(total=sizes, desc=description, unit="B", unit_scale=True) as bar:
        for row, text in zip(counts, texts):
            for lines in read_line_blocks(text):
                encodings = backend.encode_batch_fast(lines, add_special_tokens=False)
                ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64)
                row += np.bincount(ids, minlength=len(row))
                bar.update(min(sum(len(line.encode()) + 1 for line in lines), sizes - bar.n))  # the last line may have no \n
    return counts


def choose_tokens(counts: np.ndarray, needed: set[int], keep: int | None, min_count: int) -> np.ndarray:
    """The ids of the tokens that stay, rising: those that are needed, and the most frequent others.

    Args:
        counts: int64, (vocabulary,).
        needed: ids that stay at any count.
        keep: the most tokens that stay; of equally frequent ones, those with the lower ids. None: no limit.
        min_count: a token that is not needed must occur this often, at least once.
    """
    ranked = counts.copy()
    ranked[list(needed)] = np.iinfo(np.int64).max
    order = np.argsort(-ranked, kind="stable")
    return np.sort(order[ranked[order] >= max(1, min_count)][:keep])


def needed_tokens(tokenizer: Any) -> set[int]:
    """The ids that a tokenizer cannot be without: special tokens, and all others that it never splits."""
    return {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}


def save_pruned_tokenizer(tokenizer: Any, kept: np.ndarray, directory: Path) -> None:
    """Writes the tokenizer with the kept tokens only, and its vocab.txt, into a directory that has a config.json.

    It splits a text into the same tokens as before if all of them were kept: WordPiece takes the longest token that fits, and what is
    the longest of all tokens is also the longest of the kept ones.

    Args:
        kept: from :func:`choose_tokens`; the tokens keep their order, so the token ``kept[i]`` becomes the token i.
    """
    save_tokenizer(tokenizer, directory)
    (directory / "tokenizer.json").unlink()  # the library makes it again from vocab.txt and tokenizer_config.json
    tokens = tokenizer.convert_ids_to_tokens(kept.tolist())
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")
    save_tokenizer(load_tokenizer(directory), directory)
