"""What the fine-tuning tests share: tiny tasks, command lines, runs that are killed, comparisons."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from finetuning import run, training
from finetuning.tasks import TASKS
from tests import tiny

GOOD, BAD = "今天天气很好", "我明白了因为下雨"


class Killed(BaseException):
    """Stands for a process's death: nothing in the project catches it."""


def jsonl(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def squad(*questions: tuple) -> str:
    """(context, question, answers, answer_start) -> the official layout, ids q0, q1, ..."""
    paragraphs = [
        {
            "id": f"p{n}",
            "context": context,
            "qas": [{"id": f"q{n}", "question": asked, "answers": [{"text": text, "answer_start": start} for text in answers]}],
        }
        for n, (context, asked, answers, start) in enumerate(questions)
    ]
    return json.dumps({"version": "v1.0", "data": [{"paragraphs": paragraphs, "id": "d", "title": "t"}]}, ensure_ascii=False, indent=1)


def write_task(directory: Path, name: str) -> Path:
    """A tiny, easy copy of chnsenticorp or cmrc2018."""
    directory.mkdir(parents=True)
    if name == "chnsenticorp":
        text = "label\ttext_a\n" + "".join(f"1\t{GOOD}{'好' * (n % 5)}\n0\t{BAD}{'雨' * (n % 3)}\n" for n in range(24))
    else:
        text = squad(*((sentence, "哪里?", [sentence[2:4]], 2) for sentence in tiny.SENTENCES * 2))
    for split in ("train", "dev"):
        (directory / TASKS[name].files[split][0]).write_text(text, encoding="utf-8")
    return directory


def arguments(world: Path, task: str, output_dir: Path, *more, model: str = "student") -> list[str]:
    """A command line of ``run.py``; ``more`` adds to it or overrides it."""
    given = {
        "model_name_or_path": world / model,
        "task": task,
        "data_dir": world / task,
        "output_dir": output_dir,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 8,
    }
    return [str(part) for name, value in given.items() for part in (f"--{name}", value)] + ["--allow_other_size", *map(str, more)]


def run_main(*given: str) -> None:
    """``run.py`` with these arguments, in this process, on the CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        run.main([str(part) for part in given])


def count_steps(patch: pytest.MonkeyPatch, kill_after: int | None = None) -> list:
    """Patches the Trainer: the returned list gets an item for each training step, and the step after ``kill_after`` dies."""
    training_step, done = training.Trainer.training_step, []

    def counted(*args, **kwargs):
        if len(done) == kill_after:
            raise Killed
        done.append(1)
        return training_step(*args, **kwargs)

    patch.setattr(training.Trainer, "training_step", counted)
    return done


def run_and_kill(*given: str, steps: int) -> None:
    """Runs with a checkpoint after every step; the run dies after ``steps`` steps."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(training, "SAVE_EVERY_SECONDS", 0)
        count_steps(patch, kill_after=steps)
        run_main(*given)


def results_of(output_dir: Path) -> tuple[dict, dict]:
    """Its ``results.json`` and ``predictions.json``."""
    return tuple(json.loads((output_dir / name).read_text()) for name in ("results.json", "predictions.json"))


def without_settings(results: dict) -> dict:
    return {key: value for key, value in results.items() if key != "settings"}


def assert_same_outcome(left: Path, right: Path) -> None:
    """Compares results, predictions and weights of two output directories."""
    (left_results, left_predictions), (right_results, right_predictions) = results_of(left), results_of(right)
    assert without_settings(left_results) == without_settings(right_results) and left_predictions == right_predictions
    left_weights, right_weights = (load_file(out / "model" / "model.safetensors") for out in (left, right))
    assert all(torch.equal(left_weights[name], right_weights[name]) for name in right_weights)
