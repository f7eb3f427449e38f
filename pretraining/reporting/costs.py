"""What the stages of a recipe cost: memory, floating-point operations, hours, disk. Nothing is trained."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import BertConfig

from pretraining.config import TrainingArguments, parse
from pretraining.distillation.checks import check_length
from pretraining.distillation.gpus import Card, roofline_seconds
from pretraining.distillation.memory import largest_forward_batch, parameter_count
from pretraining.distillation.memory_trace import StepCost, trace_step
from pretraining.distillation.modeling import half_dtype, read_config, training_flops_per_sample
from pretraining.matches import get_matches
from pretraining.recipes import Settings, Stage
from pretraining.reporting.model_sizes import published_configs

FORWARD_BATCHES = (16, 32, 64, 128, 256, 512, 1024)  # those that divide a process's batch are traced
TEXT_BYTES_PER_TOKEN = 2.96  # of UTF-8; measured on Chinese Wikipedia (benchmarks/RESULTS.md)


class Training(NamedTuple):
    """A stage as its ``train.py`` would see it.

    Attributes:
        name: the run's directory in ``saves``.
        args: of one process.
        teacher: None without one.
        matches: from ``matches.get_matches``.
        has_first_weights: a directory with the student's first weights is written.
    """

    name: str
    args: TrainingArguments
    student: BertConfig
    teacher: BertConfig | None
    matches: list[dict]
    has_first_weights: bool

    def largest_forward_batch(self, card: Card) -> int:
        args = self.args
        half, sizes = half_dtype(args), (args.train_batch_size, args.mlm_probability, args.hard_label_weight > 0)
        return largest_forward_batch(card.memory, self.student, self.teacher, self.matches, args.max_seq_length, half, *sizes)

    def flops_per_sample(self) -> float:
        args = self.args
        return training_flops_per_sample(
            self.student, self.teacher, make_projections(self.matches), length=args.max_seq_length, mlm_probability=args.mlm_probability
        )


def read_training(stage: Stage) -> Training:
    """Reads the configs of a stage's models."""
    args = parse(stage.check[2:])  # behind "python train.py"
    student = read_config(args.student_config, "the student's config")
    teacher = read_teacher(args.teacher_name_or_path) if args.teacher_name_or_path else None
    matches = get_matches(args.matches, student, teacher) if teacher else []
    check_length(args, student, teacher)
    return Training(Path(stage.directory).name, args, student, teacher, matches, has_first_weights=bool(stage.first_weights))


def read_teacher(path: str) -> BertConfig:
    """The config of a teacher: a JSON file or a model directory. The published one need not be here; its sizes are known."""
    file = Path(path) if Path(path).is_file() else Path(path, "config.json")
    published = Settings.__dataclass_fields__["teacher"].metadata["default"]
    if path == published and not file.is_file():
        return published_configs()["RoBERTa"]
    return read_config(file, "the teacher's config")


def make_projections(matches: list[dict]) -> nn.ModuleList:
    """The linear layers of the matches, without memory."""
    with torch.device("meta"):
        return nn.ModuleList(nn.Linear(*entry["proj"][1:3]) for entry in matches if "proj" in entry)


# ---------------------------------------------------------------- memory and time


def trace_batches(training: Training, chosen: int) -> dict[int, StepCost]:
    """The traced step at each forward_batch that divides the batch of a process, and at the chosen one."""
    sizes = {chosen, *(size for size in FORWARD_BATCHES if training.args.train_batch_size % size == 0)}
    return {size: trace_step(training.args, training.student, training.teacher, training.matches, size) for size in sorted(sizes)}


class TimeRow(NamedTuple):
    """What a stage takes.

    Attributes:
        flops: of the whole stage, all GPUs together.
        mfu: the share of one GPU's peak.
        hours: on the clock.
    """

    flops: float
    mfu: float
    samples_per_second: float
    hours: float


def time_row(training: Training, card: Card, ngpu: int, mfu: float) -> TimeRow:
    """The time of a stage at this MFU."""
    needed = training.flops_per_sample()
    samples = training.args.num_train_steps * training.args.train_batch_size * ngpu
    rate = ngpu * peak_of(training, card) * mfu / needed
    return TimeRow(needed * samples, mfu, rate, samples / rate / 3600)


def roofline_mfu(training: Training, card: Card, forward_batch: int, step: StepCost, compiled: bool) -> float:
    """The MFU that the roofline of a traced step allows."""
    seconds = roofline_seconds(step.operations, card, half_dtype(training.args) is not None, compiled)
    return training.flops_per_sample() * forward_batch / seconds / peak_of(training, card)


def peak_of(training: Training, card: Card) -> float:
    """Operations a second in the training's precision, by the data sheet."""
    return card.half_peak if half_dtype(training.args) else card.float_peak


# ---------------------------------------------------------------- disk


def shard_bytes(tokens: int, vocabulary: int, length: int) -> int:
    """The shards of so many tokens: an id and one bit each, and two offsets a row (Arrow's lists, corpus/shards.py)."""
    id_bytes = np.min_scalar_type(vocabulary - 1).itemsize
    rows = -(-tokens // (length - 2))
    return tokens * id_bytes + tokens // 8 + 2 * 4 * rows


def checkpoint_bytes(student: BertConfig, matches: list[dict]) -> int:
    """One checkpoint: weights and two moments of Adam, for the model and the projections. Vocabulary and configs are left out."""
    projections = sum(weight.numel() for weight in make_projections(matches).parameters())
    return 4 * 3 * (parameter_count(student) + projections)


def run_bytes(training: Training) -> int:
    """The directories of a run at their largest: the kept checkpoints, the one that is being written, the first weights."""
    args = training.args
    written = -(-args.num_train_steps // args.ckpt_steps)
    count = 1 + min(args.keep_checkpoints or written, written)
    first_weights = 4 * parameter_count(training.student) if training.has_first_weights else 0
    return first_weights + count * checkpoint_bytes(training.student, training.matches)
