"""Fine-tunes a BERT on a task, once for every epoch count and seed, and reports the dev set by the published protocol.

    python finetuning/run.py --model_name_or_path MODEL --task ocnli --data_dir data/ocnli --output_dir results/MODEL/ocnli
    python finetuning/run.py --model_name_or_path MODEL --task examples/own_task/reviews.json --output_dir results/MODEL/reviews

The protocol's figure is the best over the epoch counts (2, 3, 5, 10) of the mean over the seeds (at least three); with several learning
rates the best over these too. Run again, the same command does what is unfinished. In output_dir: ``results.json``,
``predictions.json`` ({dev id: answer, label or tags}) and ``model/`` of the best single run, and ``units/``, one file per finished run.
With several learning rates each has a directory ``learning_rate_RATE/`` of this kind there.

Defaults: batches of 32; the tokens per row and the learning rate of the task's JSON file. For the seven published tasks these are the
published best learning rates: those of RoBERTa for models of its size (12 layers, hidden size 768 and over), else those of the small
models.
"""

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetuning.examples import TaskData
from finetuning.jobs import Job, end_with_parent, run_side_by_side
from finetuning.search import Plan, make_plans, write_search
from finetuning.task_definitions import SHORTEST_ROW, TASKS, Task, resolved
from finetuning.tasks import find_data, find_file, load_split, size_line, task_labels
from finetuning.units import (
    BATCH_SIZE,
    EPOCHS,
    SEEDS,
    Unit,
    UnitKey,
    claimed_units,
    remove_unit_directory,
    unit_directory,
    write_results,
    write_unit,
)
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import ArgumentParser, UserError, non_negative_int, positive_float, positive_int, run_script


def row_length(text: str) -> int:
    """An argparse type: tokens per row."""
    value = positive_int(text)
    if value < SHORTEST_ROW:
        raise argparse.ArgumentTypeError(f"{text}: must be at least {SHORTEST_ROW}")
    return value


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model directory: config.json, vocab.txt, weights")
    add("--task", required=True, help=f"one of {', '.join(TASKS)}, or the JSON file of a task of your own")
    add("--data_dir", help="directory with the task's files as distributed; default for a task of your own: that of its JSON file")
    add("--output_dir", required=True, help="one for each model and task")
    add("--learning_rate", type=positive_float, nargs="+", help="several: a search over them; default: the task's for the model size")
    add("--num_train_epochs", type=positive_int, nargs="+", default=list(EPOCHS))
    add("--seeds", type=non_negative_int, nargs="+", default=list(SEEDS))
    add("--per_device_train_batch_size", type=positive_int, default=BATCH_SIZE)
    add("--max_train_samples", type=positive_int, help="use only the first so many training examples")
    add("--max_eval_samples", type=positive_int, help="use only the first so many dev examples")
    add("--allow_other_size", action="store_true", help="accept files with fewer examples than the official ones")
    add("--max_seq_length", type=row_length, help="tokens per row, special tokens included; default: the task's")
    add("--jobs", type=positive_int, default=1, help="runs side by side, each a process; one per GPU where there are several")
    add("--bf16", action="store_true", help="bfloat16 autocast; CUDA or CPU")
    add("--teacher", help="a model fine-tuned on the same task: distil from it while fine-tuning")
    add("--temperature", type=positive_float, default=4.0, help="of the soft labels, with --teacher")
    add("--matches", nargs="+", default=[], help="names from pretraining/matches.py: hidden states to match, with --teacher")
    args = parser.parse_args(argv)
    for name in ("num_train_epochs", "seeds", "learning_rate"):
        values = getattr(args, name) or []
        if len(set(values)) != len(values):
            raise UserError(f"--{name} {' '.join(map(str, values))}: give each value once")
    if args.matches and not args.teacher:
        raise UserError("--matches needs a teacher: give --teacher")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "run.py must not be started by torchrun; on several GPUs give --jobs, or start one command a GPU, each with its own "
            "CUDA_VISIBLE_DEVICES and seeds"
        )
    return args


def read_data(args: argparse.Namespace, task: Task, data_dir: Path) -> TaskData:
    """Reads the training and dev examples, prints their numbers, and keeps as many as the arguments allow.

    Raises:
        UserError: a file is missing, malformed or, without ``--allow_other_size``, shorter than the official one and than the arguments allow.
    """
    labels = task_labels(task, data_dir)
    paths = {split: find_file(task, data_dir, split) for split in ("train", "dev")}
    examples = {split: load_split(task, path, labels) for split, path in paths.items()}
    most = {"train": args.max_train_samples, "dev": args.max_eval_samples}
    for split, path in paths.items():
        found, official = len(examples[split]), task.sizes.get(split, 0)
        if found < min(official, most[split] or official) and not args.allow_other_size:
            raise UserError(
                f"{path}: has {found} examples, the official {split} set of {task.name} has {official}; if the file was not cut off, "
                "give --allow_other_size"
            )
        print(size_line(task, split, path, examples[split]))
    return TaskData(labels, paths, {split: examples[split][: most[split]] for split in paths})


def print_results(task: Task, results: dict[str, Any]) -> None:
    """Prints one line per epoch count, and after a search one per learning rate."""
    for name, what in (("by_epochs", "{num_train_epochs:3d} epochs"), ("by_learning_rate", "learning rate {learning_rate:g}")):
        rows = results.get(name, [])
        best = max(rows, key=lambda row: row[f"{task.metrics[0]}_mean"], default=None)
        for row in rows:
            cells = []
            for metric in task.metrics:
                std = row[f"{metric}_std"]
                cells.append(f"{metric} {row[f'{metric}_mean']:.2f}" + ("" if std is None else f" ± {std:.2f}"))
            mark = "  <- best" if row is best else ""
            print(f"{what.format(**row)}, {len(row['seeds'])} seeds: {', '.join(cells)}{mark}")


def visible_gpus() -> list[str]:
    """What each job may have as CUDA_VISIBLE_DEVICES; empty without a GPU."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(map(str, range(torch.cuda.device_count())))
    return [device for device in given.split(",") if device]


def start_jobs(argv: list[str], args: argparse.Namespace, plans: list[Plan], requested: list[UnitKey]) -> None:
    """Runs every unfinished unit of all plans in a process of its own.

    Raises:
        UserError: another command computes one of them; settings that differ from those of finished ones; a run failed.
    """
    jobs = []
    for directory, settings in plans:
        with claimed_units(directory, requested, settings) as todo:  # only looks; each job claims its own
            pass
        for key in todo:
            rate = settings["learning_rate"]
            of_job = {
                "learning_rate": repr(rate),
                "num_train_epochs": key.num_train_epochs,
                "seeds": key.seed,
                "output_dir": directory,
                "jobs": 1,
            }
            arguments = [*argv, *(str(part) for name, value in of_job.items() for part in (f"--{name}", value))]
            name = f"learning rate {rate:g}, {key.num_train_epochs} epochs, seed {key.seed}"
            jobs.append(Job(name, arguments, directory / "logs" / f"{key.name}.log", directory / "units" / f"{key.name}.json"))
    print(
        f"{len(plans) * len(requested)} runs requested, {len(plans) * len(requested) - len(jobs)} of them finished; {args.jobs} side by side"
    )
    run_side_by_side(jobs, args.jobs, visible_gpus())


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    end_with_parent()
    output_dir = Path(args.output_dir)
    task, data_dir = find_data(args.task, args.data_dir)
    if args.jobs == 1:  # one GPU: with more, the Trainer would multiply the batch size
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    data = read_data(args, task, data_dir)
    tokenizer = load_tokenizer(args.model_name_or_path)

    # They import torch, the models of transformers and textbrewer, 6 s; wrong arguments and data files are refused before.
    from finetuning.checks import check_model, check_teacher, default_learning_rate, run_settings

    config = check_model(args, tokenizer)
    matches = check_teacher(args, task, data.labels, tokenizer, config)
    settings = run_settings(args, task, data, tokenizer, config)
    task = resolved(task, data.labels, settings["max_seq_length"])
    plans = make_plans(output_dir, settings, args.learning_rate or [default_learning_rate(task, config)])
    requested = [UnitKey(epochs, seed) for epochs in args.num_train_epochs for seed in args.seeds]
    if args.jobs > 1:
        start_jobs(sys.argv[1:] if argv is None else argv, args, plans, requested)
        results = [write_results(directory, task, settings, requested) for directory, settings in plans]
    else:
        results = run_units(args, task, data, tokenizer, plans, requested, matches)
    print_results(task, write_search(output_dir, task) or results[0])


def run_units(
    args: argparse.Namespace, task: Task, data: TaskData, tokenizer: Any, plans: list[Plan], requested: list[UnitKey], matches: list[dict]
) -> list[dict[str, Any]]:
    """Runs the units of all plans one after the other; returns the results of each plan."""
    from finetuning.training import fine_tune, make_recipe

    all_results, recipe = [], None
    for directory, settings in plans:
        rate = settings["learning_rate"]
        with claimed_units(directory, requested, settings) as todo:
            print(f"{task.name}: {len(requested)} runs requested, {len(requested) - len(todo)} of them finished; learning rate {rate:g}")
            if todo:
                recipe = replace(recipe, learning_rate=rate) if recipe else make_recipe(args, task, data, tokenizer, settings, matches)
            for key in todo:
                print(f"{task.name}: {key.num_train_epochs} epochs, seed {key.seed}")
                assert recipe is not None
                result = fine_tune(recipe, unit_directory(directory, key), key.num_train_epochs, key.seed)
                unit = Unit(key.num_train_epochs, key.seed, result.metrics, result.predictions, settings)
                write_unit(directory, task, unit, result.model, tokenizer)
                write_results(directory, task, settings, requested)
            results = write_results(directory, task, settings, requested)
            for run in results["runs"]:
                remove_unit_directory(directory, UnitKey(run["num_train_epochs"], run["seed"]))
        all_results.append(results)
        if len(plans) > 1:
            write_search(Path(args.output_dir), task)
    return all_results


if __name__ == "__main__":
    run_script(main)
