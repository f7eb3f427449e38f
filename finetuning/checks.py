"""What ``run.py`` checks before the first step, and the settings that identify its runs."""

from argparse import Namespace
from typing import Any

import torch
from transformers import BertConfig

from finetuning.examples import TaskData
from finetuning.task_definitions import Task
from pretraining.corpus.files import file_facts
from pretraining.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from pretraining.distillation.checkpoint import model_sha256
from pretraining.distillation.modeling import require_model_directory
from pretraining.matches import RELATED_FEATURES, get_matches
from pretraining.utils import UserError

# What else decides the outcome of a task of one's own: its definition may change, those of the project do not.
DECISIVE = ("kind", "layout", "fields", "label", "columns", "skipped_labels", "metric")


def check_model(args: Namespace, tokenizer: Any) -> BertConfig:
    """Returns the config of the model to fine-tune.

    Raises:
        UserError: no model, a vocabulary or a row that is too large for it, or a GPU without the arithmetic asked for.
    """
    config = require_model_directory(args.model_name_or_path, "the model to fine-tune")
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{args.model_name_or_path}: vocab.txt has {len(tokenizer)} tokens, the model {config.vocab_size}")
    if (args.max_seq_length or 0) > config.max_position_embeddings:
        raise UserError(f"--max_seq_length {args.max_seq_length}: the model takes at most {config.max_position_embeddings} tokens")
    if args.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--bf16: this GPU has no bfloat16 arithmetic; leave it out")
    return config


def check_teacher(args: Namespace, task: Task, labels: tuple[str, ...], tokenizer: Any, config: BertConfig) -> list[dict]:
    """Checks that the teacher, if there is one, fits the task and the model to fine-tune.

    Returns:
        the matches of ``--matches`` in TextBrewer's format
    """
    if not args.teacher:
        return []
    teacher_config = require_model_directory(args.teacher, "the teacher")
    id2label: Any = teacher_config.id2label
    names = tuple(id2label[index] for index in range(len(id2label)))
    if not task.is_reading and len(names) != len(labels):
        raise UserError(f"{args.teacher}: has {len(names)} labels, {task.name} {len(labels)}; give a teacher fine-tuned on {task.name}")
    if not task.is_reading and names != labels and not names[0].startswith("LABEL_"):  # LABEL_0: trained elsewhere, without names
        raise UserError(f"{args.teacher}: its labels are {', '.join(names)}, those of {task.name} {', '.join(labels)}")
    if row_length(args, task, config) > teacher_config.max_position_embeddings:
        raise UserError(f"{args.teacher}: takes at most {teacher_config.max_position_embeddings} tokens; give that as --max_seq_length")
    if tokenizer_sha256(load_tokenizer(args.teacher)) != tokenizer_sha256(tokenizer):
        raise UserError(f"{args.teacher}: splits text into other tokens than the model to fine-tune; both must have the same vocabulary")
    matches = get_matches(args.matches, config, teacher_config)
    if any(match["feature"] in RELATED_FEATURES for match in matches):
        raise UserError("--matches: relations are for pretraining; give hidden or attention matches")
    return matches


def row_length(args: Namespace, task: Task, config: BertConfig) -> int:
    """Tokens per row: ``--max_seq_length``, else the default of the task, but no more than the model takes."""
    return args.max_seq_length or min(task.max_seq_length, config.max_position_embeddings)


def default_learning_rate(task: Task, config: BertConfig) -> float:
    """The task's learning rate for models of RoBERTa's size, or for smaller ones."""
    roberta_sized = config.num_hidden_layers >= 12 and config.hidden_size >= 768
    return task.learning_rate_roberta if roberta_sized else task.learning_rate_small


def run_settings(args: Namespace, task: Task, data: TaskData, tokenizer: Any, config: BertConfig) -> dict[str, Any]:
    """Everything that decides the outcome of a run besides epochs, seed and learning rate; models and data by their content."""
    own = {name: getattr(task, name) for name in DECISIVE} if task.is_own else {}
    return {
        "task": task.name,
        "model_name_or_path": args.model_name_or_path,
        "model_sha256": model_sha256(args.model_name_or_path),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "data_sha256": {split: file_facts(path).sha256 for split, path in data.paths.items()},
        "labels": list(data.labels),
        "learning_rate": None,  # of each plan its own
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "max_seq_length": row_length(args, task, config),
        "max_train_samples": args.max_train_samples,
        "max_eval_samples": args.max_eval_samples,
        "bf16": args.bf16,
        "teacher": args.teacher,
        "teacher_sha256": model_sha256(args.teacher),
        "temperature": args.temperature if args.teacher else None,
        "matches": args.matches,
        **{name: list(value) if isinstance(value, tuple) else value for name, value in own.items()},
    }
