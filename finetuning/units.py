"""The runs of one model on one task: the protocol, the finished runs, and the results over all of them.

A unit is one run: one epoch count with one seed. Its file in ``units/`` is written last, after its model.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from finetuning.task_definitions import Task
from pretraining.corpus.files import atomic_directory, disk_full_as_user_error, read_json, write_json
from pretraining.corpus.tokenizer import save_tokenizer
from pretraining.utils import UserError

# The published protocol: the best over the epoch counts of the mean over the seeds.
EPOCHS, SEEDS, BATCH_SIZE = (2, 3, 5, 10), (1, 2, 3), 32
FREE_TO_CHANGE = ("model_name_or_path", "teacher")  # settings that may differ between two calls; the content of the models may not


class UnitKey(NamedTuple):
    """What tells the units of one output directory apart."""

    num_train_epochs: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the unit's file and directory."""
        return f"epochs{self.num_train_epochs}-seed{self.seed}"


class Unit(NamedTuple):
    """A finished run: metrics in percent, and for every dev id the prediction, an answer or a label."""

    num_train_epochs: int
    seed: int
    metrics: dict[str, float]
    predictions: dict[str, str]

    @property
    def key(self) -> UnitKey:
        return UnitKey(self.num_train_epochs, self.seed)


def directory_lock(output_dir: Path) -> FileLock:
    """A lock on the files that all commands in one output directory write; there can be one command per GPU."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(output_dir / ".lock")


# ---------------------------------------------------------------- settings


def check_settings(output_dir: Path, settings: dict[str, Any]) -> None:
    """Writes ``settings.json``, after a comparison with the one of earlier runs: results of different settings must not mix.

    Raises:
        UserError: the directory has runs, finished or not, with other settings.
    """
    path = output_dir / "settings.json"
    with directory_lock(output_dir):
        begun = [*output_dir.glob("units/*.json"), *output_dir.glob("unfinished/*/checkpoint-*")]
        if begun and path.is_file():
            earlier = read_json(path, "the settings of the runs in this directory")
            for key, value in settings.items():
                if key not in FREE_TO_CHANGE and earlier.get(key) != value:
                    raise UserError(
                        f"{output_dir}: holds runs with {key} {earlier.get(key)}, this one has {value}; give another --output_dir"
                    )
        write_json(path, settings, indent=2)


# ---------------------------------------------------------------- units


def finished_units(output_dir: Path) -> dict[UnitKey, Unit]:
    """Reads the finished runs, in the order of epoch counts and seeds.

    Raises:
        UserError: a file in ``units/`` that this program did not write.
    """
    units = []
    for path in (output_dir / "units").glob("*.json"):
        content = read_json(path, "a finished run; remove it and run again")
        if not set(Unit._fields) <= content.keys():
            raise UserError(f"{path}: is no finished run of this program; remove it and run again")
        units.append(Unit(**{name: content[name] for name in Unit._fields}))
    return {unit.key: unit for unit in sorted(units, key=lambda unit: unit.key)}


def best_unit(task: Task, units: Iterable[Unit]) -> Unit:
    """The best single run by the first metric of the task; of equals the one with fewer epochs, then the lower seed."""
    return min(units, key=lambda unit: (-unit.metrics[task.metrics[0]], unit.key))


def write_unit(output_dir: Path, task: Task, unit: Unit, model: Any, tokenizer: Any) -> None:
    """Writes a finished run, and before it ``model/`` if this run is the best so far.

    After a kill between the two, the unit runs again from its newest checkpoint.

    Args:
        model, tokenizer: of transformers.
    """
    with directory_lock(output_dir):
        units = {**finished_units(output_dir), unit.key: unit}
        if best_unit(task, units.values()) is unit:
            with atomic_directory(output_dir / "model") as directory, disk_full_as_user_error(output_dir / "model"):
                model.save_pretrained(directory)
                save_tokenizer(tokenizer, directory)
        write_json(output_dir / "units" / f"{unit.key.name}.json", unit._asdict(), indent=None)


# ---------------------------------------------------------------- results


class Summary(NamedTuple):
    """One dict per epoch count: ``num_train_epochs``, ``seeds``, and of every metric ``NAME_mean`` and ``NAME_std`` in percent.

    The latter is the sample standard deviation, None for a single seed. ``best`` has the highest mean of the first metric.
    """

    by_epochs: list[dict[str, Any]]
    best: dict[str, Any]


def summarise(metrics: tuple[str, ...], units: Iterable[Unit]) -> Summary:
    """Computes mean and standard deviation over the seeds for each epoch count."""
    groups: dict[int, list[Unit]] = {}
    for unit in sorted(units, key=lambda unit: unit.key):
        groups.setdefault(unit.num_train_epochs, []).append(unit)
    rows = []
    for epochs, group in groups.items():
        row: dict[str, Any] = {"num_train_epochs": epochs, "seeds": [unit.seed for unit in group]}
        for name in metrics:
            values = [unit.metrics[name] for unit in group]
            row[f"{name}_mean"] = statistics.fmean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return Summary(rows, max(rows, key=lambda row: row[f"{metrics[0]}_mean"]))


def write_results(output_dir: Path, task: Task, settings: dict[str, Any], requested: list[UnitKey]) -> dict[str, Any]:
    """Writes ``results.json`` and ``predictions.json`` from all finished runs; returns the results."""
    with directory_lock(output_dir):
        units = finished_units(output_dir)
        summary, best = summarise(task.metrics, units.values()), best_unit(task, units.values())
        results = {
            "task": task.name,
            "model": settings["model_name_or_path"],
            "split": "dev",
            "metrics": list(task.metrics),
            "best": summary.best,
            "by_epochs": summary.by_epochs,
            "runs": [{**unit.key._asdict(), "metrics": unit.metrics} for unit in units.values()],
            "unfinished": [key._asdict() for key in requested if key not in units],
            "predictions_and_model_of": best.key._asdict(),
            "settings": settings,
        }
        write_json(output_dir / "results.json", results, indent=2)
        write_json(output_dir / "predictions.json", best.predictions, indent=2)
    return results
