"""The results.json files of ``run.py``: by model and task, and how they differ from the protocol."""

import glob
import math
import re
from pathlib import Path
from typing import Any

from finetuning.task_definitions import METRICS, TASKS
from finetuning.units import BATCH_SIZE, EPOCHS, SEEDS
from pretraining.corpus.files import read_json
from pretraining.utils import UserError

PROTOCOL_SETTINGS = {"max_seq_length", "per_device_train_batch_size", "learning_rate", "teacher"}
ALL_METRICS = [list(names) for metrics in METRICS.values() for names in metrics.values()]

Results = dict[str, dict[str, dict[str, Any]]]  # model -> task -> content of a results.json


def expand(arguments: list[str]) -> list[str]:
    """Replaces ``NAME=PATTERN``, which a shell leaves as it is, by ``NAME=PATH`` of each file."""
    expanded: list[str] = []
    for argument in arguments:
        name, equals, pattern = argument.rpartition("=")
        if not equals or Path(argument).exists() or not glob.has_magic(pattern):
            expanded.append(argument)
            continue
        paths = sorted(glob.glob(pattern))
        if not paths:
            raise UserError(f"{argument}: no file has a name like that")
        expanded += [f"{name}={path}" for path in paths]
    return expanded


def name_apart(arguments: list[str]) -> list[str]:
    """Puts ``NAME=`` before the results of a model that has two for one task; NAME is the results' directory above the task's."""
    models: dict[str, str] = {}
    cells: dict[tuple[str, str], set[str]] = {}
    for argument in arguments:
        if "=" in argument and not Path(argument).exists():
            continue  # has a name
        content = read_json(_file(argument), "a results.json of run.py")
        models[argument] = model_name(str(content.get("model")))
        cells.setdefault((models[argument], str(content.get("task"))), set()).add(argument)
    twice = {model for (model, _), same in cells.items() if len({_file(path).resolve().parents[1] for path in same}) > 1}
    return [f"{_file(text).resolve().parents[1].name}={text}" if models.get(text) in twice else text for text in arguments]


def _file(path: str) -> Path:
    return Path(path) / "results.json" if Path(path).is_dir() else Path(path)


def read_results(arguments: list[str]) -> Results:
    """Reads the results.json files, by model and task.

    Raises:
        UserError: an unreadable file, one that run.py did not write, or two for the same model and task.
    """
    results: Results = {}
    paths: dict[tuple[str, str], str] = {}
    for argument in arguments:
        name, _, path = argument.rpartition("=")
        if Path(argument).exists():
            name, path = "", argument
        content = read_json(Path(path) / "results.json" if Path(path).is_dir() else path, "a results.json of run.py")
        if wrong := wrong_field(content):
            raise UserError(f"{path}: is not a results.json of run.py, {wrong!r} is missing or not as run.py writes it")
        model, task = name or model_name(content["model"]), content["task"]
        if (model, task) in paths:
            raise UserError(f"{path}: {paths[model, task]} has results of {model} for {task} too; name the models apart with NAME={path}")
        paths[model, task] = path
        results.setdefault(model, {})[task] = content
    return results


def wrong_field(content: dict[str, Any]) -> str | None:
    """The first field of a results.json that is missing or of another kind than run.py writes, or None."""
    name, metrics = content.get("task"), content.get("metrics")
    best, rows, settings = (content.get(field) for field in ("best", "by_epochs", "settings"))
    task = TASKS.get(name) if isinstance(name, str) else None
    is_own = isinstance(name, str) and task is None and isinstance(settings, dict) and "kind" in settings
    has_metrics = metrics == list(task.metrics) if task else metrics in ALL_METRICS
    checks = {
        "task": task is not None or is_own,
        "model": isinstance(content.get("model"), str),
        "metrics": has_metrics,
        "best": has_metrics and isinstance(best, dict) and all(_is_number(best.get(f"{name}_mean")) for name in metrics or ()),
        "by_epochs": isinstance(rows, list) and bool(rows) and all(map(_is_row, rows)),
        "settings": isinstance(settings, dict) and PROTOCOL_SETTINGS <= settings.keys(),
        "by_learning_rate": has_metrics and _are_rates(content.get("by_learning_rate", []), metrics or []),
    }
    return next((name for name, is_right in checks.items() if not is_right), None)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_row(row: Any) -> bool:
    return isinstance(row, dict) and type(row.get("num_train_epochs")) is int and isinstance(row.get("seeds"), list) and bool(row["seeds"])


def _are_rates(rows: Any, metrics: list[str]) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, dict) and all(_is_number(row.get(name)) for name in ("learning_rate", *(f"{metric}_mean" for metric in metrics)))
        for row in rows
    )


def rate_text(rate: float) -> str:
    """A learning rate as it is published: 1e-4, not 0.0001."""
    mantissa, _, exponent = f"{rate:e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def model_name(directory: str) -> str:
    """The last part of a model's path; of a checkpoint ``saves/NAME/gs<step>`` the NAME."""
    path = Path(directory)
    return path.parent.name if re.fullmatch(r"gs\d+", path.name) and path.parent.name else path.name


def figures(content: dict[str, Any]) -> list[float]:
    """The figures of one results.json by the protocol, in percent, one per metric."""
    return [content["best"][f"{name}_mean"] for name in content["metrics"]]


def protocol_notes(results: Results) -> list[str]:
    """One line for each figure that was not measured by the full protocol."""
    notes = []
    for model, tasks in results.items():
        for name, content in tasks.items():
            if differences := protocol_differences(content):
                notes.append(f"{model}, {TASKS[name].title if name in TASKS else name}: {'; '.join(differences)}.")
    return notes


def protocol_differences(content: dict[str, Any]) -> list[str]:
    """How the runs of one results.json differ from the protocol."""
    differences, settings = [], content["settings"]
    epochs = [row["num_train_epochs"] for row in content["by_epochs"]]
    if not set(EPOCHS) <= set(epochs):
        differences.append(f"only {', '.join(map(str, epochs))} epochs instead of {', '.join(map(str, EPOCHS))}")
    elif more := sorted(set(epochs) - set(EPOCHS)):
        differences.append(f"{', '.join(map(str, more))} epochs as well")
    seeds = min(len(row["seeds"]) for row in content["by_epochs"])
    if seeds < len(SEEDS):
        differences.append(f"only {seeds} of {len(SEEDS)} seeds")
    for key, what in (("max_train_samples", "training"), ("max_eval_samples", "dev")):
        if settings.get(key):
            differences.append(f"only the first {settings[key]} {what} examples")
    standards: dict[str, list] = {"per_device_train_batch_size": [BATCH_SIZE], "teacher": [None]}
    if task := TASKS.get(content["task"]):
        standards = {"max_seq_length": [task.max_seq_length], **standards}
        if "by_learning_rate" not in content:
            standards["learning_rate"] = [task.learning_rate_small, task.learning_rate_roberta]
    if rates := [rate_text(row["learning_rate"]) for row in content.get("by_learning_rate", [])]:
        differences.append(f"the best of the learning rates {', '.join(rates)}")
    differences += [f"{key} {settings[key]}" for key, standard in standards.items() if settings[key] not in standard]
    return differences
