"""The search over learning rates: one directory of units for each rate, and the results over all of them.

``learning_rate_RATE/`` in the output directory is an output directory of its own. ``results.json``, ``predictions.json`` and ``model/``
above them are made from theirs: the protocol's figure is the best over rates and epoch counts of the mean over the seeds.
"""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

from finetuning.task_definitions import Task
from finetuning.units import CLAIM, directory_lock
from pretraining.corpus.files import atomic_directory, read_json, write_json
from pretraining.utils import UserError

PREFIX = "learning_rate_"


class Plan(NamedTuple):
    """The units of one learning rate: their directory and their settings."""

    directory: Path
    settings: dict[str, Any]


def make_plans(output_dir: Path, settings: dict[str, Any], learning_rates: list[float]) -> list[Plan]:
    """One plan for each rate; a single rate has the output directory for itself.

    Raises:
        UserError: the directory has a search and one rate is asked for, or the reverse.
    """
    plans = [Plan(output_dir / f"{PREFIX}{rate:g}", {**settings, "learning_rate": rate}) for rate in learning_rates]
    if len(plans) > 1 and any(output_dir.glob("units/*.json")):
        raise UserError(f"{output_dir}: holds runs with one learning rate, not a search; give another --output_dir")
    if len(plans) == 1 and any(output_dir.glob(f"{PREFIX}*/units")):
        raise UserError(f"{output_dir}: holds a search over learning rates; give several to --learning_rate, or another --output_dir")
    return plans if len(plans) > 1 else [Plan(output_dir, plans[0].settings)]


def write_search(output_dir: Path, task: Task) -> dict[str, Any] | None:
    """Writes ``results.json``, ``predictions.json`` and ``model/`` over all rates that have results; None if none has.

    ``results.json`` has the fields of the best rate's own; the lists of runs are those of all rates. ``by_learning_rate`` has for each rate
    its best row of ``by_epochs``. Predictions and model are of the best single run. While they are replaced there are no results.
    """
    metric = task.metrics[0]
    with directory_lock(output_dir):
        found: dict[float, tuple[Path, dict[str, Any]]] = {}
        for path in output_dir.glob(f"{PREFIX}*/results.json"):
            with directory_lock(path.parent):
                content = read_json(path, "the results of one learning rate")
                found[content["settings"]["learning_rate"]] = path.parent, content
        if not found:
            return None
        rates = sorted(found)
        rows = [{"learning_rate": rate, **found[rate][1]["best"]} for rate in rates]
        best = max(rows, key=lambda row: row[f"{metric}_mean"])["learning_rate"]
        single = min(rates, key=lambda rate: -_best_run(found[rate][1])["metrics"][metric])
        content = found[best][1]
        results = {
            **content,
            "by_learning_rate": rows,
            "runs": [{"learning_rate": rate, **run} for rate in rates for run in found[rate][1]["runs"]],
            "unfinished": [{"learning_rate": rate, **key} for rate in rates for key in found[rate][1]["unfinished"]],
            "predictions_and_model_of": {"learning_rate": single, **found[single][1]["predictions_and_model_of"]},
            "settings": {**content["settings"], "learning_rates": rates},
        }
        _take_model(found[single][0], output_dir, results["predictions_and_model_of"])
        write_json(output_dir / "results.json", results, indent=2)
    return results


def _best_run(content: dict[str, Any]) -> dict[str, Any]:
    """The run whose predictions and model a rate has."""
    best = content["predictions_and_model_of"]
    return next(run for run in content["runs"] if {name: run[name] for name in best} == best)


def _take_model(source: Path, output_dir: Path, run: dict[str, Any]) -> None:
    """Copies predictions and model of one rate, if those that are there are of another run."""
    note = output_dir / "model" / CLAIM
    if note.is_file() and (output_dir / "results.json").is_file() and read_json(note, "the run of a model") == run:
        return
    (output_dir / "results.json").unlink(missing_ok=True)
    with directory_lock(source):
        with atomic_directory(output_dir / "model") as directory:
            shutil.copytree(source / "model", directory, dirs_exist_ok=True)
            write_json(directory / CLAIM, run)
        write_json(output_dir / "predictions.json", read_json(source / "predictions.json", "the predictions"), indent=2)
