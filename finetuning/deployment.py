"""What a model is worth on a task once it was exported or made smaller: its score, how long one sentence takes, sentences a second."""

import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from finetuning.features import collate, make_features
from finetuning.heads import load_fine_tuned
from finetuning.predictor import Run, model_labels, onnx_run, pytorch_run
from finetuning.scores import score
from finetuning.task_definitions import Task, to_task
from finetuning.tasks import find_data, find_file, load_split, task_labels
from finetuning.units import TASK_FILE
from pretraining.corpus.files import read_json
from pretraining.distillation.modeling import read_config
from pretraining.exporting.onnx_check import core_counts, weight_bytes
from pretraining.reporting.tables import markdown_table
from pretraining.reporting.timing import time_in_turn
from pretraining.utils import UserError, cores_per_process, progress_bar

BATCH_SIZE = 32
TIMED_SENTENCES = 200  # of the dev set, spread over it
PYTORCH = "PyTorch float32"

Latencies = dict[tuple[str, int], np.ndarray]  # (runtime, CPU cores) -> seconds of each timed sentence


class DevSet(NamedTuple):
    """The dev set of a task as the input of one model.

    Attributes:
        labels: in the order of their indices; none for reading.
        features, windows: as :func:`finetuning.features.make_features` returns them.
    """

    task: Task
    labels: tuple[str, ...]
    examples: list
    features: list[dict]
    windows: list


class Score(NamedTuple):
    """The metrics of a runtime in percent, and how many rows of the dev set it computes in a second."""

    metrics: dict[str, float]
    rows_per_second: float


def load_dev_set(task_name: str, data_dir: str | None, model_dir: Path, tokenizer: Any) -> DevSet:
    """Reads the dev set for a fine-tuned model.

    A row has as many tokens as in the model's fine-tuning, or the task's default where the model does not say.

    Raises:
        UserError: no such task or data, or the model is of another task.
    """
    task, directory = find_data(task_name, data_dir)
    labels = task_labels(task, directory)
    path = find_file(task, directory, "dev")
    examples: list = load_split(task, path, labels)
    config = read_config(model_dir / "config.json", "the config of the model")
    found = model_labels(model_dir, task, config)
    if not task.is_reading and len(found) != len(labels):
        raise UserError(f"{model_dir}: has {len(found)} labels, {task.name} {len(labels)}; give a model fine-tuned on {task.name}")
    if not task.is_reading and found != labels and not found[0].startswith("LABEL_"):  # LABEL_0: trained elsewhere, without names
        raise UserError(f"{model_dir}: its labels are {', '.join(found)}, those of {task.name} {', '.join(labels)}")
    saved = model_dir / TASK_FILE
    length = (to_task(saved, read_json(saved, "the task of the model")) if saved.is_file() else task).max_seq_length
    features, windows = make_features(task, examples, tokenizer, min(length, config.max_position_embeddings), training=False)
    return DevSet(task, labels, examples, features, windows)


def runtimes(model: Any, files: dict[str, Path], dev: DevSet, cores: int) -> dict[str, Run]:
    """PyTorch and each exported file, by name, as functions of a batch that use this number of CPU cores."""
    pytorch = pytorch_run(model)

    def run(batch: dict[str, torch.Tensor]) -> list[np.ndarray]:
        threads_before = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            return pytorch(batch)
        finally:
            torch.set_num_threads(threads_before)

    outputs = ("start_logits", "end_logits") if dev.task.is_reading else ("logits",)
    return {PYTORCH: run, **{f"onnxruntime {kind}": onnx_run(file, outputs, cores) for kind, file in files.items()}}


def score_in_turn(dev: DevSet, runs: dict[str, Run]) -> dict[str, Score]:
    """Scores every runtime on the same examples, batch by batch in turn; rows of like length go together."""
    rows = sorted(range(len(dev.features)), key=lambda row: len(dev.features[row]["input_ids"]))
    batches = [rows[start : start + BATCH_SIZE] for start in range(0, len(rows), BATCH_SIZE)]
    outputs: dict[str, list[list[np.ndarray]]] = {name: [[] for _ in rows] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for run in runs.values():
        run(collate([dev.features[row] for row in batches[0]]))  # the first call is slower
    with progress_bar(total=len(batches), desc="scoring", unit=" batches") as bar:
        for batch in batches:
            inputs = collate([dev.features[row] for row in batch])
            for name, run in runs.items():
                start = time.perf_counter()
                results = run(inputs)
                seconds[name] += time.perf_counter() - start
                for row, *logits in zip(batch, *results):
                    outputs[name][row] = logits
            bar.update()
    return {name: Score(_metrics(dev, outputs[name]), len(rows) / seconds[name]) for name in runs}


def _metrics(dev: DevSet, outputs: list[list[np.ndarray]]) -> dict[str, float]:
    columns = list(zip(*outputs))
    logits: Any = columns if dev.task.is_reading else columns[0] if dev.task.is_labelling else np.stack(columns[0])
    return score(dev.task, dev.labels, dev.examples, dev.windows, logits)[0]


def dev_metrics(dev: DevSet, model_dir: Path) -> dict[str, float]:
    """The metrics of a fine-tuned model on its dev set, in percent."""
    model = load_fine_tuned(str(model_dir), dev.task, dev.labels, "the model")
    return score_in_turn(dev, {PYTORCH: pytorch_run(model)})[PYTORCH].metrics


def lost_points(task: Task, scores: dict[str, Score], name: str) -> float:
    """How many points of the task's first metric a runtime is below PyTorch; negative if it is above."""
    metric = task.metrics[0]
    return scores[PYTORCH].metrics[metric] - scores[name].metrics[metric]


def prove(dev: DevSet, model: Any, files: dict[str, Path], max_loss: float) -> dict[str, Score]:
    """Scores a model and its exported files on the dev set.

    Args:
        model: the PyTorch model.
        files: the exported files by kind.

    Raises:
        UserError: a file loses more than ``max_loss`` points of the task's first metric.
    """
    scores = score_in_turn(dev, runtimes(model, files, dev, cores_per_process()))
    metric = dev.task.metrics[0]
    for name, result in scores.items():
        lost = lost_points(dev.task, scores, name)
        if lost > max_loss:
            raise UserError(
                f"{name} loses {lost:.2f} points of {metric} on {dev.task.name} ({scores[PYTORCH].metrics[metric]:.2f} -> "
                f"{result.metrics[metric]:.2f}), more than --max_loss {max_loss:g}; nothing was written; accept it with a higher --max_loss"
            )
    return scores


# ---------------------------------------------------------------- time


def time_sentences(dev: DevSet, runs: dict[int, dict[str, Run]]) -> Latencies:
    """Times single sentences of the dev set, the same ones for every runtime, in turn.

    Args:
        runs: the runtimes by name, for each number of CPU cores.
    """
    count = min(TIMED_SENTENCES, len(dev.features))
    places = np.linspace(0, len(dev.features) - 1, count).astype(int)
    inputs = [collate([dev.features[place]]) for place in places]
    runners = {(name, cores): _one_after_the_other(run, inputs) for cores, named in runs.items() for name, run in named.items()}
    turns = time_in_turn(runners, count, description="timing")
    return {name: np.array(seconds) for name, seconds in turns.items()}


def _one_after_the_other(run: Run, inputs: list[dict[str, torch.Tensor]]) -> Callable[[], object]:
    sentences = cycle(inputs)
    return lambda: run(next(sentences))


# ---------------------------------------------------------------- tables


def report(dev: DevSet, scores: dict[str, Score], model: Any, files: dict[str, Path], model_dir: Path) -> str:
    """Times single sentences; returns scores, sizes and times as Markdown.

    Args:
        scores, model, files: as for :func:`prove`; the files may lie elsewhere now.
    """
    latencies = time_sentences(dev, {cores: runtimes(model, files, dev, cores) for cores in core_counts()})
    sizes = {PYTORCH: weight_bytes(model_dir), **{f"onnxruntime {kind}": file.stat().st_size for kind, file in files.items()}}
    return f"{deployment_table(dev, scores, latencies, sizes)}\n\n{how_scored(dev)}"


def deployment_table(dev: DevSet, scores: dict[str, Score], latencies: Latencies, sizes: dict[str, int]) -> str:
    """Metrics, bytes, the time of one sentence and rows a second of each runtime, as Markdown."""
    names = list(dev.task.metrics)
    times = [f"{which}, {cores} core{'s' * (cores > 1)}" for cores in core_counts() for which in ("p50", "p99")]
    rows = [["Runtime", *names, f"{names[0]} lost", "Size", *times, "Rows/s"]]
    for name, result in scores.items():
        cells = [f"{result.metrics[metric]:.2f}" for metric in names]
        lost = "–" if name == PYTORCH else f"{lost_points(dev.task, scores, name):.2f}"
        seconds = [np.percentile(latencies[name, cores], which) for cores in core_counts() for which in (50, 99)]
        cells += [lost, f"{sizes[name] / 1e6:.1f} MB", *(f"{value * 1e3:.1f} ms" for value in seconds), f"{result.rows_per_second:.1f}"]
        rows.append([name, *cells])
    return markdown_table(rows)


def how_scored(dev: DevSet) -> str:
    """The lines that belong below the table."""
    count = min(TIMED_SENTENCES, len(dev.features))
    return (
        f"Scores: the {len(dev.examples)} dev examples of {dev.task.name}, the same for all, in percent; lost: points below PyTorch.\n"
        f"p50, p99: median and 99th percentile of {count} rows of the dev set, one at a time. Rows/s: all {len(dev.features)} rows, in batches of "
        f"{BATCH_SIZE} of like length."
    )
