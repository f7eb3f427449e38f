"""Runs finetuning/run.py for every task and learning rate of one model and seed, in one process: Python and CUDA start once.

    python experiments/small_scale/finetune.py --model_name_or_path MODEL --tasks_dir data --tasks ocnli:4000:3000 tnews:4000:3000 \\
        --learning_rates 2e-5 1e-4 --num_train_epochs 3 --seed 1 --per_device_train_batch_size 32 --output_dir results/MODEL

It writes what run.py writes to OUTPUT_DIR/TASK/LEARNING_RATE/, without the fine-tuned model. Run again, it does what is unfinished.
"""

import argparse
import shlex
import shutil
from pathlib import Path

from experiments.small_scale.settings import TaskSample
from finetuning import run
from pretraining.utils import ArgumentParser, run_script


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Values that are passed on to run.py stay text; run.py checks them."""
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--tasks_dir", required=True, type=Path, help="has a directory for each task")
    parser.add_argument("--tasks", nargs="+", required=True, type=TaskSample.parse, metavar="NAME:TRAIN:DEV", help="tasks and examples")
    parser.add_argument("--learning_rates", nargs="+", required=True)
    parser.add_argument("--num_train_epochs", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--per_device_train_batch_size", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output_dir", required=True, type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for sample in args.tasks:
        for learning_rate in args.learning_rates:
            output_dir = args.output_dir / sample.name / learning_rate
            arguments = run_arguments(args, sample, learning_rate, output_dir)
            print("python finetuning/run.py", shlex.join(arguments), flush=True)
            run.main(arguments)
            shutil.rmtree(output_dir / "model", ignore_errors=True)  # the report needs the scores only
    print_peak_memory()


def run_arguments(args: argparse.Namespace, sample: TaskSample, learning_rate: str, output_dir: Path) -> list[str]:
    """The arguments of finetuning/run.py for one task and learning rate."""
    options = {
        "model_name_or_path": args.model_name_or_path,
        "task": sample.name,
        "data_dir": args.tasks_dir / sample.name,
        "learning_rate": learning_rate,
        "num_train_epochs": args.num_train_epochs,
        "seeds": args.seed,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "max_train_samples": sample.train,
        "max_eval_samples": sample.dev,
        "output_dir": output_dir,
    }
    return [*(f"--{name}={value}" for name, value in options.items()), *(["--bf16"] if args.bf16 else [])]


def print_peak_memory() -> None:
    """Prints the largest GPU memory of this process, in the words that the report searches for."""
    import torch  # here, for --help and refusals to stay fast; run.py has loaded it by now

    if torch.cuda.is_available():
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    run_script(main)
