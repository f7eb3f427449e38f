"""The tables of the report on wall time, speed and GPU memory."""

import statistics
from pathlib import Path

from experiments.small_scale.history import Event, StageTime, stage_times
from experiments.small_scale.measured import KINDS, SINGLE, TRAINED, Curve, Experiment, found_in_logs, steps_per_second
from pretraining.corpus.files import read_json
from pretraining.reporting.tables import markdown_table


def speed_tables(experiment: Experiment, curves: dict[str, Curve], history: list[Event]) -> str:
    """Two tables, of the stages and of the jobs, and how they were measured.

    Args:
        curves: of every training run, by name.
    """
    times = stage_times(history)
    rows = [["Job", "Runs at once", "Tokens/s a run", "Sequences/s a run", "GPU memory a run"]]
    rows += data_rows(experiment, times) + training_rows(experiment, curves) + finetuning_rows(experiment)
    return f"""{stages_table(times)}

{markdown_table(rows)}

Training: the median over stretches of ten steps, the mean over the runs. Runs at once share the GPU.
References and shards: the tokens of the corpus by the wall time of the stage, with the start of Python.
Fine-tuning: the Trainer's own figure, the median over tasks and learning rates.
Memory: the largest `torch.cuda.max_memory_allocated` of a run, without the CUDA context; – without a GPU."""


def stages_table(times: dict[str, StageTime]) -> str:
    rows = [["Stage", "Wall time, s"]]
    rows += [[name, f"{time.seconds}{' after an interruption' if time.interrupted else ''}"] for name, time in times.items()]
    lost = " and what was interrupted" if any(time.interrupted for time in times.values()) else ""
    return markdown_table([*rows, ["all stages", f"{sum(time.seconds for time in times.values())}{lost}"]])


def data_rows(experiment: Experiment, times: dict[str, StageTime]) -> list[list[str]]:
    shards = (experiment.work / "data" / "shards").glob("*/shard.json")
    tokens = sum(read_json(path, "a shard")["tokens"] for path in shards)
    rows = []
    for stage in ("whole-word references", "shards"):
        time = times[stage]
        rate = f"{tokens / time.seconds:,.0f}" if time.seconds and not time.interrupted else "–"
        rows.append([stage, "1", rate, "–", "–"])
    return rows


def training_rows(experiment: Experiment, curves: dict[str, Curve]) -> list[list[str]]:
    rows = []
    for kind, title in TRAINED.items():
        runs = experiment.runs(kind)
        sequences = statistics.fmean(steps_per_second(curves[run].total) * experiment.batch(kind) for run in runs)
        at_once = "1" if kind in SINGLE else f"up to {experiment.settings.train_jobs}"
        tokens = f"{sequences * experiment.settings.length:,.0f}"
        rows.append([f"training, {title}", at_once, tokens, f"{sequences:,.1f}", memory_cell(experiment.work, runs)])
    return rows


def finetuning_rows(experiment: Experiment) -> list[list[str]]:
    rows = []
    for kind, title in KINDS.items():
        jobs = [f"finetune-{kind}-{seed}" for seed in experiment.seeds]
        rates = found_in_logs(experiment.work, jobs, r"train_samples_per_second'?: '?([\d.]+)")
        rate = f"{statistics.median(rates):,.1f}" if rates else "–"
        memory = memory_cell(experiment.work, jobs)
        rows.append([f"fine-tuning, {title}", f"up to {experiment.settings.finetune_jobs}", "–", rate, memory])
    return rows


def memory_cell(work: Path, jobs: list[str]) -> str:
    found = found_in_logs(work, jobs, r"peak GPU memory: ([\d.]+) GiB")
    return f"{max(found):.2f} GiB" if found else "–"
