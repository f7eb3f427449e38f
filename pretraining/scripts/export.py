"""Exports a model for deployment, checks it against PyTorch on real sentences, and times it.

    python scripts/export.py ./saves/minirbt_h256/gs100000 --format onnx --int8

A checkpoint of train.py becomes an encoder: it gives ``last_hidden_state``, and ``pooler_output`` if its pooler was trained. A model that
was fine-tuned for classification or labelling gives ``logits``, one for reading comprehension ``start_logits`` and ``end_logits``. All take
``input_ids``, ``attention_mask`` and ``token_type_ids``, int64 of shape (batch, length), for any batch and length. The tokenizer is
copied next to the model.

With --task the files must prove themselves on the dev set of the task that the model was fine-tuned on:

    python scripts/export.py ../results/minirbt_h256/chnsenticorp/model --int8 --task chnsenticorp --data_dir ../data/chnsenticorp

prints score, size, the time of one sentence and sentences a second of each file beside PyTorch. Nothing is written if a file loses more
than --max_loss points.
Needs: pip install -r requirements-export.txt
"""

import argparse
import importlib.util
import os
import shutil
from pathlib import Path

from pretraining.corpus.files import atomic_directory, disk_full_as_user_error
from pretraining.corpus.tokenizer import load_tokenizer, save_tokenizer
from pretraining.utils import ArgumentParser, UserError, positive_float, run_script

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
TASK_FILE = "task.json"  # of a fine-tuned model; finetuning/predict.py reads it
REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements-export.txt"


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    model_dir = Path(args.model_dir)
    output_dir = Path(args.output_dir or f"{model_dir.resolve()}-{args.format}")
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir}: exists already; remove it or choose another directory")
    check_packages()
    tokenizer = load_tokenizer(model_dir)

    # torch and transformers take four seconds to import; --help and the refusals above do not wait for them.
    from finetuning.deployment import load_dev_set, prove, report
    from pretraining.exporting.onnx_check import check_difference, difference, how_measured, result_table, time_runtimes
    from pretraining.exporting.onnx_export import INPUTS, add_metadata, export_onnx, load_for_export, quantise

    module = load_for_export(model_dir)
    dev = load_dev_set(args.task, args.data_dir, model_dir, tokenizer) if args.task else None
    names = {"float32": "model.onnx"}
    if args.int8:
        names["int8"] = "model_int8.onnx"

    with atomic_directory(output_dir) as partial:
        print(f"exporting {model_dir} …", flush=True)
        export_onnx(module, partial / names["float32"])
        if args.int8:
            quantise(partial / names["float32"], partial / names["int8"])
        for name in names.values():
            add_metadata(partial / name, module)
        module.model.set_attn_implementation("sdpa")  # the exported model is compared with PyTorch as it usually runs
        differences = {kind: difference(module, partial / name, tokenizer) for kind, name in names.items()}
        check_difference(differences["float32"], model_dir)
        if dev:
            scores = prove(dev, module.model, {kind: partial / name for kind, name in names.items()}, args.max_loss)
        with disk_full_as_user_error(output_dir):
            module.model.config.save_pretrained(str(partial))
            save_tokenizer(tokenizer, partial)
            if (model_dir / TASK_FILE).is_file():
                shutil.copy(model_dir / TASK_FILE, partial)

    files = {kind: output_dir / name for kind, name in names.items()}
    seconds = time_runtimes(module, files, tokenizer)
    print(f"{type(module.model).__name__}: {', '.join(INPUTS)} -> {', '.join(module.outputs)}\n")
    print(result_table(model_dir, files, differences, seconds))
    print(f"\n{how_measured(module)}")
    if dev:
        print(f"\n{report(dev, scores, module.model, files, model_dir)}")
    print(f"\nwritten: {output_dir}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("model_dir", help="a checkpoint of train.py or a model fine-tuned by finetuning/run.py")
    parser.add_argument("--format", choices=["onnx"], default="onnx")
    parser.add_argument("--int8", action="store_true", help="also write model_int8.onnx, with 8-bit weights (dynamic quantisation)")
    parser.add_argument("--output_dir", help="a new directory; default: MODEL_DIR-onnx")
    parser.add_argument(
        "--task", help="score the files on the dev set of this task, its name or your JSON file: the model was fine-tuned on it"
    )
    parser.add_argument("--data_dir", help="the directory with the files of --task; default for a JSON file: its directory")
    parser.add_argument(
        "--max_loss", type=positive_float, default=1.0, help="points of the score that a file may lose; with more, none is written"
    )
    args = parser.parse_args(argv)
    if args.data_dir and not args.task:
        raise UserError("--data_dir: is for --task; name the task too")
    return args


def check_packages() -> None:
    """Names the optional packages that are not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export.py needs {', '.join(missing)}; run: pip install -r {os.path.relpath(REQUIREMENTS)}")


if __name__ == "__main__":
    run_script(main)
