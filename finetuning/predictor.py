"""A fine-tuned model, of PyTorch or an ONNX file, as a function from examples to predictions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from seqeval.metrics.sequence_labeling import get_entities

from finetuning.examples import Example, Question, Sentence
from finetuning.features import collate, make_features
from finetuning.heads import MODEL_CLASSES, load_fine_tuned
from finetuning.labelling import best_tags
from finetuning.reading import best_spans, span_scores
from finetuning.task_definitions import Task
from pretraining.distillation.modeling import read_config
from pretraining.exporting.onnx_check import open_session
from pretraining.utils import UserError, cores_per_process, first_line

Run = Callable[[dict[str, torch.Tensor]], list[np.ndarray]]  # a batch of collate() -> start and end logits, or logits alone


class Predictor(NamedTuple):
    """What turns examples into predictions.

    Attributes:
        labels: in the order of their indices; none for reading.
        batch_size: rows of a batch; rows of like length go together.
    """

    task: Task
    labels: tuple[str, ...]
    tokenizer: Any
    run: Run
    max_seq_length: int
    batch_size: int

    def predict(self, examples: list) -> list[dict[str, Any]]:
        """The predictions in the order of the examples, as JSON values."""
        features, windows = make_features(self.task, examples, self.tokenizer, self.max_seq_length, training=False, progress=False)
        outputs: list[list[np.ndarray]] = [[] for _ in features]
        order = sorted(range(len(features)), key=lambda row: len(features[row]["input_ids"]))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for row, *logits in zip(rows, *self.run(collate([features[row] for row in rows]))):
                outputs[row] = logits
        if self.task.is_reading:
            return answers(examples, windows, outputs)
        if self.task.is_labelling:
            return entities(examples, best_tags(examples, windows, (logits for (logits,) in outputs), self.labels))
        return labels_of(self.task, examples, self.labels, np.stack([logits for (logits,) in outputs]))


# ---------------------------------------------------------------- logits -> predictions


def labels_of(task: Task, examples: list[Example], labels: tuple[str, ...], logits: np.ndarray) -> list[dict[str, Any]]:
    """The label of each example, its probability, and those of all labels (softmax)."""
    logits = logits.astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    predictions = []
    for example, row in zip(examples, shares):
        best = int(row.argmax())
        each = {label: round(float(share), 6) for label, share in zip(labels, row)}
        predictions.append(
            {**dict(zip(task.fields, example.texts)), "label": labels[best], "probability": each[labels[best]], "probabilities": each}
        )
    return predictions


def answers(questions: list[Question], windows: list, outputs: list[list[np.ndarray]]) -> list[dict[str, Any]]:
    """The best answer to each question, its place in the context, and its probability among all spans of all windows (softmax)."""
    spans = best_spans(windows, *zip(*outputs))
    totals = dict.fromkeys(spans, 0.0)  # of exp(score - best score)
    for window, (starts, ends) in zip(windows, outputs):
        if window.question in spans:
            scores = span_scores(window, starts, ends).astype(np.float64)
            totals[window.question] += float(np.exp(scores - float(spans[window.question].score)).sum())
    predictions = []
    for number, question in enumerate(questions):
        found: dict[str, Any] = {"answer": "", "start": 0, "end": 0, "score": 0.0}
        if number in spans:
            span = spans[number]
            text = question.context[span.start : span.end]
            found = {"answer": text, "start": span.start, "end": span.end, "score": round(1 / totals[number], 6)}
        predictions.append({"question": question.question, **found})
    return predictions


def entities(sentences: list[Sentence], tags: list[list[str]]) -> list[dict[str, Any]]:
    """The entities of each sentence; ``start`` and ``end`` count its tokens, in a text its characters; ``end`` is not part of it."""
    predictions = []
    for sentence, row in zip(sentences, tags):
        found = [
            {"type": kind, "start": int(first), "end": int(last) + 1, "text": "".join(sentence.tokens[first : last + 1])}
            for kind, first, last in get_entities(row)
        ]
        predictions.append({"text": "".join(sentence.tokens), "entities": found})
    return predictions


# ---------------------------------------------------------------- models


def load_predictor(directory: Path, onnx: Path | None, task: Task, tokenizer: Any, batch_size: int) -> Predictor:
    """Loads a fine-tuned model.

    Args:
        directory: with config.json; without ``onnx`` also with the weights.
        onnx: the exported model.

    Raises:
        UserError: a model of another task, or weights that cannot be read.
    """
    config = read_config(directory / "config.json", "the config of the model")
    labels = model_labels(directory, task, config)
    length = min(task.max_seq_length, config.max_position_embeddings)
    if onnx is None:
        run = pytorch_run(load_fine_tuned(str(directory), task, labels, "the model"))
    else:
        run = onnx_run(onnx, ("start_logits", "end_logits") if task.is_reading else ("logits",))
    return Predictor(task, labels, tokenizer, run, length, batch_size)


def model_labels(directory: Path, task: Task, config: Any) -> tuple[str, ...]:
    """The labels of a model, in the order of their indices.

    Raises:
        UserError: the model has another head than the task needs, or other labels.
    """
    expected = MODEL_CLASSES[task.kind].__name__
    found = (config.architectures or ["a model without a head"])[0]
    if found != expected:
        raise UserError(f"{directory}: is {found}, but {task.name} is a task of {task.kind} and needs {expected}")
    if task.is_reading:
        return ()
    labels = tuple(config.id2label[index] for index in range(len(config.id2label)))
    needed = ("O", *(f"{prefix}-{name}" for name in task.labels for prefix in "BI")) if task.is_labelling else task.labels
    if task.labels and labels != needed:
        raise UserError(f"{directory}: its labels are {', '.join(labels)}, those of {task.name} are {', '.join(needed)}")
    return labels


def pytorch_run(model: Any) -> Run:
    """The forward pass of a PyTorch model, on its device."""

    def run(batch: dict[str, torch.Tensor]) -> list[np.ndarray]:
        with torch.inference_mode():
            output = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        logits = [output.start_logits, output.end_logits] if "start_logits" in output else [output.logits]
        return [tensor.float().cpu().numpy() for tensor in logits]

    return run


def onnx_run(path: Path, outputs: tuple[str, ...], cores: int | None = None) -> Run:
    """The forward pass of an exported model, on the CPU.

    Args:
        cores: the CPU cores that it uses; None: those that the process may use.

    Raises:
        UserError: onnxruntime cannot read the file, or it has other outputs.
    """
    try:
        session = open_session(path, cores=cores or cores_per_process())
    except Exception as error:  # the library raises a different exception for each fault
        raise UserError(f"{path}: the model cannot be loaded ({first_line(error)})") from None
    found = [output.name for output in session.get_outputs()]
    if found != list(outputs):
        raise UserError(f"{path}: gives {', '.join(found)} instead of {', '.join(outputs)}; export the fine-tuned model")
    return lambda batch: session.run(list(outputs), {name: tensor.numpy() for name, tensor in batch.items()})
