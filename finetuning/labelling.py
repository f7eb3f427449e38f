"""Sequence labelling: sentences -> windows of tokens with tags, logits -> a tag for every token of the sentences.

"Token" is a token of the data, such as a character; it becomes one or more pieces of the vocabulary. The first piece has the tag.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from finetuning.examples import Sentence

IGNORED = -100  # the label of a piece without a tag; torch's cross-entropy leaves it out
BLOCK = 1000  # sentences that are tokenised in one call


class TagWindow(NamedTuple):
    """A part of a sentence: the model's input, and the way back to the tokens.

    ``input_ids`` (int32, [length]): [CLS] pieces [SEP]. ``first``: the first token of the window in the sentence.
    ``places`` (int32, [tokens of the window]): of each token the position of its first piece in ``input_ids``.
    """

    sentence: int
    input_ids: np.ndarray
    first: int
    places: np.ndarray


def make_tag_windows(sentences: list[Sentence], tokenizer: Any, max_seq_length: int, progress: bool = True) -> list[TagWindow]:
    """Cuts every sentence into windows between tokens, one after the other, so that no token is lost.

    Args:
        tokenizer: transformers.BertTokenizer
        max_seq_length: pieces a window, special tokens included.
        progress: show a bar.
    """
    windows = []
    with tqdm(total=len(sentences), desc="tokenise", unit=" sentences", disable=not progress) as bar:
        for start in range(0, len(sentences), BLOCK):
            block = sentences[start : start + BLOCK]
            different = list(dict.fromkeys(token for sentence in block for token in sentence.tokens))
            ids = tokenizer(different, add_special_tokens=False, verbose=False)["input_ids"]
            # A token that the tokenizer drops, such as a space, is unknown: every token has a piece and a tag.
            pieces = {token: (found or [tokenizer.unk_token_id])[: max_seq_length - 2] for token, found in zip(different, ids)}
            for position, sentence in enumerate(block, start=start):
                windows += _windows(position, [pieces[token] for token in sentence.tokens], tokenizer, max_seq_length)
            bar.update(len(block))
    return windows


def _windows(sentence: int, pieces: list[list[int]], tokenizer: Any, max_seq_length: int) -> list[TagWindow]:
    windows: list[TagWindow] = []
    ids: list[int] = [tokenizer.cls_token_id]
    places: list[int] = []
    first = 0
    for position, token in enumerate([*pieces, None]):
        if token is None or len(ids) + len(token) >= max_seq_length:
            input_ids = np.array([*ids, tokenizer.sep_token_id], dtype=np.int32)
            windows.append(TagWindow(sentence, input_ids, first, np.array(places, dtype=np.int32)))
            ids, places, first = [tokenizer.cls_token_id], [], position
        if token is not None:
            places.append(len(ids))
            ids += token
    return windows


def tag_labels(window: TagWindow, tags: tuple[int, ...]) -> np.ndarray:
    """The labels of a window's pieces: int64, [length]; IGNORED for special tokens and for pieces that continue a token."""
    labels = np.full(len(window.input_ids), IGNORED, dtype=np.int64)
    labels[window.places] = tags[window.first : window.first + len(window.places)]
    return labels


def best_tags(
    sentences: list[Sentence], windows: list[TagWindow], logits: Iterable[np.ndarray], labels: tuple[str, ...]
) -> list[list[str]]:
    """The most likely tag of every token.

    Args:
        logits: for each window float, [length, labels]; what stands behind a window's pieces is not looked at.
    """
    tags: list[list[str]] = [[] for _ in sentences]
    for window, scores in zip(windows, logits):
        tags[window.sentence] += [labels[tag] for tag in scores[window.places].argmax(axis=-1)]
    return tags
