"""One fine-tuning run: model, features, Trainer, predictions. ``run.py`` calls it once for every epoch count and seed."""

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from checkpoint import damage, one_line_for_a_full_disk, write_checksums
from reading import Window, best_answers, make_windows, reading_metrics
from tasks import Example, Question, Task
from tqdm import tqdm
from transformers import BertForQuestionAnswering, BertForSequenceClassification, Trainer, TrainerCallback, TrainingArguments, set_seed
from utils import UserError

SAVE_EVERY_SECONDS = 300  # of training; a killed run loses at most this much
WARMUP, WEIGHT_DECAY, EVAL_BATCH_SIZE = 0.1, 0.01, 64
NOT_IN_ENCODER = ("classifier.", "qa_outputs.", "bert.pooler.")

transformers.logging.set_verbosity_error()  # else every load reports the new head as a fault
transformers.logging.disable_progress_bar()


@dataclass
class Recipe:
    """What all epoch counts and seeds of one task share.

    ``train`` and ``dev`` are features, for reading those of the windows; ``dev_windows`` is empty for the other tasks.
    """

    task: Task
    labels: tuple[str, ...]
    train: list[dict]
    dev: list[dict]
    dev_examples: list[Example] | list[Question]
    dev_windows: list[Window]
    model_dir: str
    learning_rate: float
    batch_size: int
    bf16: bool
    teacher: torch.nn.Module | None = None
    temperature: float = 1.0
    matches: tuple[dict, ...] = ()

    @property
    def attentions(self) -> bool:
        """Whether the models must be able to return attentions."""
        return any(match["feature"] == "attention" for match in self.matches)


class Result(NamedTuple):
    """Of one run: the metrics in percent, the prediction for every dev id, and the trained model."""

    metrics: dict[str, float]
    predictions: dict[str, str]
    model: torch.nn.Module


# ---------------------------------------------------------------- features


def sentence_features(examples: list[Example], tokenizer, max_seq_length: int, with_labels: bool) -> list[dict]:
    """Tokenises sentences and pairs; a pair that is too long loses tokens at the end of its longer sentence."""
    features = []
    with tqdm(total=len(examples), desc="tokenise", unit=" examples") as progress:
        for start in range(0, len(examples), 1000):
            block = examples[start : start + 1000]
            texts = [list(column) for column in zip(*(example.texts for example in block))]
            encoded = tokenizer(*texts, truncation=True, max_length=max_seq_length)
            for example, ids, types in zip(block, encoded["input_ids"], encoded["token_type_ids"]):
                feature = {"input_ids": np.array(ids, dtype=np.int32), "second": len(types) - sum(types)}
                features.append({**feature, "labels": example.label} if with_labels else feature)
            progress.update(len(block))
    return features


def window_features(windows: list[Window], with_labels: bool) -> list[dict]:
    """The windows as features; the context is the second segment."""
    features = [{"input_ids": window.input_ids, "second": window.context_start} for window in windows]
    if with_labels:
        features = [{**f, "start_positions": w.start, "end_positions": w.end} for f, w in zip(features, windows)]
    return features


def make_features(task: Task, examples: list, tokenizer, max_seq_length: int, training: bool) -> tuple[list[dict], list[Window]]:
    """Features, with labels for training, and for reading the windows they stand for."""
    if not task.is_reading:
        return sentence_features(examples, tokenizer, max_seq_length, training), []
    windows, left_out = make_windows(examples, tokenizer, max_seq_length, with_answers=training)
    if left_out:
        print(f"{task.name}: {left_out} of {len(examples)} training questions are left out, their answer is not in the context")
    return window_features(windows, training), windows


def collate(features: list[dict]) -> dict[str, torch.Tensor]:
    """Pads a batch to its longest row: ``input_ids``, ``attention_mask``, ``token_type_ids`` [batch, length] int64, labels [batch]."""
    shape = (len(features), max(len(feature["input_ids"]) for feature in features))
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        batch["input_ids"][row, :length] = torch.from_numpy(feature["input_ids"])
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, feature["second"] : length] = 1
    for name in set(features[0]) - {"input_ids", "second"}:
        batch[name] = torch.tensor([feature[name] for feature in features])
    return batch


# ---------------------------------------------------------------- models


def load_model(directory: str, task: Task, labels: tuple[str, ...], what: str, with_head: bool = False, attentions: bool = False):
    """Loads an encoder, or with ``with_head`` a fine-tuned model.

    Returns:
        BertForQuestionAnswering or BertForSequenceClassification, in eval mode; without ``with_head`` the head is new and random.

    Raises:
        UserError: unreadable weights, weights the encoder lacks, or no head where one is wanted.
    """
    model_class = BertForQuestionAnswering if task.is_reading else BertForSequenceClassification
    head = "qa_outputs" if task.is_reading else "classifier"
    names = {} if task.is_reading else {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    try:
        model, info = model_class.from_pretrained(
            directory,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
            attn_implementation="eager" if attentions else "sdpa",
            num_labels=len(labels) or 2,
            **names,
        )
    except Exception as error:  # unreadable, truncated or unsafe weights: the library raises a different exception for each
        raise UserError(f"{directory}: the weights of {what} cannot be loaded ({error})") from None
    missing = sorted(info["missing_keys"]) + sorted(str(key[0]) for key in info["mismatched_keys"])
    wanted = [name for name in missing if with_head or not name.startswith(NOT_IN_ENCODER)]
    if wanted:
        purpose = f"; give a model fine-tuned on {task.name}" if with_head else ""
        raise UserError(f"{directory}: the weights of {what} lack {wanted[0]}, or have it in another shape{purpose}")
    if not with_head:
        layer = getattr(model, head)
        layer.weight.data.normal_(0.0, model.config.initializer_range)
        layer.bias.data.zero_()
    return model.eval()


# ---------------------------------------------------------------- one run


class SavingTrainer(Trainer):
    """A Trainer whose checkpoints say in one line that they could not be written."""

    def _save_checkpoint(self, model, trial):
        with one_line_for_a_full_disk(self.args.output_dir):
            super()._save_checkpoint(model, trial)


class SaveOnceInAWhile(TrainerCallback):
    """Asks for a checkpoint every SAVE_EVERY_SECONDS, short runs write none; what is written gets its checksums."""

    def __init__(self) -> None:
        self.last = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        if time.monotonic() - self.last >= SAVE_EVERY_SECONDS:
            self.last = time.monotonic()
            control.should_save = True
        return control

    def on_save(self, args, state, control, **kwargs):
        write_checksums(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def newest_whole_checkpoint(directory: Path) -> str | None:
    """The checksums are written last: a checkpoint without them, or with others, is not whole and is removed.

    It has to go, as the Trainer keeps the checkpoint of the highest step and removes what the run going on writes below it.
    """
    for path in sorted(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True):
        if damage(path) is None:
            return str(path)
        print(f"warning: {path} is not whole and was removed", file=sys.stderr)
        shutil.rmtree(path)
    return None


def trainer_arguments(recipe: Recipe, directory: Path, epochs: int, seed: int) -> TrainingArguments:
    """Linear warm-up over a tenth of the steps, linear decay, AdamW; no evaluation on the way."""
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
        use_cpu=not torch.cuda.is_available(),  # else bf16 is refused there
        save_strategy="no",
        save_total_limit=1,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=False,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def fine_tune(recipe: Recipe, directory: Path, epochs: int, seed: int) -> Result:
    """Trains for ``epochs`` epochs and predicts the dev set; goes on from the newest checkpoint in ``directory``, if there is one.

    The same seed gives the same weights of the head, order and dropout, so on one machine also the same result.
    """
    set_seed(seed)
    model = load_model(recipe.model_dir, recipe.task, recipe.labels, "the model to fine-tune", attentions=recipe.attentions)
    common = {
        "model": model,
        "args": trainer_arguments(recipe, directory, epochs, seed),
        "train_dataset": recipe.train,
        "data_collator": collate,
        "callbacks": [SaveOnceInAWhile()],
    }
    if recipe.teacher is None:
        trainer = SavingTrainer(**common)
    else:
        from distilling import DistillingTrainer  # brings in TextBrewer

        trainer = DistillingTrainer(teacher=recipe.teacher, temperature=recipe.temperature, matches=list(recipe.matches), **common)
    trainer.train(resume_from_checkpoint=newest_whole_checkpoint(directory))
    if not all(bool(parameter.isfinite().all()) for parameter in trainer.model.parameters()):
        raise UserError(
            f"{epochs} epochs, seed {seed}: the weights are no longer finite; give a lower --learning_rate, or without --bf16 if it is on"
        )
    metrics, predictions = evaluate(recipe, trainer)
    if recipe.teacher is not None:
        trainer.drop_projections()
    return Result(metrics, predictions, trainer.model)


def evaluate_model(recipe: Recipe, model, directory: Path) -> dict[str, float]:
    """The metrics of a fine-tuned model on the dev set, in percent."""
    return evaluate(recipe, Trainer(model, trainer_arguments(recipe, directory, 1, 0), data_collator=collate))[0]


def evaluate(recipe: Recipe, trainer: Trainer) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics in percent and the predictions (answer texts or label names) by dev id."""
    logits = trainer.predict(recipe.dev).predictions
    if recipe.task.is_reading:
        predictions = best_answers(recipe.dev_examples, recipe.dev_windows, *logits)
        return reading_metrics(recipe.dev_examples, predictions), predictions
    labels = logits.argmax(axis=-1)
    right = sum(int(label) == example.label for label, example in zip(labels, recipe.dev_examples))
    predictions = {example.id: recipe.labels[label] for label, example in zip(labels, recipe.dev_examples)}
    return {"accuracy": 100 * right / len(recipe.dev_examples)}, predictions
