"""Sequence labelling: windows, labels of pieces, tags of tokens, the F1 of entities."""

import numpy as np
import pytest

from finetuning.examples import Example, Sentence
from finetuning.labelling import IGNORED, best_tags, make_tag_windows, tag_labels
from finetuning.scores import entity_metrics, label_metrics

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def logits_of(windows: list, tags: list[list[int]]) -> np.ndarray:
    """Logits that choose these tags, and tag 4 where no token begins."""
    logits = np.zeros((len(windows), max(len(window.input_ids) for window in windows), len(LABELS)))
    logits[:, :, 4] = 1
    for row, window in enumerate(windows):
        for place, tag in zip(window.places, tags[window.sentence][window.first :]):
            logits[row, place, tag] = 2
    return logits


def test_the_first_piece_of_a_token_has_its_tag_and_no_token_is_lost(tiny_tokenizer):
    sentences = [
        Sentence("1", ("我", "喜", "training", " ", "北", "京", "。"), (1, 2, 0, 0, 3, 4, 0)),  # train ##ing; a blank is no piece
        Sentence("9", ("他",), (1,)),
    ]
    windows = make_tag_windows(sentences, tiny_tokenizer, 6)
    texts = [" ".join(tiny_tokenizer.convert_ids_to_tokens(window.input_ids)) for window in windows]
    assert texts == ["[CLS] 我 喜 train ##ing [SEP]", "[CLS] [UNK] 北 京 。 [SEP]", "[CLS] 他 [SEP]"]
    assert [tag_labels(window, sentences[window.sentence].tags).tolist() for window in windows] == [
        [IGNORED, 1, 2, 0, IGNORED, IGNORED],
        [IGNORED, 0, 3, 4, 0, IGNORED],
        [IGNORED, 1, IGNORED],
    ]
    tags = [[1, 2, 0, 3, 4, 4, 0], [3]]
    named = [[LABELS[tag] for tag in row] for row in tags]
    assert best_tags(sentences, windows, logits_of(windows, tags), LABELS) == named


def test_a_token_that_is_longer_than_a_window_is_cut(tiny_tokenizer):
    (window,) = make_tag_windows([Sentence("1", ("trainingsing",), (1,))], tiny_tokenizer, 4)
    assert len(window.input_ids) == 4 and window.places.tolist() == [1]


def test_entities_count_if_type_and_both_ends_are_right():
    sentence = Sentence("1", tuple("abcdef"), (1, 2, 0, 3, 4, 0))
    right = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    for tags, f1 in (
        (right, 100.0),
        (["B-PER", "O", "O", "B-LOC", "I-LOC", "O"], 50.0),
        (["B-PER", "I-PER", "O", "B-PER", "I-PER", "O"], 50.0),
        (["O"] * 6, 0.0),
        (["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "B-LOC"], pytest.approx(80.0)),
    ):
        assert entity_metrics([sentence], [tags], LABELS) == {"entity_f1": f1}
    assert entity_metrics([Sentence("1", ("a",), (0,))], [["O"]], LABELS) == {"entity_f1": 0.0}


def test_macro_f1_is_the_mean_over_the_labels():
    examples = [Example(str(n), ("a",), label) for n, label in enumerate([0, 0, 0, 1])]
    metrics = label_metrics(examples, np.array([0, 0, 0, 0]))
    assert metrics == {"accuracy": 75.0, "macro_f1": pytest.approx(100 * (6 / 7 + 0) / 2)}
