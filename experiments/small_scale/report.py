"""The experiment's report: tables, intervals, verdicts, training curves; run.sh calls it at the end.

    python experiments/small_scale/report.py --work pretraining/saves/small_scale/gpu --output_dir experiments/small_scale

Writes README.md and training.png.
"""

import argparse
import math
import re
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / directory) for directory in ("pretraining", "pretraining/scripts", "finetuning")]
from compare_models import markdown_table, save_figure  # noqa: E402
from table import PUBLISHED, PUBLISHED_STAGES, STAGE_TASKS, TITLES, Row, Table, to_markdown  # noqa: E402
from tasks import TASKS  # noqa: E402
from utils import UserError, parse_one_line_errors, read_json, read_line_blocks, require_file, run_script, whole_file  # noqa: E402

KINDS = {
    "teacher": "Teacher",
    "two_stage": "Narrow-deep, two-stage",
    "one_stage": "Narrow-deep, one-stage",
    "wide_shallow": "Wide-shallow, one-stage",
    "no_teacher": "Narrow-deep, no teacher",
}
STUDENTS = [kind for kind in KINDS if kind != "teacher"]
TRAINED = {"shallow": "Teacher, its first layers", "teacher": "Teacher", "ta": "Assistant", **KINDS}
SINGLE = ("shallow", "teacher")  # one for all seeds
SHAPES = {name: name for name in ("shallow", "teacher", "ta", "wide_shallow")}  # of the others: narrow_deep

# The 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip

RULE = """A claim is **supported** if the whole 95 % interval of its difference lies above 0, **not supported** if the whole interval lies
below 0, and else **too small to tell**: with these seeds the difference cannot be told from none. One comparison a claim decides; the
tables behind it are there to be looked at. No correction is made for there being three claims.

- **(a) Two-stage distillation beats one-stage.** Two-stage minus one-stage, narrow-deep student, same number of tokens for the student.
- **(b) A narrower, deeper student beats a wider, shallower one with as large an encoder.** Narrow-deep minus wide-shallow, both one-stage.
- **(c) Small models want higher learning rates.** What the highest learning rate gains over the lowest, in the students (the mean of all
  four kinds) minus the same gain in the teacher.

A seed's figure is the mean over the tasks of their first metric on the dev set (F1 for CMRC 2018, else accuracy; percentage points), for (a)
and (b) at the learning rate that is best for that model and task by the mean over the seeds, as in the published protocol. The intervals are
Student's t. In (a) and (b) they are paired: the two students of a seed see the same data in the same order with the same masks, and are
fine-tuned in the same order. In (c) teacher and students are independent samples (Welch; degrees of freedom rounded down)."""

LIMITS = """- The repetitions are seeds: first weights, masks, order, dropout and fine-tuning, and for two-stage the assistant too. There is
  one teacher, one corpus, one dev part of each task; their chance is not in the intervals.
- The token budgets are a tiny part of the published ones, and so are models and fine-tuning. What is seen here need not hold at full
  scale, and the other way round.
- The learning rate is chosen on the dev sets, as in the published protocol, for both sides of a comparison alike.
- Two-stage has the assistant's training on top of the student's budget; the budgets table says how much.
- Students that learned from soft targets alone were never trained to give calibrated probabilities: compare their accuracy rather than
  their masked-LM loss with that of the student without a teacher."""


# ---------------------------------------------------------------- statistics


class Difference(NamedTuple):
    """A mean difference with the half width of its 95 % interval."""

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        if self.mean - self.half_width > 0:
            return "supported"
        return "not supported" if self.mean + self.half_width < 0 else "too small to tell"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.mean - self.half_width:+.2f}, {self.mean + self.half_width:+.2f}]"


def t_975(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; degrees of freedom between two whole numbers, or over 30, are rounded down."""
    return T_975[min(int(degrees), len(T_975)) - 1]


def paired_difference(first: list[float], second: list[float]) -> Difference:
    """Mean of first minus second, element by element; at least two pairs."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), t_975(len(differences) - 1) * error)


def unpaired_difference(first: list[float], second: list[float]) -> Difference:
    """Difference of the means of two independent samples, of two values at least, whose variances may differ (Welch, Biometrika 1947)."""
    parts = [statistics.variance(sample) / len(sample) for sample in (first, second)]
    if not any(parts):
        return Difference(statistics.fmean(first) - statistics.fmean(second), 0.0)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second)))
    return Difference(statistics.fmean(first) - statistics.fmean(second), t_975(degrees) * math.sqrt(sum(parts)))


def mean_std(values: list[float], digits: int = 2) -> str:
    """``mean ± sample standard deviation``."""
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


# ---------------------------------------------------------------- what was measured


class Experiment:
    """All that the report reads from the work directory.

    Attributes:
        settings: settings.sh's values by name, as text. seeds, tasks, rates: lists of them.
        scores: [kind][task][learning rate] -> for each seed the metrics in percent by name.
        evaluations: [kind] -> for each run eval.json's figures of the model that was trained.
    """

    def __init__(self, work: Path):
        self.work = work
        self.settings = read_pairs(work / "settings.txt", "the experiment's settings")
        self.seeds = self.settings["seeds"].split()
        self.examples = {name: (int(train), int(dev)) for name, train, dev in (t.split(":") for t in self.settings["tasks"].split())}
        self.tasks = [task for task in TASKS if task in self.examples]
        self.rates = self.settings["learning_rates"].split()
        self.is_dry = self.settings["SCALE"] != "gpu"
        self.scores = {
            kind: {task: {rate: [self.score(kind, seed, task, rate) for seed in self.seeds] for rate in self.rates} for task in self.tasks}
            for kind in KINDS
        }
        self.evaluations = {
            kind: [read_json(work / "runs" / name / "eval.json", "an evaluation of train.py")["student"] for name in self.runs(kind)]
            for kind in TRAINED
        }

    def runs(self, kind: str) -> list[str]:
        """The names of a kind's training runs."""
        return [kind] if kind in SINGLE else [f"{kind}-{seed}" for seed in self.seeds]

    def score(self, kind: str, seed: str, task: str, rate: str) -> dict[str, float]:
        path = self.work / "finetuning" / f"{kind}-{seed}" / task / rate / "results.json"
        return read_json(path, "a result of finetuning/run.py")["runs"][0]["metrics"]

    def first_metric(self, kind: str, task: str, rate: str) -> list[float]:
        """A value a seed."""
        return [metrics[TASKS[task].metrics[0]] for metrics in self.scores[kind][task][rate]]

    def best_rate(self, kind: str, task: str) -> str:
        """The learning rate with the highest mean over the seeds."""
        return max(self.rates, key=lambda rate: statistics.fmean(self.first_metric(kind, task, rate)))

    def at_best(self, kind: str, task: str) -> list[float]:
        """The first metric at the best learning rate, a value a seed."""
        return self.first_metric(kind, task, self.best_rate(kind, task))

    def overall(self, kind: str) -> list[float]:
        """The mean over the tasks of the above, a value a seed."""
        return mean_of([self.at_best(kind, task) for task in self.tasks])

    def gain(self, kind: str, tasks: list[str]) -> list[float]:
        """What the highest learning rate gains over the lowest, mean over the tasks, a value a seed."""
        lowest, highest = (choose(self.rates, key=float) for choose in (min, max))
        high, low = (mean_of([self.first_metric(kind, task, rate) for task in tasks]) for rate in (highest, lowest))
        return [a - b for a, b in zip(high, low)]

    def students_gain(self, tasks: list[str]) -> list[float]:
        return mean_of([self.gain(kind, tasks) for kind in STUDENTS])

    def budget(self, kind: str) -> int:
        """Tokens that one training run of this kind sees."""
        steps = int(self.settings[f"{kind}_steps" if kind in SINGLE else "student_steps"])
        return int(self.settings["length"]) * self.batch(kind) * steps

    def batch(self, kind: str) -> int:
        """Sequences a step."""
        return int(self.settings["teacher_batch" if kind in SINGLE else "student_batch"])


def mean_of(rows: list[list[float]]) -> list[float]:
    """The mean of several rows, column by column."""
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]


def read_pairs(path: Path, what: str) -> dict[str, str]:
    """NAME=VALUE lines."""
    require_file(path, f"{what}, written by run.sh")
    return dict(line.split("=", 1) for lines in read_line_blocks(path) for line in lines)


def read_tsv(path: Path) -> list[list[str]]:
    require_file(path, "written by run.sh")
    return [line.split("\t") for lines in read_line_blocks(path) for line in lines]


class Curve(NamedTuple):
    """Of one training run, by step: the total loss, the loss on the predictions alone, and when it was written, in seconds."""

    steps: list[int]
    total: list[float]
    predictions: list[float]
    seconds: list[float]


def read_curve(run: Path) -> Curve:
    """What train.py wrote for TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()  # 0: every step
    tags = events.Tags()["scalars"]
    total = events.Scalars("scalar/total_loss")
    own = next(name for name in ("scalar/unweighted_kd_loss", "scalar/unweighted_hard_label_loss") if name in tags)
    predictions = [event.value for event in events.Scalars(own)]
    return Curve([event.step for event in total], [event.value for event in total], predictions, [event.wall_time for event in total])


def steps_a_second(curve: Curve) -> float:
    """Median over stretches of ten steps, so that the start, checkpoints and interruptions do not count."""
    points = [(step, second) for step, second in zip(curve.steps, curve.seconds) if step % 10 == 0]  # on a GPU ten are written at once
    return statistics.median((b[0] - a[0]) / (b[1] - a[1]) for a, b in zip(points, points[1:]))


def found_in_logs(work: Path, names: list[str], pattern: str) -> list[float]:
    """All numbers that a pattern's group finds in the logs of these jobs."""
    return [float(value) for name in names for value in re.findall(pattern, (work / "logs" / f"{name}.log").read_text(errors="replace"))]


# ---------------------------------------------------------------- tables


def claims(experiment: Experiment) -> dict[str, Difference]:
    """The three comparisons that decide."""
    two, one, wide = (experiment.overall(kind) for kind in ("two_stage", "one_stage", "wide_shallow"))
    tasks = experiment.tasks
    return {
        "(a) two-stage − one-stage": paired_difference(two, one),
        "(b) narrow-deep − wide-shallow": paired_difference(one, wide),
        "(c) gain by a high learning rate, students − teacher": unpaired_difference(
            experiment.students_gain(tasks), experiment.gain("teacher", tasks)
        ),
    }


def published_differences(tasks: list[str]) -> list[str]:
    """What the published tables say on (a) and (b): the mean difference over those of these tasks that they have."""

    def first_metrics(cells: str, names: tuple[str, ...]) -> dict[str, float]:
        return {name: float(cell.split("/")[0]) for name, cell in zip(names, cells.split())}

    two, one = (first_metrics(cells, STAGE_TASKS) for cells in PUBLISHED_STAGES.values())
    narrow, wide = (first_metrics(PUBLISHED[name], tuple(TASKS)) for name in ("MiniRBT-H256", "RBT4-H312"))
    cells = []
    for first, second in ((two, one), (narrow, wide)):
        shared = [task for task in tasks if task in first]
        difference = f"{statistics.fmean(first[task] - second[task] for task in shared):+.2f}" if shared else "–"
        cells.append(difference + (f" ({', '.join(TITLES[task] for task in shared)})" if 0 < len(shared) < len(tasks) else ""))
    return [*cells, "–"]


def claims_table(experiment: Experiment) -> str:
    rows = [["Claim", "Difference [95 % interval], points", "Verdict", "As published"]]
    for (name, difference), published in zip(claims(experiment).items(), published_differences(experiment.tasks)):
        verdict = f"none, a dry run (by the rule: {difference.verdict})" if experiment.is_dry else f"**{difference.verdict}**"
        rows.append([name, str(difference), verdict, published])
    return markdown_table(rows)


def by_task_table(experiment: Experiment) -> str:
    """The claims' differences task by task, that between teaching and none, and both for the accuracy of masked-LM."""
    rows = [["Difference [95 % interval], points", *(TITLES[task] for task in experiment.tasks), "Masked-LM accuracy"]]
    for title, first, second in (
        ("(a) two-stage − one-stage", "two_stage", "one_stage"),
        ("(b) narrow-deep − wide-shallow", "one_stage", "wide_shallow"),
        ("one-stage − no teacher", "one_stage", "no_teacher"),
    ):
        cells = [str(paired_difference(experiment.at_best(first, task), experiment.at_best(second, task))) for task in experiment.tasks]
        accuracies = ([100 * result["accuracy"] for result in experiment.evaluations[kind]] for kind in (first, second))
        rows.append([title, *cells, str(paired_difference(*accuracies))])
    cells = [str(unpaired_difference(experiment.students_gain([task]), experiment.gain("teacher", [task]))) for task in experiment.tasks]
    rows.append(["(c) gain by a high learning rate, students − teacher", *cells, "–"])
    return markdown_table(rows)


def result_cells(experiment: Experiment, kind: str, task: str, rate: str) -> str:
    scores = experiment.scores[kind][task][rate]
    return " / ".join(mean_std([metrics[name] for metrics in scores]) for name in TASKS[task].metrics)


def result_tables(experiment: Experiment) -> str:
    """The published tables' form: absolute, relative to the teacher, two-stage against one-stage."""
    tasks = tuple(experiment.tasks)
    absolute = [
        Row(
            title,
            f"measured, {len(experiment.seeds)} seeds",
            {task: result_cells(experiment, kind, task, experiment.best_rate(kind, task)) for task in tasks},
        )
        for kind, title in KINDS.items()
    ]
    relative = []
    for kind in STUDENTS:
        cells = {}
        for task in tasks:
            values = []
            for name in TASKS[task].metrics:
                own, teacher = (
                    statistics.fmean(metrics[name] for metrics in experiment.scores[who][task][experiment.best_rate(who, task)])
                    for who in (kind, "teacher")
                )
                values.append(f"{100 * own / teacher:.1f}" if teacher else "–")
            cells[task] = "/".join(values)
        relative.append(Row(KINDS[kind], "measured", cells))
    stages = [row for row in absolute if row.model in (KINDS["two_stage"], KINDS["one_stage"])]
    return "\n".join(
        to_markdown(table)
        for table in (
            Table(
                "absolute",
                "Results on the dev sets (F1 / EM or accuracy, mean ± standard deviation over the seeds, best learning rate)",
                tasks,
                absolute,
            ),
            Table("relative", "Relative performance in percent of the teacher", tasks, relative),
            Table("stages", "Two-stage against one-stage distillation", tuple(task for task in tasks if task in STAGE_TASKS), stages),
        )
    )


def rates_table(experiment: Experiment) -> str:
    """First metric of every model, task and learning rate; the best of a model and task in bold."""
    rows = [["Model", "Task", *experiment.rates, "Highest − lowest"]]
    for kind, title in KINDS.items():
        for task in experiment.tasks:
            best = experiment.best_rate(kind, task)
            cells = [mean_std(experiment.first_metric(kind, task, rate)) for rate in experiment.rates]
            cells = [f"**{cell}**" if rate == best else cell for rate, cell in zip(experiment.rates, cells)]
            rows.append([title, TITLES[task], *cells, mean_std(experiment.gain(kind, [task]))])
    return markdown_table(rows)


def budgets_table(experiment: Experiment) -> str:
    """Shapes, encoder sizes and the tokens that each model was trained on."""
    from modeling import read_config
    from prepare import encoder_parameters

    rows = [["Model", "Layers/hidden/FFN/heads", "Encoder parameters", "Runs", "Tokens a run", "Before that"]]
    for kind, title in TRAINED.items():
        shape = SHAPES.get(kind, "narrow_deep")
        encoder = encoder_parameters(read_config(experiment.work / "data" / "configs" / f"{shape}.json", "a model's config"))
        before = {
            "teacher": f"its first layers: {experiment.budget('shallow'):,}",
            "two_stage": f"an assistant of its own: {experiment.budget('ta'):,}",
        }.get(kind, "–")
        cells = [
            experiment.settings[f"{shape}_shape"],
            f"{encoder:,}",
            str(len(experiment.runs(kind))),
            f"{experiment.budget(kind):,}",
            before,
        ]
        rows.append([title, *cells])
    return markdown_table(rows)


def masked_lm_table(experiment: Experiment) -> str:
    rows = [["Model", "Masked-LM loss, nats", "Accuracy, %"]]
    for kind, title in TRAINED.items():
        losses = [result["loss"] for result in experiment.evaluations[kind]]
        accuracies = [100 * result["accuracy"] for result in experiment.evaluations[kind]]
        single = [f"{losses[0]:.4f}", f"{accuracies[0]:.2f}"]
        rows.append([title, *(single if kind in SINGLE else [mean_std(losses, 4), mean_std(accuracies)])])
    tokens = experiment.evaluations["teacher"][0]["masked_tokens"]
    return f"{markdown_table(rows)}\n\nOn {tokens:,} masked tokens of the dev articles, whole words, the same masks for all."


# ---------------------------------------------------------------- stages


class StageTime(NamedTuple):
    """Wall time of a stage; of one that was interrupted that of its last part."""

    seconds: int
    interrupted: bool


def stage_times(history: list[list[str]]) -> dict[str, StageTime]:
    """By the stages' names, in order."""
    times: dict[str, StageTime] = {}
    begun: dict[str, list[int]] = {}
    for when, event, name in history:
        if not name.startswith("stage "):
            continue
        if event == "begin":
            begun.setdefault(name, []).append(int(when))
        else:
            times[name.removeprefix("stage ")] = StageTime(int(when) - begun[name][-1], len(begun[name]) > 1)
    return times


def speed_table(experiment: Experiment, curves: dict[str, Curve], history: list[list[str]]) -> str:
    """Tokens a second and GPU memory of every kind of job."""
    work, length = experiment.work, int(experiment.settings["length"])
    times = stage_times(history)
    tokens = sum(read_json(path, "a shard")["tokens"] for path in (work / "data" / "shards").glob("*/shard.json"))
    rows = [["Job", "Runs at once", "Tokens/s a run", "Sequences/s a run", "GPU memory a run"]]
    for stage in ("whole-word references", "shards"):
        known = times[stage].seconds and not times[stage].interrupted
        rows.append([stage, "1", f"{tokens / times[stage].seconds:,.0f}" if known else "–", "–", "–"])
    for kind, title in TRAINED.items():
        rates = [steps_a_second(curves[name]) * experiment.batch(kind) for name in experiment.runs(kind)]
        at_once = "1" if kind in SINGLE else f"up to {experiment.settings['train_jobs']}"
        rate = statistics.fmean(rates)
        rows.append([f"training, {title}", at_once, f"{rate * length:,.0f}", f"{rate:,.1f}", memory_cell(work, experiment.runs(kind))])
    for kind, title in KINDS.items():
        names = [f"finetune-{kind}-{seed}" for seed in experiment.seeds]
        rates = found_in_logs(work, names, r"train_samples_per_second'?: '?([\d.]+)")
        rate_cell = f"{statistics.median(rates):,.1f}" if rates else "–"
        rows.append(
            [f"fine-tuning, {title}", f"up to {experiment.settings['finetune_jobs']}", "–", rate_cell, memory_cell(work, names)],
        )
    stages = [["Stage", "Wall time, s"]]
    stages += [[name, f"{spent.seconds}{' after an interruption' if spent.interrupted else ''}"] for name, spent in times.items()]
    lost = " and what was interrupted" if any(spent.interrupted for spent in times.values()) else ""
    stages.append(["all stages", f"{sum(spent.seconds for spent in times.values())}{lost}"])
    return (
        f"{markdown_table(stages)}\n\n{markdown_table(rows)}\n\n"
        "Training: median over stretches of ten steps, mean over the runs; references and shards: the corpus's tokens by the stage's wall time, the "
        "start of Python included. Fine-tuning: the Trainer's own figure, median over tasks and learning rates. Runs at once share the GPU. "
        "Memory: the largest `torch.cuda.max_memory_allocated` of a run, without the CUDA context; – where there was no GPU."
    )


def memory_cell(work: Path, names: list[str]) -> str:
    found = found_in_logs(work, names, r"peak GPU memory: ([\d.]+) GiB")
    return f"{max(found):.2f} GiB" if found else "–"


def repeated_jobs(history: list[list[str]]) -> str:
    """A sentence on what failed or was begun more than once."""
    begun = Counter(name for _, event, name in history if event == "begin" and not name.startswith("stage "))
    lines = [f"- {name}: begun {count} times" for name, count in begun.items() if count > 1]
    lines += [f"- {name}: failed" for _, event, name in history if event == "failed"]
    return "\n".join(lines) if lines else "None failed, none was repeated."


# ---------------------------------------------------------------- figure


def smooth(values: list[float], width: int) -> list[float]:
    """Running mean over the last ``width`` values."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def training_figure(experiment: Experiment, curves: dict[str, Curve]):
    """The losses of all students over the tokens seen; returns a matplotlib Figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, kind in enumerate(STUDENTS):
        for name in experiment.runs(kind):
            curve = curves[name]
            width = max(1, len(curve.steps) // 50)
            millions = [step * experiment.budget(kind) / int(experiment.settings["student_steps"]) / 1e6 for step in curve.steps]
            label = KINDS[kind] if name == experiment.runs(kind)[0] else None
            for axes, values in ((left, curve.predictions), (right, curve.total)):
                axes.plot(millions, smooth(values, width), color=f"C{color}", label=label, linewidth=1, alpha=0.8)
    left.set(title="Loss on the predictions", ylabel="nats; soft targets where there is a teacher, else masked-LM")
    right.set(title="Total loss", ylabel="with the matched layers (log scale)", yscale="log")
    for axes in (left, right):
        axes.set_xlabel("million tokens")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.suptitle("All students, a line a seed; running means over a fiftieth of the steps")
    return figure


# ---------------------------------------------------------------- the page


def commands_block(work: Path) -> str:
    """Every job's command once, in order, with the paths of this machine by their names."""
    paths = read_pairs(work / "paths.txt", "the experiment's paths")
    names = {path: "../experiments/small_scale" if name == "here" else f"${name}" for name, path in paths.items() if name != "python"}
    commands = {}
    for job, command in read_tsv(work / "commands.tsv"):
        command = "python " + command.removeprefix(paths["python"]).strip()
        for path in sorted(names, key=len, reverse=True):
            command = command.replace(path, names[path])
        commands[job] = f"# {job}\n{command}"
    return "\n".join(commands.values())


def page(experiment: Experiment, curves: dict[str, Curve]) -> str:
    work, settings = experiment.work, experiment.settings
    history = read_tsv(work / "history.tsv")
    machine = read_json(work / "data" / "machine.json", "what the experiment ran on")
    jobs = [line for line in history if not line[1].startswith("commit ")]
    first, last = (time.strftime("%Y-%m-%d %H:%M", time.gmtime(int(when))) for when, _, _ in (jobs[0], jobs[-1]))
    commits = list(dict.fromkeys(event.removeprefix("commit ") for _, event, _ in history if event.startswith("commit ")))
    banner = (
        "> **This is the report of a dry run** (`SCALE=dry`): tiny models, a few steps, a few examples, on a CPU. It shows that every stage and\n"
        "> every table works, and **says nothing on the claims**, whatever its verdicts read, nor on speed. The experiment itself has not been\n"
        "> run: no GPU was at hand. The command below runs it and replaces this page.\n\n"
    )
    limits = "\n".join(f"- {task}: {train:,} training, {dev:,} dev examples at most" for task, (train, dev) in experiment.examples.items())
    return f"""# Three published claims, tried at a small scale

{banner if experiment.is_dry else ""}MiniRBT's authors claim that (a) distilling in two stages beats one, (b) a narrower and deeper student beats a wider and
shallower one with as large an encoder, and (c) small models want higher learning rates. This experiment tries the three with this
project's own scripts, small enough to be repeated in half an hour of one H200-class GPU:

```sh
SCALE=gpu corpus=zhwiki.txt.xz vocabulary=vocab.txt ltp=ltp_model tasks_dir=tasks sh experiments/small_scale/run.sh
```

Killed and started again, it goes on where it stopped. `SCALE=dry` runs every stage in minutes on two CPU cores. `corpus` is UTF-8 text
of about 100 MB, plain or `.xz`, a paragraph a line, a blank line at the end of each article; `vocabulary` is BERT's `vocab.txt`; `ltp`
the directory of an LTP model; `tasks_dir` holds the tasks' files as distributed, in `cmrc2018/`, `ocnli/`, `tnews/`, `chnsenticorp/`.

A teacher is trained from nothing (three layers first, then four times those) and teaches assistants and students of a few seeds, which
are then fine-tuned. All settings, with their reasons, stand in [settings.sh](settings.sh); they were written down before the first run,
and nothing is tuned on the results.

## Verdicts

{claims_table(experiment)}

The last column is the mean difference in the published tables over the same tasks, or over those it names (there (b) compares MiniRBT-H256 with RBT4-H312).

### The rule, written down before the first run

{RULE}

### What this cannot show

{LIMITS}

## Models and budgets

{budgets_table(experiment)}

Encoder: the layers alone, without embeddings and head.

## Masked-LM on the dev articles

{masked_lm_table(experiment)}

## Fine-tuning

{result_tables(experiment)}
Epochs: {settings["epochs"]}; batches of {settings["finetune_batch"]}; the first examples of each file:

{limits}

### Every learning rate

{rates_table(experiment)}

First metric, mean ± standard deviation over the seeds; the best in bold.

### The differences, task by task

{by_task_table(experiment)}

These decide nothing. Intervals as above, over {len(experiment.seeds)} seeds.

## Training curves

![Losses of all students over the tokens seen](training.png)

## Speed and memory

{speed_table(experiment, curves, history)}

## How it was run

Commit {", ".join(commits)}; {first} to {last} UTC; {machine["device"]}; Python {machine["Python"]}, torch {machine["torch"]}, transformers {machine["transformers"]}.

Runs that failed or were begun more than once:

{repeated_jobs(history)}

<details><summary>Settings</summary>

```
{chr(10).join(f"{name}={value}" for name, value in settings.items())}
```

</details>
<details><summary>Commands, in pretraining/</summary>

```sh
{commands_block(work)}
```

</details>
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--work", required=True, help="run.sh's work directory")
    parser.add_argument("--output_dir", required=True)
    args = parse_one_line_errors(parser)
    work = Path(args.work)
    if not work.is_dir():
        raise UserError(f"--work {work}: no such directory; run.sh makes it")
    experiment = Experiment(work)
    curves = {name: read_curve(work / "runs" / name) for kind in TRAINED for name in experiment.runs(kind)}
    text = page(experiment, curves)
    save_figure(training_figure(experiment, curves), Path(args.output_dir) / "training.png")
    with whole_file(Path(args.output_dir) / "README.md") as file:
        file.write(text)
    print(claims_table(experiment))
    print(f"report: {Path(args.output_dir) / 'README.md'}")


if __name__ == "__main__":
    run_script(main)
