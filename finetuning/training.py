"""One fine-tuning run: model, trainer, predictions. ``run.py`` calls it once for every epoch count and seed."""

import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

from finetuning.examples import TaskData
from finetuning.features import collate, make_features
from finetuning.heads import load_fine_tuned, load_model
from finetuning.scores import score
from finetuning.task_definitions import Task
from pretraining.corpus.files import disk_full_as_user_error
from pretraining.distillation.checkpoint import damage, write_checksums
from pretraining.distillation.losses import fine_tuning_adaptor
from pretraining.utils import UserError

SAVE_EVERY_SECONDS = 300  # of training; a killed run loses at most this much
WARMUP, WEIGHT_DECAY, EVAL_BATCH_SIZE = 0.1, 0.01, 64
PROJECTIONS = "distillation_projections"


@dataclass
class Recipe:
    """What all epoch counts and seeds of one task share.

    Attributes:
        train, dev: features, as :mod:`finetuning.features` makes them.
        dev_examples: the Examples, Questions or Sentences of the dev set.
        dev_windows: for reading and labelling the window of each dev feature; else empty.
        teacher: frozen, in eval mode, on the device of the training.
        matches: TextBrewer's ``intermediate_matches``.
    """

    task: Task
    labels: tuple[str, ...]
    train: list[dict]
    dev: list[dict]
    dev_examples: list
    dev_windows: list
    model_dir: str
    learning_rate: float
    batch_size: int
    bf16: bool
    teacher: nn.Module | None = None
    temperature: float = 1.0
    matches: tuple[dict, ...] = ()


class Result(NamedTuple):
    """One run: the metrics in percent, the prediction for every dev id, and the trained model."""

    metrics: dict[str, float]
    predictions: dict[str, str]
    model: nn.Module


def make_recipe(args: Namespace, task: Task, data: TaskData, tokenizer: Any, settings: dict[str, Any], matches: list[dict]) -> Recipe:
    """Loads the teacher, tokenises the data, and prints the teacher's metrics; once for all runs.

    Raises:
        UserError: weights of the model or of the teacher that are damaged, or do not fit the task; before it tokenises.
    """
    attentions = needs_attentions(matches)
    load_model(args.model_name_or_path, task, data.labels, "the model to fine-tune", attentions)  # refuses it before the long work
    teacher = load_fine_tuned(args.teacher, task, data.labels, "the teacher", attentions) if args.teacher else None
    length = settings["max_seq_length"]
    train, _ = make_features(task, data.examples["train"], tokenizer, length, training=True)
    dev, windows = make_features(task, data.examples["dev"], tokenizer, length, training=False)
    recipe = Recipe(
        task=task,
        labels=data.labels,
        train=train,
        dev=dev,
        dev_examples=data.examples["dev"],
        dev_windows=windows,
        model_dir=args.model_name_or_path,
        learning_rate=settings["learning_rate"],
        batch_size=args.per_device_train_batch_size,
        bf16=args.bf16,
        teacher=teacher,
        temperature=args.temperature,
        matches=tuple(matches),
    )
    if teacher is not None:
        scores = evaluate_model(recipe, teacher, Path(args.output_dir))
        print("teacher:", ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return recipe


def needs_attentions(matches: Iterable[dict]) -> bool:
    """Whether the models must be able to return attentions."""
    return any(match["feature"] == "attention" for match in matches)


# ---------------------------------------------------------------- trainers


class DistillingTrainer(Trainer):
    """Trains on ``T^2 * KD + hard + matches``; the terms are those of TextBrewer's ``GeneralDistiller.compute_loss``.

    KD is the cross-entropy of teacher and student at temperature T. T^2 keeps its gradient as large as that of the hard labels
    (Hinton et al. 2015, section 2). For reading, KD is the sum over start and end logits, each over the real tokens;
    for labelling the mean over the tokens with a tag.
    ``hard`` is the model's own loss on the labels. ``matches`` compare hidden states or attentions at the real tokens.
    During training the projections of the matches are part of the model, so the optimizer, clipping and checkpoints hold them.
    """

    def __init__(self, model, teacher, temperature: float, matches: list[dict], args: TrainingArguments, **kwargs):
        """
        Args:
            model, teacher: BertForSequenceClassification or BertForQuestionAnswering, both of the same class;
                the teacher frozen, in eval mode and on the device of ``args``.
            matches: TextBrewer's ``intermediate_matches``, from :func:`pretraining.matches.get_matches`.
        """
        self.teacher = teacher
        self.distiller = GeneralDistiller(
            TrainingConfig(output_dir=args.output_dir, device=args.device),
            DistillationConfig(
                temperature=temperature,
                kd_loss_weight=temperature**2,
                hard_label_weight=1,
                intermediate_matches=matches,
            ),
            teacher,
            model,
            adaptor_T=None,
            adaptor_S=None,
        )
        self.features = {match["feature"] for match in matches}
        model.add_module(PROJECTIONS, nn.ModuleList(projection for projection in self.distiller.projs if projection is not None))
        super().__init__(model, args, **kwargs)

    def get_decay_parameter_names(self, model) -> list[str]:
        """As in the Trainer, but without weight decay for the projections, as in pretraining."""
        return [name for name in super().get_decay_parameter_names(model) if not name.startswith(PROJECTIONS)]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Computes the distillation loss of one batch, a scalar."""
        wanted = {"output_hidden_states": "hidden" in self.features, "output_attentions": "attention" in self.features}
        encoder_inputs = {key: inputs[key] for key in ("input_ids", "attention_mask", "token_type_ids")}
        outputs = model(**inputs, **wanted)
        with torch.no_grad(), self.accelerator.autocast():
            teacher_outputs = self.teacher(**encoder_inputs, **wanted)
        results_S = fine_tuning_adaptor(outputs, inputs, self.features)
        results_T = fine_tuning_adaptor(teacher_outputs, inputs, self.features)
        loss, _ = self.distiller.compute_loss({**results_S, "losses": [outputs.loss]}, results_T)
        return (loss, outputs) if return_outputs else loss

    def drop_projections(self) -> None:
        """Removes the projections from the trained model."""
        delattr(self.model, PROJECTIONS)


class TimedCheckpoint(TrainerCallback):
    """Asks for a checkpoint every SAVE_EVERY_SECONDS, so that short runs write none; writes the checksums of each.

    Attributes:
        is_writing: the Trainer writes a checkpoint, which it begins after the step that asked for it.
    """

    def __init__(self) -> None:
        self.last, self.is_writing = time.monotonic(), False

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self.last >= SAVE_EVERY_SECONDS:
            self.last = time.monotonic()
            control.should_save = self.is_writing = True
        return control

    def on_save(self, args, state, control, **kwargs):
        write_checksums(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        self.is_writing = False

    @contextmanager
    def full_disk_as_user_error(self, directory: Path) -> Iterator[None]:
        """Around ``Trainer.train``: what fails while a checkpoint is written is a UserError."""
        try:
            yield
        except Exception:
            if not self.is_writing:
                raise
            with disk_full_as_user_error(directory):
                raise


def newest_intact_checkpoint(directory: Path) -> str | None:
    """Returns the newest checkpoint whose files match their checksums; removes damaged ones above it.

    They must go: the Trainer keeps the checkpoint of the highest step and would remove the new ones below it.
    """
    for path in sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if damage(path) is None:
            return str(path)
        print(f"warning: {path} is damaged and was removed", file=sys.stderr)
        shutil.rmtree(path)
    return None


def trainer_arguments(recipe: Recipe, directory: Path, epochs: int, seed: int) -> TrainingArguments:
    """Linear warm-up over a tenth of the steps, linear decay, AdamW; no evaluation during training."""
    return TrainingArguments(
        output_dir=str(directory),
        num_train_epochs=epochs,
        seed=seed,
        learning_rate=recipe.learning_rate,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=EVAL_BATCH_SIZE,
        warmup_steps=WARMUP,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="linear",
        bf16=recipe.bf16,
        use_cpu=not torch.cuda.is_available(),  # else the Trainer refuses bf16 on a CPU
        save_strategy="no",
        save_total_limit=1,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def make_trainer(recipe: Recipe, directory: Path, epochs: int, seed: int, checkpoints: TimedCheckpoint) -> Trainer:
    """Loads the model with a new head; the same seed gives the same weights of the head."""
    set_seed(seed)
    model = load_model(recipe.model_dir, recipe.task, recipe.labels, "the model to fine-tune", attentions=needs_attentions(recipe.matches))
    common: dict[str, Any] = {
        "model": model,
        "args": trainer_arguments(recipe, directory, epochs, seed),
        "train_dataset": recipe.train,
        "data_collator": collate,
        "callbacks": [checkpoints],
    }
    if recipe.teacher is None:
        return Trainer(**common)
    return DistillingTrainer(teacher=recipe.teacher, temperature=recipe.temperature, matches=list(recipe.matches), **common)


# ---------------------------------------------------------------- one run


def fine_tune(recipe: Recipe, directory: Path, epochs: int, seed: int) -> Result:
    """Trains for ``epochs`` epochs and predicts the dev set; resumes from the newest checkpoint in ``directory``, if there is one.

    The same seed gives the same head, order and dropout, so on one machine also the same result.

    Raises:
        UserError: the GPU's memory is too small, the disk is full, or the weights are no longer finite.
    """
    checkpoints = TimedCheckpoint()
    try:
        trainer = make_trainer(recipe, directory, epochs, seed, checkpoints)
        with checkpoints.full_disk_as_user_error(directory):
            trainer.train(resume_from_checkpoint=newest_intact_checkpoint(directory))
        model: Any = trainer.model
        if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
            raise UserError(
                f"{epochs} epochs, seed {seed}: the weights are no longer finite; give a lower --learning_rate, or leave out --bf16"
            )
        metrics, predictions = evaluate(recipe, trainer)
    except torch.OutOfMemoryError:
        raise UserError("out of GPU memory; give a smaller --per_device_train_batch_size or --max_seq_length, or --bf16") from None
    if isinstance(trainer, DistillingTrainer):
        trainer.drop_projections()
    return Result(metrics, predictions, model)


def evaluate_model(recipe: Recipe, model: nn.Module, directory: Path) -> dict[str, float]:
    """Returns the metrics of a fine-tuned model on the dev set, in percent."""
    metrics, _ = evaluate(recipe, Trainer(model, trainer_arguments(recipe, directory, 1, 0), data_collator=collate))
    return metrics


def evaluate(recipe: Recipe, trainer: Trainer) -> tuple[dict[str, float], dict[str, str]]:
    """Returns the metrics in percent, and the predictions (answer texts, label names or tags) by dev id."""
    logits: Any = trainer.predict(recipe.dev).predictions
    return score(recipe.task, recipe.labels, recipe.dev_examples, recipe.dev_windows, logits)
