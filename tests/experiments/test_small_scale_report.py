"""The report of the small-scale experiment: intervals at values worked out by hand, and its tables on made-up scores."""

import dataclasses
import json

import pytest

from experiments.small_scale import history, intervals, tables
from experiments.small_scale.measured import TRAINED, Experiment, read_curve, steps_per_second
from experiments.small_scale.settings import TaskSample, read_settings
from pretraining.reporting.scalars import Scalars
from pretraining.utils import UserError

# ---------------------------------------------------------------- intervals


def test_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t of two degrees of freedom 4.303."""
    difference = intervals.paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert difference == pytest.approx((2.0, 4.303 / 3**0.5))
    assert str(difference) == "+2.00 [-0.48, +4.48]"
    assert difference.verdict == "too small to tell"


@pytest.mark.parametrize(
    "differences, verdict",
    [
        ([1.9, 2.0, 2.1], "supported"),  # 2 ± 0.25
        ([-1.9, -2.0, -2.1], "not supported"),
        ([-0.1, 0.0, 0.1], "too small to tell"),
        ([0.0, 0.0, 0.0], "too small to tell"),
        ([1.0, 1.0], "supported"),
        ([0.1, 2.1], "too small to tell"),  # two seeds: 1.1 ± 12.7
    ],
)
def test_verdicts(differences, verdict):
    assert intervals.paired_difference(differences, [0.0] * len(differences)).verdict == verdict


def test_unpaired_interval_by_hand():
    """Variances 1 and 4 of three values each: error sqrt(1/3 + 4/3), degrees of freedom (25/9) / (17/18) = 2.94, rounded down to 2."""
    assert intervals.unpaired_difference([1.0, 2.0, 3.0], [4.0, 6.0, 8.0]) == pytest.approx((-4.0, 4.303 * (5 / 3) ** 0.5))
    assert intervals.unpaired_difference([2.0, 2.0], [1.0, 1.0]) == (1.0, 0.0)


def test_quantiles_of_student_t():
    assert [intervals.t_975(degrees) for degrees in (1, 2, 2.94, 4, 30, 500)] == [12.706, 4.303, 4.303, 2.776, 2.042, 2.042]


def test_mean_and_sample_standard_deviation():
    assert intervals.mean_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


# ---------------------------------------------------------------- speed and history


def test_steps_per_second_leave_interruptions_out():
    """Ten steps take 5 seconds; between steps 30 and 40 the run was away for an hour."""
    seconds = [step * 0.5 + (3600 if step > 35 else 0) for step in range(1, 61)]
    assert steps_per_second(Scalars(list(range(1, 61)), [], seconds)) == pytest.approx(2.0)


def test_a_run_without_losses_is_one_line(tmp_path):
    with pytest.raises(UserError, match="its TensorBoard events have no losses of train.py"):
        read_curve(tmp_path)


def test_history_gives_stage_times_repetitions_and_failures(tmp_path):
    lines = "0 begin stage data,0 begin a,5 done a,7 done stage data,9 begin stage b,9 begin x,11 failed x,20 begin stage b,20 begin x,26 done stage b"
    (tmp_path / "history.tsv").write_text("".join("\t".join(line.split(" ", 2)) + "\n" for line in lines.split(",")))
    events = history.read_history(tmp_path)
    assert history.stage_times(events) == {"data": (7, False), "b": (6, True)}
    assert history.repeated_jobs(events) == "- x: began 2 times\n- x: failed"
    assert history.repeated_jobs(events[:4]) == "No job failed, and none was repeated."
    assert history.first_and_last(events) == (0, 26)


# ---------------------------------------------------------------- tables

SCORES = {  # F1 of cmrc2018 and accuracy of ocnli, each for the rates 2e-5 and 1e-4 and the seeds 1 and 2
    "teacher": ([[50, 52], [54, 56]], [[70, 70], [69, 69]]),
    "two_stage": ([[30, 30], [40, 42]], [[60, 62], [50, 50]]),
    "one_stage": ([[30, 30], [38, 40]], [[60, 60], [50, 50]]),
    "wide_shallow": ([[30, 30], [36, 37]], [[60, 61], [50, 50]]),
    "no_teacher": ([[10, 10], [20, 20]], [[40, 40], [40, 40]]),
}


@pytest.fixture
def experiment(tmp_path):
    """A work directory with the scores above and nothing else."""
    tasks = (TaskSample("ocnli", 100, 10), TaskSample("cmrc2018", 100, 10))
    settings = dataclasses.replace(read_settings("gpu"), seeds=(1, 2), tasks=tasks, learning_rates=("2e-5", "1e-4"))
    (tmp_path / "settings.txt").write_text("".join(f"{line}\n" for line in settings.lines()))
    for kind in TRAINED:
        for name in [kind] if kind in ("shallow", "teacher") else [f"{kind}-1", f"{kind}-2"]:
            (tmp_path / "runs" / name).mkdir(parents=True)
            figures = {"loss": 2.0, "accuracy": 0.5 + 0.01 * name.endswith("2"), "masked_tokens": 1000}
            (tmp_path / "runs" / name / "eval.json").write_text(json.dumps({"student": figures}))
    for kind, of_tasks in SCORES.items():
        for task, rates in zip(("cmrc2018", "ocnli"), of_tasks):
            for rate, values in zip(("2e-5", "1e-4"), rates):
                for seed, value in enumerate(values, start=1):
                    directory = tmp_path / "finetuning" / f"{kind}-{seed}" / task / rate
                    directory.mkdir(parents=True)
                    metrics = {"f1": value, "em": value / 2} if task == "cmrc2018" else {"accuracy": value}
                    (directory / "results.json").write_text(json.dumps({"runs": [{"metrics": metrics}]}))
    return Experiment(tmp_path)


def test_claims_take_the_best_learning_rate_of_each_model_and_task(experiment):
    """By hand: two-stage (40 + 60) / 2 and (42 + 62) / 2; one-stage 49 and 50; wide-shallow 48 and 49; so differences 1, 2 and 1, 1.

    Gains of a high rate, mean of both tasks: teacher (4 - 1) / 2 for both seeds; two-stage 0, 0, one-stage -1, 0, wide-shallow -2, -2,
    no teacher 5, 5: students 0.5 and 0.75.
    """
    assert experiment.tasks == ["cmrc2018", "ocnli"]
    assert experiment.best_rate("two_stage", "cmrc2018") == "1e-4" and experiment.best_rate("two_stage", "ocnli") == "2e-5"
    assert [experiment.overall(kind) for kind in ("two_stage", "one_stage", "wide_shallow")] == [[50, 52], [49, 50], [48, 49]]
    assert experiment.gain("teacher", experiment.tasks) == [1.5, 1.5]
    assert experiment.students_gain(experiment.tasks) == [0.5, 0.75]
    two_stage, narrow_deep, rates = tables.claims(experiment).values()
    assert two_stage == pytest.approx((1.5, 12.706 * 0.5**0.5 / 2**0.5))
    assert narrow_deep == pytest.approx((1.0, 0.0)) and narrow_deep.verdict == "supported"
    assert rates == pytest.approx((-0.875, 12.706 * 0.125))  # one variance is 0: one degree of freedom


def test_verdicts_of_the_experiment_and_of_a_dry_run(experiment):
    assert "| (b) narrow-deep − wide-shallow | +1.00 [+1.00, +1.00] | **supported** |" in tables.claims_table(experiment)
    experiment.is_dry = True
    assert "| none, a dry run (by the rule: supported) |" in tables.claims_table(experiment)
    assert "**" not in tables.claims_table(experiment)


def test_tables_of_the_published_form(experiment):
    results = tables.result_tables(experiment)
    assert "| Model | Source | CMRC 2018 | OCNLI |" in results
    assert "| Narrow-deep, two-stage | measured, 2 seeds | 41.00 ± 1.41 / 20.50 ± 0.71 | 61.00 ± 1.41 |" in results
    assert "| Narrow-deep, two-stage | measured | 74.5/74.5 | 87.1 |" in results
    assert "| Teacher | CMRC 2018 | 51.00 ± 1.41 | **55.00 ± 1.41** | 4.00 ± 0.00 |" in tables.rates_table(experiment)
    assert "| Narrow-deep, one-stage | 2.0000 ± 0.0000 | 50.50 ± 0.71 |" in tables.masked_lm_table(experiment)
    assert [experiment.budget(kind) for kind in ("shallow", "teacher", "ta", "two_stage")] == [
        196_608_000,
        308_019_200,
        49_152_000,
        49_152_000,
    ]


def test_published_differences_are_those_of_the_shared_tasks():
    """Two-stage: (0.40 + 0.79 + 0.18) / 3; narrow-deep: (0.57 + 0.23 + 0.30 - 0.34) / 4."""
    assert list(tables.published_differences(["cmrc2018", "ocnli", "tnews", "chnsenticorp"]).values()) == [
        "+0.46 (CMRC 2018, OCNLI, TNEWS)",
        "+0.19",
        "–",
    ]
