"""What the experiment measured: scores, evaluations, loss curves and speed, read from the work directory."""

import re
import statistics
from pathlib import Path
from typing import NamedTuple

from experiments.small_scale.intervals import mean_of
from experiments.small_scale.jobs import SHAPE_OF, STUDENTS
from experiments.small_scale.settings import read_noted_settings
from finetuning.task_definitions import TASKS
from pretraining.corpus.files import read_json
from pretraining.reporting.scalars import Scalars, read_scalars
from pretraining.utils import UserError

# Kinds of models and their titles: first those that are fine-tuned, then all that are trained.
KINDS = {
    "teacher": "Teacher",
    "two_stage": "Narrow-deep, two-stage",
    "one_stage": "Narrow-deep, one-stage",
    "wide_shallow": "Wide-shallow, one-stage",
    "no_teacher": "Narrow-deep, no teacher",
}
TRAINED = {"shallow": "Teacher, its first layers", "teacher": "Teacher", "ta": "Assistant", **KINDS}
SINGLE = ("shallow", "teacher")  # one model for all seeds

Metrics = dict[str, float]  # name -> percent


class Experiment:
    """The scores and evaluations of a finished experiment.

    Attributes:
        work: the work directory.
        settings: what it was run with.
        tasks: the names of the tasks, in the order of the published tables.
        rates: the learning rates of the fine-tuning, as written in the settings.
        scores: [kind][task][learning rate] -> the metrics of each seed.
        evaluations: [kind] -> for each training run the figures of eval.json.
    """

    def __init__(self, work: Path):
        self.work = work
        self.settings = read_noted_settings(work / "settings.txt")
        self.is_dry = self.settings.scale != "gpu"
        self.seeds = self.settings.seeds
        self.rates = self.settings.learning_rates
        chosen = {sample.name for sample in self.settings.tasks}
        self.tasks = [task for task in TASKS if task in chosen]
        self.scores = {kind: {task: self._scores(kind, task) for task in self.tasks} for kind in KINDS}
        self.evaluations = {kind: [self._evaluation(run) for run in self.runs(kind)] for kind in TRAINED}

    def _scores(self, kind: str, task: str) -> dict[str, list[Metrics]]:
        """By learning rate the metrics of each seed."""
        scores = {}
        for rate in self.rates:
            paths = [self.work / "finetuning" / f"{kind}-{seed}" / task / rate / "results.json" for seed in self.seeds]
            results = [read_json(path, "a result of finetuning/run.py") for path in paths]
            scores[rate] = [result["runs"][0]["metrics"] for result in results]
        return scores

    def _evaluation(self, run: str) -> dict[str, float]:
        return read_json(self.work / "runs" / run / "eval.json", "an evaluation of train.py")["student"]

    def runs(self, kind: str) -> list[str]:
        """The names of a kind's training runs."""
        return [kind] if kind in SINGLE else [f"{kind}-{seed}" for seed in self.seeds]

    # ------------------------------------------------------------ scores, in percent

    def first_metric(self, kind: str, task: str, rate: str) -> list[float]:
        """The task's first metric, a value for each seed."""
        name = TASKS[task].metrics[0]
        return [metrics[name] for metrics in self.scores[kind][task][rate]]

    def best_rate(self, kind: str, task: str) -> str:
        """The learning rate with the highest mean over the seeds."""
        return max(self.rates, key=lambda rate: statistics.fmean(self.first_metric(kind, task, rate)))

    def at_best_rate(self, kind: str, task: str) -> list[float]:
        """The first metric at the best learning rate, a value for each seed."""
        return self.first_metric(kind, task, self.best_rate(kind, task))

    def overall(self, kind: str) -> list[float]:
        """The mean of :meth:`at_best_rate` over the tasks, a value for each seed."""
        return mean_of([self.at_best_rate(kind, task) for task in self.tasks])

    def gain(self, kind: str, tasks: list[str]) -> list[float]:
        """First metric at the highest learning rate minus that at the lowest, mean over the tasks, a value for each seed."""
        lowest, highest = min(self.rates, key=float), max(self.rates, key=float)
        high = mean_of([self.first_metric(kind, task, highest) for task in tasks])
        low = mean_of([self.first_metric(kind, task, lowest) for task in tasks])
        return [a - b for a, b in zip(high, low)]

    def students_gain(self, tasks: list[str]) -> list[float]:
        """The mean of :meth:`gain` over the four kinds of students."""
        return mean_of([self.gain(kind, tasks) for kind in STUDENTS])

    def masked_lm_accuracy(self, kind: str) -> list[float]:
        """On the dev articles, in percent, a value for each training run."""
        return [100 * figures["accuracy"] for figures in self.evaluations[kind]]

    # ------------------------------------------------------------ budgets

    def batch(self, kind: str) -> int:
        """Sequences per optimizer step."""
        return self.settings.teacher_batch if kind in SINGLE else self.settings.student_batch

    def steps(self, kind: str) -> int:
        """Optimizer steps of one training run."""
        steps = {"shallow": self.settings.shallow_steps, "teacher": self.settings.teacher_steps}
        return steps.get(kind, self.settings.student_steps)

    def budget(self, kind: str) -> int:
        """Tokens that one training run sees."""
        return self.settings.length * self.batch(kind) * self.steps(kind)

    def shape(self, kind: str) -> str:
        """``LAYERS/HIDDEN/FFN/HEADS``."""
        return str(self.settings.shape_of(SHAPE_OF[kind]))

    def config_path(self, kind: str) -> Path:
        """The model's config.json."""
        return self.work / "data" / "configs" / f"{SHAPE_OF[kind]}.json"


# ---------------------------------------------------------------- curves and logs


class Curve(NamedTuple):
    """The losses of one training run: in total, and only on the predictions (soft labels with a teacher, else masked-LM)."""

    total: Scalars
    predictions: Scalars


def read_curve(run: Path) -> Curve:
    """Reads what train.py wrote for TensorBoard.

    Raises:
        UserError: there are no losses.
    """
    scalars = read_scalars(run)
    for name in ("scalar/unweighted_kd_loss", "scalar/unweighted_hard_label_loss"):
        if name in scalars:
            return Curve(scalars["scalar/total_loss"], scalars[name])
    raise UserError(f"{run}: its TensorBoard events have no losses of train.py; remove its mark in done/ and run run.py again")


def steps_per_second(total: Scalars) -> float:
    """The median over stretches of ten steps, so that the start, checkpoints and interruptions do not count."""
    # On a GPU train.py writes ten steps at once, so that the times between them mean nothing.
    points = [(step, time) for step, time in zip(total.steps, total.wall_times) if step % 10 == 0]
    return statistics.median((b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(points, points[1:]))


def found_in_logs(work: Path, jobs: list[str], pattern: str) -> list[float]:
    """All numbers that the group of a pattern finds in the logs of some jobs."""
    logs = [(work / "logs" / f"{job}.log").read_text(encoding="utf-8", errors="replace") for job in jobs]
    return [float(number) for log in logs for number in re.findall(pattern, log)]
