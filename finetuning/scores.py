"""Logits of the dev set -> predictions and metrics."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score

from finetuning.examples import Example, Sentence
from finetuning.labelling import best_tags
from finetuning.reading import best_answers, reading_metrics
from finetuning.task_definitions import Task


def score(task: Task, labels: tuple[str, ...], examples: list, windows: list, logits: Any) -> tuple[dict[str, float], dict[str, str]]:
    """Scores the predictions of a model.

    Args:
        windows: as :func:`finetuning.features.make_features` returns them.
        logits: (examples, labels); for reading the start and the end logits, each (windows, length); for labelling (windows, length, labels).

    Returns:
        the metrics of the task in percent; the predictions by dev id: an answer, the name of a label, or the tags with spaces between.
    """
    if task.is_reading:
        predictions = best_answers(examples, windows, *logits)
        return reading_metrics(examples, predictions), predictions
    if task.is_labelling:
        tags = best_tags(examples, windows, logits, labels)
        return entity_metrics(examples, tags, labels), {sentence.id: " ".join(row) for sentence, row in zip(examples, tags)}
    found = logits.argmax(axis=-1)
    metrics = label_metrics(examples, found)
    return {name: metrics[name] for name in task.metrics}, {example.id: labels[label] for label, example in zip(found, examples)}


def label_metrics(examples: Sequence[Example], found: np.ndarray) -> dict[str, float]:
    """Accuracy, and the mean of the F1 of the labels that occur, both in percent.

    Args:
        found: int, [examples], indices of labels.
    """
    right = sum(int(label) == example.label for label, example in zip(found, examples))
    macro = f1_score([example.label for example in examples], found, average="macro", zero_division=0)
    return {"accuracy": 100 * right / len(examples), "macro_f1": 100 * float(macro)}


def entity_metrics(sentences: Sequence[Sentence], tags: list[list[str]], labels: tuple[str, ...]) -> dict[str, float]:
    """F1 of whole entities in percent: type, first and last token must be right (CoNLL-2003, by seqeval)."""
    expected = [[labels[tag] for tag in sentence.tags] for sentence in sentences]
    return {"entity_f1": 100 * float(entity_f1(expected, tags, zero_division=0))}
