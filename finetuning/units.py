"""The runs of one model on one task: the protocol, their settings, the finished runs, and the results over all of them.

A unit is one run: one epoch count with one seed. In the output directory:

- ``unfinished/UNIT/``: ``unit.json`` says with which settings it was begun; checkpoints; in the end, if it is the best so far, ``model/``.
- ``units/UNIT.json``: a finished run. It is written after its ``model/``.
- ``model/``, ``predictions.json``, ``results.json``: made from the finished runs. ``model/unit.json`` names the run of ``model/``.
- ``units/.UNIT.lock``: the process that computes a unit holds it. ``.lock``: held for as long as files that all units share are written.
"""

import shutil
import statistics
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from finetuning.task_definitions import Task, definition
from pretraining.corpus.files import atomic_directory, disk_full_as_user_error, read_json, write_json
from pretraining.corpus.locks import exclusive
from pretraining.corpus.tokenizer import save_tokenizer
from pretraining.utils import UserError

# The published protocol: the best over the epoch counts of the mean over the seeds.
EPOCHS, SEEDS, BATCH_SIZE = (2, 3, 5, 10), (1, 2, 3), 32
FREE_TO_CHANGE = ("model_name_or_path", "teacher")  # settings that may differ between two calls; the content of the models may not
CLAIM, TASK_FILE = "unit.json", "task.json"


class UnitKey(NamedTuple):
    """What tells the units of one output directory apart."""

    num_train_epochs: int
    seed: int

    @property
    def name(self) -> str:
        """The name of the unit's file and directory."""
        return f"epochs{self.num_train_epochs}-seed{self.seed}"


class Unit(NamedTuple):
    """A finished run: metrics in percent, for every dev id the prediction (an answer, a label or tags), and what else decided them."""

    num_train_epochs: int
    seed: int
    metrics: dict[str, float]
    predictions: dict[str, str]
    settings: dict[str, Any]

    @property
    def key(self) -> UnitKey:
        return UnitKey(self.num_train_epochs, self.seed)


def directory_lock(output_dir: Path) -> FileLock:
    """A lock on the files that all commands in one output directory write; there can be one command per GPU."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(output_dir / ".lock")


# ---------------------------------------------------------------- units in work, and their settings


@contextmanager
def claimed_units(output_dir: Path, requested: list[UnitKey], settings: dict[str, Any]) -> Iterator[list[UnitKey]]:
    """Yields those of the requested units that are not finished. No other process can begin them while the block runs.

    Raises:
        UserError: another process computes one of them, or the directory has units, finished or not, with other settings.
    """
    with ExitStack() as locks:
        with directory_lock(output_dir):
            finished = finished_units(output_dir)
            check_settings(output_dir, settings, [*(unit.settings for unit in finished.values()), *settings_in_work(output_dir)])
            todo = [key for key in requested if key not in finished]
            for key in todo:
                what = f"{output_dir}, {key.num_train_epochs} epochs, seed {key.seed}"
                locks.enter_context(exclusive(unit_lock(output_dir, key.name), what))
            for key in todo:
                write_json(unit_directory(output_dir, key) / CLAIM, {**key._asdict(), "settings": settings})
        try:
            yield todo
        finally:
            for key in todo:
                if is_only_claimed(unit_directory(output_dir, key)):
                    remove_unit_directory(output_dir, key)


def check_settings(output_dir: Path, settings: dict[str, Any], others: Iterable[dict[str, Any]]) -> None:
    """Refuses settings that differ from those of another unit of the directory: their results must not mix."""
    for earlier in others:
        for key, value in settings.items():
            if key not in FREE_TO_CHANGE and earlier.get(key) != value:
                raise UserError(f"{output_dir}: holds runs with {key} {earlier.get(key)}, this one has {value}; give another --output_dir")


def settings_in_work(output_dir: Path) -> list[dict[str, Any]]:
    """The settings of the units in ``unfinished/``, without those whose process ended before it wrote anything. These are removed.

    Call it before this process holds the lock of a unit.
    """
    found = []
    for directory in sorted(output_dir.glob("unfinished/epochs*")):
        claim = directory / CLAIM
        if is_only_claimed(directory) and not is_in_work(output_dir, directory.name):
            shutil.rmtree(directory)
        else:
            found.append(read_json(claim, "a unit")["settings"] if claim.is_file() else settings_of_older_version(output_dir))
    return found


def settings_of_older_version(output_dir: Path) -> dict[str, Any]:
    """The settings of units without any of their own: older versions wrote them once for the directory."""
    path = output_dir / "settings.json"
    return read_json(path, "the settings of the runs in this directory") if path.is_file() else {}


def is_in_work(output_dir: Path, name: str) -> bool:
    """True if another process computes this unit."""
    try:
        with exclusive(unit_lock(output_dir, name), output_dir):
            return False
    except UserError:
        return True


def unit_lock(output_dir: Path, name: str) -> Path:
    return output_dir / "units" / f".{name}.lock"


def unit_directory(output_dir: Path, key: UnitKey) -> Path:
    """Where a unit is computed."""
    return output_dir / "unfinished" / key.name


def is_only_claimed(directory: Path) -> bool:
    """True for a unit that was begun, but has neither a checkpoint nor a model. Names with a dot in front are half-written."""
    return all(path.name == CLAIM or path.name.startswith(".") for path in directory.glob("*"))


def remove_unit_directory(output_dir: Path, key: UnitKey) -> None:
    """Removes what a unit left in ``unfinished/``, and this directory if it is then empty."""
    directory = unit_directory(output_dir, key)
    shutil.rmtree(directory, ignore_errors=True)
    with suppress(OSError):  # other units are in there
        directory.parent.rmdir()


# ---------------------------------------------------------------- finished units


def finished_units(output_dir: Path) -> dict[UnitKey, Unit]:
    """Reads the finished runs, in the order of epoch counts and seeds.

    Raises:
        UserError: a file in ``units/`` that this program did not write.
    """
    units = []
    for path in (output_dir / "units").glob("*.json"):
        content = read_json(path, "a finished run; remove it and run again")
        content.setdefault("settings", settings_of_older_version(output_dir))
        if not set(Unit._fields) <= content.keys():
            raise UserError(f"{path}: is no finished run of this program; remove it and run again")
        units.append(Unit(**{name: content[name] for name in Unit._fields}))
    return {unit.key: unit for unit in sorted(units, key=lambda unit: unit.key)}


def best_unit(task: Task, units: Iterable[Unit]) -> Unit:
    """The best single run by the first metric of the task; of equals the one with fewer epochs, then the lower seed."""
    return min(units, key=lambda unit: (-unit.metrics[task.metrics[0]], unit.key))


def write_unit(output_dir: Path, task: Task, unit: Unit, model: Any, tokenizer: Any) -> None:
    """Writes a finished run, and before it its model if this run is the best so far.

    After a kill between the two, the unit runs again from its newest checkpoint.

    Args:
        task: with the labels and the length of the run; the model's ``task.json`` says what ``predict.py`` needs of it.
        model, tokenizer: of transformers.
    """
    with directory_lock(output_dir):
        units = {**finished_units(output_dir), unit.key: unit}
        if best_unit(task, units.values()) is unit:
            place = unit_directory(output_dir, unit.key) / "model"
            with atomic_directory(place) as directory, disk_full_as_user_error(place):
                model.save_pretrained(directory)
                save_tokenizer(tokenizer, directory)
                write_json(directory / TASK_FILE, definition(task))
                write_json(directory / CLAIM, unit.key._asdict())
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
    """Writes ``results.json``, ``predictions.json`` and ``model/`` from all finished runs; returns the results.

    While ``model/`` is replaced there are no results: after a kill they are missing until the next call, but never of another run.
    """
    with directory_lock(output_dir):
        units = finished_units(output_dir)
        check_settings(output_dir, settings, (unit.settings for unit in units.values()))
        summary, best = summarise(task.metrics, units.values()), best_unit(task, units.values())
        results = {
            "task": task.name,
            "model": settings["model_name_or_path"],
            "split": "dev",
            "metrics": list(task.metrics),
            "best": summary.best,
            "by_epochs": summary.by_epochs,
            "runs": [{**unit.key._asdict(), "metrics": unit.metrics} for unit in units.values()],
            "unfinished": [key._asdict() for key in sorted({*requested, *begun_units(output_dir)} - units.keys())],
            "predictions_and_model_of": best.key._asdict(),
            "settings": settings,
        }
        replace_model(output_dir, best.key)
        write_json(output_dir / "predictions.json", best.predictions, indent=2)
        write_json(output_dir / "results.json", results, indent=2)
    return results


def begun_units(output_dir: Path) -> list[UnitKey]:
    """The units of all commands that were begun and left in ``unfinished/``."""
    claims = [read_json(path, "a unit") for path in output_dir.glob(f"unfinished/*/{CLAIM}")]
    return [UnitKey(claim["num_train_epochs"], claim["seed"]) for claim in claims]


def replace_model(output_dir: Path, best: UnitKey) -> None:
    """Moves the model of the best run to ``model/``; removes results, predictions and ``model/`` of another run before."""
    model, new, old = output_dir / "model", unit_directory(output_dir, best) / "model", output_dir / ".model.previous"
    note, results, predictions = model / CLAIM, output_dir / "results.json", output_dir / "predictions.json"
    shutil.rmtree(old, ignore_errors=True)
    is_of_best = not note.is_file() or read_json(note, "the run of a model") == best._asdict()  # older versions wrote no note
    named = read_json(results, "the results") if results.is_file() else {}
    if not new.is_dir() and is_of_best and named.get("predictions_and_model_of") == best._asdict():
        return
    results.unlink(missing_ok=True)
    predictions.unlink(missing_ok=True)
    if model.exists() and (new.is_dir() or not is_of_best):
        model.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    if new.is_dir():
        new.rename(model)
