"""Fine-tunes a BERT on a task, once for every epoch count and seed, and reports the dev set by the published protocol.

    python finetuning/run.py --model_name_or_path MODEL --task ocnli --data_dir data/ocnli --output_dir results/MODEL/ocnli
    python finetuning/run.py --model_name_or_path MODEL --task examples/own_task/reviews.json --output_dir results/MODEL/reviews

The protocol's figure is the best over the epoch counts (2, 3, 5, 10) of the mean over the seeds (at least three). Run again, the
same command does what is unfinished. In output_dir: ``results.json``, ``predictions.json`` ({dev id: answer, label or tags}) and
``model/`` of the best single run, and ``units/``, one file per finished run.

Defaults: batches of 32; the tokens per row and the learning rate of the task's JSON file. For the seven published tasks these are the
published best learning rates: those of RoBERTa for models of its size (12 layers, hidden size 768 and over), else those of the small
models.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from finetuning.examples import TaskData
from finetuning.task_definitions import TASKS, Task, resolved
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


def at_least_16(text: str) -> int:
    """An argparse type: tokens per row, enough for a question and a window."""
    value = positive_int(text)
    if value < 16:
        raise argparse.ArgumentTypeError(f"{text}: must be at least 16")
    return value


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model directory: config.json, vocab.txt, weights")
    add("--task", required=True, help=f"one of {', '.join(TASKS)}, or the JSON file of a task of your own")
    add("--data_dir", help="directory with the task's files as distributed; default for a task of your own: that of its JSON file")
    add("--output_dir", required=True, help="one for each model and task")
    add("--learning_rate", type=positive_float, help="default: the published best of the task and model size")
    add("--num_train_epochs", type=positive_int, nargs="+", default=list(EPOCHS))
    add("--seeds", type=non_negative_int, nargs="+", default=list(SEEDS))
    add("--per_device_train_batch_size", type=positive_int, default=BATCH_SIZE)
    add("--max_train_samples", type=positive_int, help="use only the first so many training examples")
    add("--max_eval_samples", type=positive_int, help="use only the first so many dev examples")
    add("--allow_other_size", action="store_true", help="accept files with fewer examples than the official ones")
    add("--max_seq_length", type=at_least_16, help="tokens per row, special tokens included; default: the task's")
    add("--bf16", action="store_true", help="bfloat16 autocast; CUDA or CPU")
    add("--teacher", help="a model fine-tuned on the same task: distil from it while fine-tuning")
    add("--temperature", type=positive_float, default=4.0, help="of the soft labels, with --teacher")
    add("--matches", nargs="+", default=[], help="names from pretraining/matches.py: hidden states to match, with --teacher")
    args = parser.parse_args(argv)
    for name in ("num_train_epochs", "seeds"):
        values = getattr(args, name)
        if len(set(values)) != len(values):
            raise UserError(f"--{name} {' '.join(map(str, values))}: give each value once")
    if args.matches and not args.teacher:
        raise UserError("--matches needs a teacher: give --teacher")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "run.py uses one process; on several GPUs start one command a GPU, each with its own CUDA_VISIBLE_DEVICES and seeds"
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
    """Prints one line per epoch count."""
    for row in results["by_epochs"]:
        cells = []
        for name in task.metrics:
            std = row[f"{name}_std"]
            cells.append(f"{name} {row[f'{name}_mean']:.2f}" + ("" if std is None else f" ± {std:.2f}"))
        mark = "  <- best" if row == results["best"] else ""
        print(f"{row['num_train_epochs']:3d} epochs, {len(row['seeds'])} seeds: {', '.join(cells)}{mark}")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output_dir = Path(args.output_dir)
    task, data_dir = find_data(args.task, args.data_dir)
    # One GPU: with more, the Trainer would multiply the batch size.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    data = read_data(args, task, data_dir)
    tokenizer = load_tokenizer(args.model_name_or_path)

    # They import torch, the models of transformers and textbrewer, 6 s; wrong arguments and data files are refused before.
    from finetuning.checks import check_model, check_teacher, run_settings
    from finetuning.training import fine_tune, make_recipe

    config = check_model(args, tokenizer)
    matches = check_teacher(args, task, data.labels, tokenizer, config)
    settings = run_settings(args, task, data, tokenizer, config)
    task = resolved(task, data.labels, settings["max_seq_length"])
    requested = [UnitKey(epochs, seed) for epochs in args.num_train_epochs for seed in args.seeds]
    with claimed_units(output_dir, requested, settings) as todo:
        print(
            f"{task.name}: {len(requested)} runs requested, {len(requested) - len(todo)} of them finished; "
            f"learning rate {settings['learning_rate']:g}"
        )
        if todo:
            recipe = make_recipe(args, task, data, tokenizer, settings, matches)
        for key in todo:
            print(f"{task.name}: {key.num_train_epochs} epochs, seed {key.seed}")
            result = fine_tune(recipe, unit_directory(output_dir, key), key.num_train_epochs, key.seed)
            unit = Unit(key.num_train_epochs, key.seed, result.metrics, result.predictions, settings)
            write_unit(output_dir, task, unit, result.model, tokenizer)
            write_results(output_dir, task, settings, requested)
        results = write_results(output_dir, task, settings, requested)
        for run in results["runs"]:
            remove_unit_directory(output_dir, UnitKey(run["num_train_epochs"], run["seed"]))
    print_results(task, results)


if __name__ == "__main__":
    run_script(main)
