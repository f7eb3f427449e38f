"""The tables of the report: the verdicts, and what is behind them."""

import statistics

from experiments.small_scale.configs import encoder_parameters
from experiments.small_scale.intervals import Difference, mean_std, paired_difference, unpaired_difference
from experiments.small_scale.jobs import STUDENTS
from experiments.small_scale.measured import KINDS, SINGLE, TRAINED, Experiment
from finetuning.published import PUBLISHED, PUBLISHED_STAGES
from finetuning.task_definitions import TASKS
from pretraining.distillation.modeling import read_config
from pretraining.reporting.tables import markdown_table

TWO_STAGE = "(a) two-stage − one-stage"
NARROW_DEEP = "(b) narrow-deep − wide-shallow"
LEARNING_RATE = "(c) gain by a high learning rate, students − teacher"
STAGE_TASKS = tuple(PUBLISHED_STAGES["MiniRBT-H256 (two-stage)"])


# ---------------------------------------------------------------- the claims


def claims(experiment: Experiment) -> dict[str, Difference]:
    """The three comparisons that decide, in percentage points."""
    one_stage = experiment.overall("one_stage")
    students, teacher = experiment.students_gain(experiment.tasks), experiment.gain("teacher", experiment.tasks)
    return {
        TWO_STAGE: paired_difference(experiment.overall("two_stage"), one_stage),
        NARROW_DEEP: paired_difference(one_stage, experiment.overall("wide_shallow")),
        LEARNING_RATE: unpaired_difference(students, teacher),
    }


def published_differences(tasks: list[str]) -> dict[str, str]:
    """What the published tables say about the claims: the mean difference over those of these tasks that they have."""
    two_stage, one_stage = PUBLISHED_STAGES["MiniRBT-H256 (two-stage)"], PUBLISHED_STAGES["MiniRBT-H256 (one-stage)"]
    return {
        TWO_STAGE: _published_difference(two_stage, one_stage, tasks),
        NARROW_DEEP: _published_difference(PUBLISHED["MiniRBT-H256"], PUBLISHED["RBT4-H312"], tasks),
        LEARNING_RATE: "–",
    }


def _published_difference(first: dict[str, dict[str, str]], second: dict[str, dict[str, str]], tasks: list[str]) -> str:
    differences = {}
    for task in tasks:
        if task in first:
            metric = TASKS[task].metrics[0]
            differences[task] = float(first[task][metric]) - float(second[task][metric])
    if not differences:
        return "–"
    note = f" ({', '.join(TASKS[task].title for task in differences)})" if len(differences) < len(tasks) else ""
    return f"{statistics.fmean(differences.values()):+.2f}{note}"


def claims_table(experiment: Experiment) -> str:
    published = published_differences(experiment.tasks)
    rows = [["Claim", "Difference [95 % interval], points", "Verdict", "As published"]]
    for claim, difference in claims(experiment).items():
        verdict = f"none, a dry run (by the rule: {difference.verdict})" if experiment.is_dry else f"**{difference.verdict}**"
        rows.append([claim, str(difference), verdict, published[claim]])
    return markdown_table(rows)


def by_task_table(experiment: Experiment) -> str:
    """The differences of the claims task by task, that of a teacher against none, and all for the accuracy of masked-LM."""
    rows = [["Difference [95 % interval], points", *(TASKS[task].title for task in experiment.tasks), "Masked-LM accuracy"]]
    for title, first, second in (
        (TWO_STAGE, "two_stage", "one_stage"),
        (NARROW_DEEP, "one_stage", "wide_shallow"),
        ("one-stage − no teacher", "one_stage", "no_teacher"),
    ):
        differences = [
            paired_difference(experiment.at_best_rate(first, task), experiment.at_best_rate(second, task)) for task in experiment.tasks
        ]
        differences.append(paired_difference(experiment.masked_lm_accuracy(first), experiment.masked_lm_accuracy(second)))
        rows.append([title, *map(str, differences)])
    gains = [unpaired_difference(experiment.students_gain([task]), experiment.gain("teacher", [task])) for task in experiment.tasks]
    rows.append([LEARNING_RATE, *map(str, gains), "–"])
    return markdown_table(rows)


# ---------------------------------------------------------------- fine-tuning


def results_table(experiment: Experiment, kinds: tuple[str, ...], tasks: list[str]) -> str:
    """Mean ± standard deviation of all metrics at the best learning rate; the form of the published tables."""
    rows = [["Model", "Source", *(TASKS[task].title for task in tasks)]]
    for kind in kinds:
        cells = []
        for task in tasks:
            scores = experiment.scores[kind][task][experiment.best_rate(kind, task)]
            cells.append(" / ".join(mean_std([metrics[name] for metrics in scores]) for name in TASKS[task].metrics))
        rows.append([KINDS[kind], f"measured, {len(experiment.seeds)} seeds", *cells])
    return markdown_table(rows, left=2)


def relative_table(experiment: Experiment) -> str:
    """The means in percent of the teacher's; the form of the published table."""
    rows = [["Model", "Source", *(TASKS[task].title for task in experiment.tasks)]]
    for kind in STUDENTS:
        cells = []
        for task in experiment.tasks:
            students, teachers = _means(experiment, kind, task), _means(experiment, "teacher", task)
            cells.append("/".join(f"{100 * own / teacher:.1f}" if teacher else "–" for own, teacher in zip(students, teachers)))
        rows.append([KINDS[kind], "measured", *cells])
    return markdown_table(rows, left=2)


def _means(experiment: Experiment, kind: str, task: str) -> list[float]:
    """The mean over the seeds of each metric, at the best learning rate."""
    scores = experiment.scores[kind][task][experiment.best_rate(kind, task)]
    return [statistics.fmean(metrics[name] for metrics in scores) for name in TASKS[task].metrics]


def result_tables(experiment: Experiment) -> str:
    """The three published tables with this experiment's figures."""
    stage_tasks = [task for task in experiment.tasks if task in STAGE_TASKS]
    return f"""### Results on the dev sets (F1 / EM or accuracy, mean ± standard deviation over the seeds, best learning rate)

{results_table(experiment, tuple(KINDS), experiment.tasks)}

### Relative performance in percent of the teacher

{relative_table(experiment)}

### Two-stage against one-stage distillation

{results_table(experiment, ("two_stage", "one_stage"), stage_tasks)}"""


def rates_table(experiment: Experiment) -> str:
    """The first metric of every model, task and learning rate; the best one of a model and task in bold."""
    rows = [["Model", "Task", *experiment.rates, "Highest − lowest"]]
    for kind, title in KINDS.items():
        for task in experiment.tasks:
            best = experiment.best_rate(kind, task)
            cells = []
            for rate in experiment.rates:
                cell = mean_std(experiment.first_metric(kind, task, rate))
                cells.append(f"**{cell}**" if rate == best else cell)
            rows.append([title, TASKS[task].title, *cells, mean_std(experiment.gain(kind, [task]))])
    return markdown_table(rows, left=2)


# ---------------------------------------------------------------- pretraining


def budgets_table(experiment: Experiment) -> str:
    """Shapes, encoder sizes and the tokens that each model was trained on."""
    before = {
        "teacher": f"its first layers: {experiment.budget('shallow'):,}",
        "two_stage": f"an assistant of its own: {experiment.budget('ta'):,}",
    }
    rows = [["Model", "Layers/hidden/FFN/heads", "Encoder parameters", "Runs", "Tokens a run", "Before that"]]
    for kind, title in TRAINED.items():
        encoder = encoder_parameters(read_config(experiment.config_path(kind), "a model's config"))
        runs = str(len(experiment.runs(kind)))
        rows.append([title, experiment.shape(kind), f"{encoder:,}", runs, f"{experiment.budget(kind):,}", before.get(kind, "–")])
    return markdown_table(rows)


def masked_lm_table(experiment: Experiment) -> str:
    """Loss and accuracy on the dev articles, with their number of tokens."""
    rows = [["Model", "Masked-LM loss, nats", "Accuracy, %"]]
    for kind, title in TRAINED.items():
        losses = [figures["loss"] for figures in experiment.evaluations[kind]]
        accuracies = experiment.masked_lm_accuracy(kind)
        if kind in SINGLE:
            rows.append([title, f"{losses[0]:.4f}", f"{accuracies[0]:.2f}"])
        else:
            rows.append([title, mean_std(losses, 4), mean_std(accuracies)])
    tokens = experiment.evaluations["teacher"][0]["masked_tokens"]
    return f"{markdown_table(rows)}\n\nOn {tokens:,} masked tokens of the dev articles, whole words, the same masks for all."
