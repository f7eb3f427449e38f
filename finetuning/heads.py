"""The models of fine-tuning: an encoder with the head of a task."""

from typing import Any

import torch
from torch import nn
from transformers import BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification

from finetuning.task_definitions import Task
from pretraining.distillation.modeling import load_model as load_bert
from pretraining.distillation.modeling import load_reporting_missing
from pretraining.utils import UserError

NOT_IN_ENCODER = ("classifier.", "qa_outputs.", "bert.pooler.")  # weights that a pretrained model need not have
MODEL_CLASSES: dict[str, Any] = {
    "classification": BertForSequenceClassification,
    "reading": BertForQuestionAnswering,
    "labelling": BertForTokenClassification,
}


def head_options(task: Task, labels: tuple[str, ...]) -> dict[str, Any]:
    """Options for ``from_pretrained``: the head of the task, even where the directory has another."""
    if task.is_reading:
        return {"ignore_mismatched_sizes": True, "num_labels": 2}
    return {
        "ignore_mismatched_sizes": True,
        "num_labels": len(labels),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def load_model(directory: str, task: Task, labels: tuple[str, ...], what: str, attentions: bool = False) -> nn.Module:
    """Loads an encoder and gives it a new, random head.

    Returns:
        the class of MODEL_CLASSES, in eval mode.

    Raises:
        UserError: unreadable weights, or weights the encoder lacks.
    """
    options = head_options(task, labels)
    model = load_bert(MODEL_CLASSES[task.kind], directory, what, attentions=attentions, optional=NOT_IN_ENCODER, **options)
    head = model.qa_outputs if task.is_reading else model.classifier
    head.weight.data.normal_(0.0, model.config.initializer_range)
    head.bias.data.zero_()
    return model.eval()


def load_fine_tuned(directory: str, task: Task, labels: tuple[str, ...], what: str, attentions: bool = False) -> nn.Module:
    """Loads a model that was fine-tuned on the task: frozen, in eval mode, on the GPU if there is one.

    Raises:
        UserError: unreadable weights, or a model without the head of the task.
    """
    options = head_options(task, labels)
    model, missing = load_reporting_missing(MODEL_CLASSES[task.kind], directory, what, attentions=attentions, **options)
    if missing:
        raise UserError(
            f"{directory}: the weights of {what} lack {missing[0]}, or have it in another shape; give a model fine-tuned on {task.name}"
        )
    return model.to("cuda" if torch.cuda.is_available() else "cpu").eval().requires_grad_(False)
