"""Fine-tunes a BERT on one of the seven tasks, once for every epoch count and seed, and reports the dev set by the published protocol.

    python finetuning/run.py --model_name_or_path MODEL --task ocnli --data_dir data/ocnli --output_dir results/MODEL/ocnli

The protocol's figure is the best over the epoch counts (2, 3, 5, 10) of the mean over the seeds (at least three). Run again, the
same command does what is unfinished. In output_dir: ``results.json``, ``predictions.json`` ({dev id: answer or label}) and
``model/`` of the best single run, and ``units/``, one file a finished run.

Defaults: batches of 32; at most 512 tokens for cmrc2018 and drcd (windows move by 128), 256 for chnsenticorp, 128 for the others;
the published best learning rates: of RoBERTa for models of its size (12 layers, hidden size 768 and over), else that of the small models.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))
from filelock import FileLock
from tasks import TASKS, Task, find_file, load_split, size_line, task_labels
from utils import (
    UserError,
    file_facts,
    load_tokenizer,
    parse_one_line_errors,
    read_json,
    run_script,
    save_tokenizer,
    tokenizer_sha256,
    whole_directory,
    whole_file,
)

EPOCHS, SEEDS, BATCH_SIZE = [2, 3, 5, 10], [1, 2, 3], 32
PATHS = ("model_name_or_path", "teacher")  # settings that may differ between two calls, as long as what lies there is the same


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--model_name_or_path", required=True, help="model directory: config.json, vocab.txt, weights")
    add("--task", required=True, choices=TASKS)
    add("--data_dir", required=True, help="directory with the task's files as distributed")
    add("--output_dir", required=True, help="one for each model and task")
    add("--learning_rate", type=float, help="default: the published best of the task and model size")
    add("--num_train_epochs", type=int, nargs="+", default=EPOCHS)
    add("--seeds", type=int, nargs="+", default=SEEDS)
    add("--per_device_train_batch_size", type=int, default=BATCH_SIZE)
    add("--max_train_samples", type=int, help="take only the first so many training examples")
    add("--max_eval_samples", type=int, help="take only the first so many dev examples")
    add("--max_seq_length", type=int, help="tokens a row, special tokens included; default: the task's")
    add("--bf16", action="store_true", help="bfloat16 autocast; CUDA or CPU")
    add("--teacher", help="a model fine-tuned on the same task: distil from it while fine-tuning")
    add("--temperature", type=float, default=4.0, help="of the soft labels, with --teacher")
    add("--matches", nargs="+", default=[], help="names from pretraining/matches.py: hidden states to match, with --teacher")
    args = parse_one_line_errors(parser, argv)
    for name in ("learning_rate", "per_device_train_batch_size", "max_train_samples", "max_eval_samples", "temperature"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: must be a number greater than 0")
    for name, low in (("num_train_epochs", 1), ("seeds", 0)):
        values = getattr(args, name)
        if min(values) < low or len(set(values)) != len(values):
            raise UserError(f"--{name} {' '.join(map(str, values))}: each must be at least {low} and stand there once")
    if args.max_seq_length is not None and args.max_seq_length < 16:
        raise UserError(f"--max_seq_length {args.max_seq_length}: must be at least 16")
    if args.matches and not args.teacher:
        raise UserError("--matches needs a teacher: give --teacher")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError(
            "run.py uses one process; on several GPUs start one command a GPU, each with its own CUDA_VISIBLE_DEVICES and seeds"
        )
    return args


# ---------------------------------------------------------------- checks before the first step


def check_models(args: argparse.Namespace, task: Task, labels: tuple[str, ...]):
    """Refuses models that cannot be trained on this task, or not with one another.

    Returns:
        (tokenizer, config of the model to fine-tune, matches in TextBrewer's format)
    """
    tokenizer = load_tokenizer(args.model_name_or_path)
    from modeling import require_model_directory  # torch and transformers take seconds to import; not before the checks above

    config = require_model_directory(args.model_name_or_path, "the model to fine-tune")
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{args.model_name_or_path}: vocab.txt has {len(tokenizer)} tokens, the model {config.vocab_size}")
    if (args.max_seq_length or 0) > config.max_position_embeddings:
        raise UserError(f"--max_seq_length {args.max_seq_length}: the model takes at most {config.max_position_embeddings} tokens")
    if not args.teacher:
        return tokenizer, config, []

    teacher_config = require_model_directory(args.teacher, "the teacher")
    names = tuple(teacher_config.id2label[i] for i in range(teacher_config.num_labels))
    if not task.is_reading and len(names) != len(labels):
        raise UserError(f"{args.teacher}: has {len(names)} labels, {task.name} {len(labels)}; give a teacher fine-tuned on {task.name}")
    if not task.is_reading and names != labels and not names[0].startswith("LABEL_"):  # LABEL_0: trained elsewhere, without names
        raise UserError(f"{args.teacher}: its labels are {', '.join(names)}, those of {task.name} {', '.join(labels)}")
    if row_length(args, task, config) > teacher_config.max_position_embeddings:
        raise UserError(f"{args.teacher}: takes at most {teacher_config.max_position_embeddings} tokens; give that as --max_seq_length")
    if tokenizer_sha256(load_tokenizer(args.teacher)) != tokenizer_sha256(tokenizer):
        raise UserError(f"{args.teacher}: splits text into other tokens than the model to fine-tune; both must have the same vocabulary")
    from matches import get_matches

    return tokenizer, config, get_matches(args.matches, config, teacher_config)


def row_length(args: argparse.Namespace, task: Task, config) -> int:
    """Tokens a row: what was asked for, else the task's default as far as the model goes."""
    return args.max_seq_length or min(task.max_seq_length, config.max_position_embeddings)


def settings_of(args: argparse.Namespace, task: Task, labels: tuple[str, ...], paths: dict[str, Path], tokenizer, config) -> dict:
    """All that decides a run's outcome besides epochs and seed; models and data by their content."""
    from checkpoint import model_sha256

    roberta_sized = config.num_hidden_layers >= 12 and config.hidden_size >= 768
    return {
        "task": task.name,
        "model_name_or_path": args.model_name_or_path,
        "model_sha256": model_sha256(args.model_name_or_path),
        "tokenizer_sha256": tokenizer_sha256(tokenizer),
        "data_sha256": {split: file_facts(path).sha256 for split, path in paths.items()},
        "labels": list(labels),
        "learning_rate": args.learning_rate or (task.learning_rate_roberta if roberta_sized else task.learning_rate_small),
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "max_seq_length": row_length(args, task, config),
        "max_train_samples": args.max_train_samples,
        "max_eval_samples": args.max_eval_samples,
        "bf16": args.bf16,
        "teacher": args.teacher,
        "teacher_sha256": model_sha256(args.teacher),
        "temperature": args.temperature if args.teacher else None,
        "matches": args.matches,
    }


def check_settings(output_dir: Path, settings: dict) -> None:
    """Notes the settings in ``output_dir``, or compares with those noted: results of different settings do not mix."""
    path = output_dir / "settings.json"
    with one_at_a_time(output_dir):
        begun = [*output_dir.glob("units/*.json"), *output_dir.glob("unfinished/*/checkpoint-*")]
        if begun and path.is_file():
            noted = read_json(path, "the settings of the runs in this directory")
            for key, value in settings.items():
                if key not in PATHS and noted.get(key) != value:
                    raise UserError(
                        f"{output_dir}: holds runs with {key} {noted.get(key)}, this one has {value}; give another --output_dir"
                    )
        with whole_file(path) as file:
            file.write(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


def one_at_a_time(output_dir: Path) -> FileLock:
    """A lock on what commands that share an output directory, one a GPU, all write."""
    output_dir.mkdir(parents=True, exist_ok=True)
    return FileLock(output_dir / ".lock")


# ---------------------------------------------------------------- results


def finished_units(output_dir: Path) -> dict[tuple[int, int], dict]:
    """The finished runs by (epochs, seed), in that order."""
    units = []
    for path in (output_dir / "units").glob("*.json"):
        unit = read_json(path, "a finished run; remove it and run again")
        if not {"num_train_epochs", "seed", "metrics", "predictions"} <= unit.keys():
            raise UserError(f"{path}: is no finished run of this program; remove it and run again")
        units.append(unit)
    return {(unit["num_train_epochs"], unit["seed"]): unit for unit in sorted(units, key=lambda u: (u["num_train_epochs"], u["seed"]))}


def summarise(metrics: tuple[str, ...], units: list[dict]) -> tuple[list[dict], dict]:
    """The mean and standard deviation over the seeds for each epoch count, and the one of the highest mean.

    Returns:
        (one dict an epoch count: num_train_epochs, seeds, and NAME_mean, NAME_std of every metric in percent, the latter the sample
        standard deviation, null for a single seed; and the best of them by the first metric)
    """
    rows = []
    for epochs in sorted({unit["num_train_epochs"] for unit in units}):
        group = [unit for unit in units if unit["num_train_epochs"] == epochs]
        row = {"num_train_epochs": epochs, "seeds": [unit["seed"] for unit in group]}
        for name in metrics:
            values = [unit["metrics"][name] for unit in group]
            row[f"{name}_mean"] = statistics.fmean(values)
            row[f"{name}_std"] = statistics.stdev(values) if len(values) > 1 else None
        rows.append(row)
    return rows, max(rows, key=lambda row: row[f"{metrics[0]}_mean"])


def write_results(output_dir: Path, task: Task, settings: dict, asked: list[tuple[int, int]]) -> dict:
    """Writes ``results.json`` and ``predictions.json`` from all finished runs; returns the results."""
    with one_at_a_time(output_dir):
        units = finished_units(output_dir)
        by_epochs, best = summarise(task.metrics, list(units.values()))
        best_unit = best_of(task, units)
        results = {
            "task": task.name,
            "model": settings["model_name_or_path"],
            "split": "dev",
            "metrics": list(task.metrics),
            "best": best,
            "by_epochs": by_epochs,
            "runs": [{key: unit[key] for key in ("num_train_epochs", "seed", "metrics")} for unit in units.values()],
            "unfinished": [{"num_train_epochs": epochs, "seed": seed} for epochs, seed in asked if (epochs, seed) not in units],
            "predictions_and_model_of": {"num_train_epochs": best_unit[0], "seed": best_unit[1]},
            "settings": settings,
        }
        with whole_file(output_dir / "results.json") as file:
            file.write(json.dumps(results, ensure_ascii=False, indent=2) + "\n")
        with whole_file(output_dir / "predictions.json") as file:
            file.write(json.dumps(units[best_unit]["predictions"], ensure_ascii=False, indent=2) + "\n")
    return results


def best_of(task: Task, units: dict[tuple[int, int], dict]) -> tuple[int, int]:
    """(epochs, seed) of the best single run, by the task's first metric; of equals the first."""
    return min(units, key=lambda key: (-units[key]["metrics"][task.metrics[0]], key))


def print_results(task: Task, results: dict) -> None:
    for row in results["by_epochs"]:
        cells = []
        for name in task.metrics:
            std = row[f"{name}_std"]
            cells.append(f"{name} {row[f'{name}_mean']:.2f}" + ("" if std is None else f" ± {std:.2f}"))
        mark = "  <- best" if row == results["best"] else ""
        print(f"{row['num_train_epochs']:3d} epochs, {len(row['seeds'])} seeds: {', '.join(cells)}{mark}")


# ---------------------------------------------------------------- the runs


def make_recipe(args: argparse.Namespace, task: Task, labels: tuple[str, ...], examples: dict, tokenizer, settings: dict, matches: list):
    """Tokenises the data and loads the teacher, once for all runs."""
    import torch
    import training

    if args.bf16 and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError("--bf16: this GPU has no bfloat16 arithmetic; leave it out")
    length = settings["max_seq_length"]
    train, _ = training.make_features(task, examples["train"], tokenizer, length, training=True)
    dev, windows = training.make_features(task, examples["dev"], tokenizer, length, training=False)
    recipe = training.Recipe(
        task=task,
        labels=labels,
        train=train,
        dev=dev,
        dev_examples=examples["dev"],
        dev_windows=windows,
        model_dir=args.model_name_or_path,
        learning_rate=settings["learning_rate"],
        batch_size=args.per_device_train_batch_size,
        bf16=args.bf16,
        temperature=args.temperature,
        matches=tuple(matches),
    )
    if args.teacher:
        recipe.teacher = training.load_model(args.teacher, task, labels, "the teacher", with_head=True, attentions=recipe.attentions)
        scores = training.evaluate_model(recipe, recipe.teacher, Path(args.output_dir) / "unfinished")
        print("teacher:", ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    return recipe


def run_unit(recipe, output_dir: Path, tokenizer, epochs: int, seed: int) -> None:
    """One run. The model goes first, the unit's file last: killed in between, the run is done again from its newest checkpoint."""
    import torch
    import training
    from checkpoint import one_line_for_a_full_disk

    name = f"epochs{epochs}-seed{seed}"
    print(f"{recipe.task.name}: {epochs} epochs, seed {seed}")
    try:
        result = training.fine_tune(recipe, output_dir / "unfinished" / name, epochs, seed)
    except torch.OutOfMemoryError:
        raise UserError("out of GPU memory; give a smaller --per_device_train_batch_size or --max_seq_length, or --bf16") from None
    unit = {"num_train_epochs": epochs, "seed": seed, "metrics": result.metrics, "predictions": result.predictions}
    with one_at_a_time(output_dir):
        if best_of(recipe.task, {**finished_units(output_dir), (epochs, seed): unit}) == (epochs, seed):
            with whole_directory(output_dir / "model") as directory, one_line_for_a_full_disk(output_dir / "model"):
                result.model.save_pretrained(directory)
                save_tokenizer(tokenizer, directory)
        with whole_file(output_dir / "units" / f"{name}.json") as file:
            file.write(json.dumps(unit, ensure_ascii=False) + "\n")


def main() -> None:
    args = parse()
    task, output_dir = TASKS[args.task], Path(args.output_dir)
    # One GPU: with more, the Trainer would multiply the batch size.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]

    labels = task_labels(task, args.data_dir)
    paths = {split: find_file(task, args.data_dir, split) for split in ("train", "dev")}
    examples = {split: load_split(task, path, labels) for split, path in paths.items()}
    for split, path in paths.items():
        print(size_line(task, split, path, examples[split]))
    examples["train"] = examples["train"][: args.max_train_samples]
    examples["dev"] = examples["dev"][: args.max_eval_samples]

    tokenizer, config, matches = check_models(args, task, labels)
    settings = settings_of(args, task, labels, paths, tokenizer, config)
    check_settings(output_dir, settings)
    asked = [(epochs, seed) for epochs in args.num_train_epochs for seed in args.seeds]
    todo = [unit for unit in asked if unit not in finished_units(output_dir)]
    print(
        f"{task.name}: {len(asked)} runs asked for, {len(asked) - len(todo)} finished already; learning rate {settings['learning_rate']:g}"
    )

    recipe = make_recipe(args, task, labels, examples, tokenizer, settings, matches) if todo else None
    for epochs, seed in todo:
        run_unit(recipe, output_dir, tokenizer, epochs, seed)
        write_results(output_dir, task, settings, asked)
    for epochs, seed in asked:
        shutil.rmtree(output_dir / "unfinished" / f"epochs{epochs}-seed{seed}", ignore_errors=True)
    with suppress(OSError):  # another process may still work in there
        (output_dir / "unfinished").rmdir()
    print_results(task, write_results(output_dir, task, settings, asked))


if __name__ == "__main__":
    run_script(main)
