"""Runs finetuning/run.py for every task and learning rate of one model and seed, in one process: Python and CUDA start once.

    python experiments/small_scale/finetune.py --model_name_or_path MODEL --tasks_dir data --tasks ocnli:4000:3000 tnews:4000:3000 \
        --learning_rates 2e-5 1e-4 --num_train_epochs 3 --seed 1 --output_dir results/MODEL

Writes what run.py writes to OUTPUT_DIR/TASK/LEARNING_RATE/, without the fine-tuned model. Run again, it does what is unfinished.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "pretraining"), str(ROOT / "finetuning")]
import run  # noqa: E402
from utils import parse_one_line_errors, run_script  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", required=True)
    parser.add_argument("--tasks_dir", required=True, help="directory with a directory a task")
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME:TRAIN:DEV", help="tasks, and how many examples to take")
    parser.add_argument("--learning_rates", nargs="+", required=True)
    parser.add_argument("--num_train_epochs", required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--per_device_train_batch_size", required=True)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--output_dir", required=True)
    args = parse_one_line_errors(parser)

    for setting in args.tasks:
        task, train_samples, eval_samples = setting.split(":")
        for learning_rate in args.learning_rates:
            output_dir = Path(args.output_dir) / task / learning_rate
            options = {
                "model_name_or_path": args.model_name_or_path,
                "task": task,
                "data_dir": Path(args.tasks_dir) / task,
                "learning_rate": learning_rate,
                "num_train_epochs": args.num_train_epochs,
                "seeds": args.seed,
                "per_device_train_batch_size": args.per_device_train_batch_size,
                "max_train_samples": train_samples,
                "max_eval_samples": eval_samples,
                "output_dir": output_dir,
            }
            sys.argv = ["run.py", *(f"--{name}={value}" for name, value in options.items()), *(["--bf16"] if args.bf16 else [])]
            print("python", shlex.join(sys.argv), flush=True)
            run.main()
            shutil.rmtree(output_dir / "model", ignore_errors=True)  # the report needs the scores alone

    import torch  # loaded by run.py already

    if torch.cuda.is_available():
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")


if __name__ == "__main__":
    run_script(main)
