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
import os
import shutil
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pretraining"))
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

EPOCHS, SEEDS = [2, 3, 5, 10], [1, 2, 3]
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
    add("--per_device_train_batch_size", type=int, default=32)
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
        if value is not None and not value > 0:
            raise UserError(f"--{name} {value}: must be greater than 0")
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


def check_teacher(directory: str, config, task: Task, labels: tuple[str, ...], tokenizer) -> None:
    """Refuses a teacher of another task or vocabulary."""
    if not task.is_reading and config.num_labels != len(labels):
        raise UserError(f"{directory}: has {config.num_labels} labels, {task.name} {len(labels)}; give a teacher fine-tuned on {task.name}")
    named = [config.id2label[i] for i in range(config.num_labels)]
    if not task.is_reading and not named[0].startswith("LABEL_") and named != list(labels):
        raise UserError(f"{directory}: its labels are {', '.join(named)}, those of {task.name} {', '.join(labels)}")
    if tokenizer_sha256(load_tokenizer(directory)) != tokenizer_sha256(tokenizer):
        raise UserError(f"{directory}: splits text into other tokens than the model to fine-tune; both must have the same vocabulary")


def check_settings(output_dir: Path, settings: dict) -> None:
    """Notes the settings in ``output_dir``, or compares with those noted: results of different settings do not mix."""
    path = output_dir / "settings.json"
    if path.is_file():
        noted = read_json(path, "the settings of the runs in this directory")
        for key, value in settings.items():
            if key not in PATHS and noted.get(key) != value:
                raise UserError(
                    f"{output_dir}: holds runs with {key} {noted.get(key)}, this one has {value}; give another --output_dir or remove it"
                )
    with whole_file(path) as file:
        file.write(json.dumps(settings, ensure_ascii=False, indent=2) + "\n")


# ---------------------------------------------------------------- results


def finished_units(output_dir: Path) -> dict[tuple[int, int], dict]:
    """The finished runs by (epochs, seed), in that order."""
    units = [read_json(path, "a finished run") for path in (output_dir / "units").glob("*.json")]
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
    tokenizer = load_tokenizer(args.model_name_or_path)

    from checkpoint import weights_sha256  # torch and transformers take seconds to import; not before the checks above
    from modeling import require_model_directory

    config = require_model_directory(args.model_name_or_path, "the model to fine-tune")
    max_seq_length = args.max_seq_length or min(task.max_seq_length, config.max_position_embeddings)
    if max_seq_length > config.max_position_embeddings:
        raise UserError(f"--max_seq_length {max_seq_length}: the model takes at most {config.max_position_embeddings} tokens")
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"{args.model_name_or_path}: vocab.txt has {len(tokenizer)} tokens, the model {config.vocab_size}")
    roberta_sized = config.num_hidden_layers >= 12 and config.hidden_size >= 768
    matches = []
    if args.teacher:
        teacher_config = require_model_directory(args.teacher, "the teacher")
        check_teacher(args.teacher, teacher_config, task, labels, tokenizer)
        if max_seq_length > teacher_config.max_position_embeddings:
            raise UserError(f"--max_seq_length {max_seq_length}: the teacher takes at most {teacher_config.max_position_embeddings} tokens")
        from matches import get_matches

        matches = get_matches(args.matches, config, teacher_config)
    settings = {
        "task": task.name,
        "model_name_or_path": args.model_name_or_path,
        "model_sha256": weights_sha256(args.model_name_or_path),
        "data_sha256": {split: file_facts(path).sha256 for split, path in paths.items()},
        "learning_rate": args.learning_rate or (task.learning_rate_roberta if roberta_sized else task.learning_rate_small),
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "max_seq_length": max_seq_length,
        "max_train_samples": args.max_train_samples,
        "max_eval_samples": args.max_eval_samples,
        "bf16": args.bf16,
        "teacher": args.teacher,
        "teacher_sha256": weights_sha256(args.teacher),
        "temperature": args.temperature if args.teacher else None,
        "matches": args.matches,
    }
    check_settings(output_dir, settings)

    asked = [(epochs, seed) for epochs in args.num_train_epochs for seed in args.seeds]
    todo = [unit for unit in asked if unit not in finished_units(output_dir)]
    print(
        f"{task.name}: {len(asked)} runs asked for, {len(asked) - len(todo)} finished already; learning rate {settings['learning_rate']:g}"
    )
    if todo:
        import training

        train, _ = training.make_features(task, examples["train"], tokenizer, max_seq_length, training=True)
        dev, windows = training.make_features(task, examples["dev"], tokenizer, max_seq_length, training=False)
        recipe = training.Recipe(
            task,
            labels,
            tokenizer,
            train,
            dev,
            examples["dev"],
            windows,
            args.model_name_or_path,
            settings["learning_rate"],
            args.per_device_train_batch_size,
            args.bf16,
        )
        if args.teacher:
            attentions = any(match["feature"] == "attention" for match in matches)
            recipe.teacher = training.load_model(args.teacher, task, labels, "the teacher", with_head=True, attentions=attentions)
            recipe.temperature, recipe.matches = args.temperature, tuple(matches)
            scores = training.evaluate_model(recipe, recipe.teacher, output_dir / "unfinished")
            print("teacher:", ", ".join(f"{name} {value:.2f}" for name, value in scores.items()))
    for epochs, seed in todo:
        name = f"epochs{epochs}-seed{seed}"
        print(f"{task.name}: {epochs} epochs, seed {seed}")
        result = training.fine_tune(recipe, output_dir / "unfinished" / name, epochs, seed)
        unit = {"num_train_epochs": epochs, "seed": seed, "metrics": result.metrics, "predictions": result.predictions}
        if best_of(task, {**finished_units(output_dir), (epochs, seed): unit}) == (epochs, seed):
            with whole_directory(output_dir / "model") as directory:
                result.model.save_pretrained(directory)
                save_tokenizer(tokenizer, directory)
        with whole_file(output_dir / "units" / f"{name}.json") as file:
            file.write(json.dumps(unit, ensure_ascii=False) + "\n")
        shutil.rmtree(output_dir / "unfinished" / name, ignore_errors=True)
        write_results(output_dir, task, settings, asked)
    print_results(task, write_results(output_dir, task, settings, asked))


if __name__ == "__main__":
    run_script(main)
