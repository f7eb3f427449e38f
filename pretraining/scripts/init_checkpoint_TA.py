"""First weights for a smaller student: some of a teacher's layers, its embeddings and its masked-LM head.

    python scripts/init_checkpoint_TA.py                    the teacher assistant: layers 0 2 4 7 9 11 of RoBERTa
    python scripts/init_checkpoint_TA.py --layers 0 1 2     the first weights of RBT3
    python scripts/init_checkpoint_TA.py --hidden_size 256  a warm start of MiniRBT-H256: every third element of each row and column

A narrower student gets evenly spaced elements of each weight, the "uniform selection" of Xu et al. 2023 (arXiv:2311.18823, section 3).
Writes a model directory for train.py's --student_pretrained_weights.
"""

import argparse
import copy
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.corpus.files import atomic_directory, disk_full_as_user_error, read_json, require_writable_place, write_json
from pretraining.corpus.locks import exclusive
from pretraining.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script

if TYPE_CHECKING:
    import torch
    from transformers import BertConfig, BertForMaskedLM

MADE_FROM = "made_from.json"
NARROWED = ("hidden_size", "intermediate_size", "num_attention_heads")  # what --hidden_size makes smaller
SIZES = (*NARROWED, "vocab_size", "max_position_embeddings", "type_vocab_size")


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    target = Path(args.dump_checkpoint)
    check_target(target)
    tokenizer = load_tokenizer(args.model_name_or_path)

    # torch and transformers take four seconds to import; --help and the refusals above do not wait for them.
    from pretraining.distillation.checkpoint import model_sha256
    from pretraining.distillation.modeling import load_masked_lm, read_config, require_model_directory

    config = require_model_directory(args.model_name_or_path, "the teacher")
    for layer in args.layers:
        if not 0 <= layer < config.num_hidden_layers:
            raise UserError(f"--layers {layer}: {args.model_name_or_path} has the layers 0 to {config.num_hidden_layers - 1}")
    student_config = narrower_config(config, args.hidden_size) if args.hidden_size else config
    if args.student_config:
        student_config = read_config(args.student_config, "the student's config")
        check_student(args, config, student_config)
    with exclusive(target.with_name(f".{target.name}.lock"), f"--dump_checkpoint {target}"):
        made_from = {"teacher": model_sha256(args.model_name_or_path), "tokenizer": tokenizer_sha256(tokenizer), "layers": args.layers}
        if args.hidden_size:
            made_from["sizes"] = {key: getattr(student_config, key) for key in NARROWED}
        if (target / MADE_FROM).is_file():
            saved = read_json(target / MADE_FROM, "the note on what the weights were made from")
            if saved == {**made_from, "result": model_sha256(target)}:
                print(f"{target}: up to date")
                return
        teacher = load_masked_lm(args.model_name_or_path, "the teacher")
        student = keep_layers(teacher, args.layers, student_config)
        with atomic_directory(target) as partial, disk_full_as_user_error(target):
            student.save_pretrained(str(partial))
            save_tokenizer(tokenizer, partial)
            write_json(partial / MADE_FROM, {**made_from, "result": model_sha256(partial)})
    sizes = "".join(f"{key} {value}, " for key, value in made_from.get("sizes", {}).items())
    print(f"{args.dump_checkpoint}: layers {args.layers} of {args.model_name_or_path}, {sizes}{student.num_parameters():,} parameters")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_name_or_path", default="./pretrained_model_path/RoBERTa", help="the teacher's directory")
    parser.add_argument("--dump_checkpoint", default="./saves/init_checkpoint", help="the directory to write")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 7, 9, 11], help="layers of the teacher to keep, from 0")
    parser.add_argument("--student_config", help="the config JSON that the weights are for; refused if its layers or sizes are others")
    parser.add_argument(
        "--hidden_size",
        type=positive_int,
        help="make the weights narrower; the other sizes are those of --student_config, or without it in the teacher's proportions",
    )
    return parser.parse_args(argv)


def check_student(args: argparse.Namespace, teacher: "BertConfig", student: "BertConfig") -> None:
    """Refuses layers and sizes that are not those of the student."""
    if len(args.layers) != student.num_hidden_layers:
        raise UserError(
            f"--layers {' '.join(map(str, args.layers))}: {args.student_config} has {student.num_hidden_layers} layers; "
            "name as many (distill.sh: ta_layers)"
        )
    if args.hidden_size and student.hidden_size != args.hidden_size:
        raise UserError(f"--hidden_size {args.hidden_size}: {args.student_config} has {student.hidden_size}; give the same")
    for key in SIZES:
        own, others = getattr(student, key), getattr(teacher, key)
        if own != others and not (args.hidden_size and key in NARROWED):
            advice = "give the student the same" + (f", or narrow them with --hidden_size {student.hidden_size}" if key in NARROWED else "")
            raise UserError(f"{args.student_config}: {key} is {own}, but the layers of {args.model_name_or_path} have {others}; {advice}")
        if own > others and key != "num_attention_heads":
            raise UserError(f"{args.student_config}: {key} is {own}, more than the {others} of {args.model_name_or_path}")


def narrower_config(teacher: "BertConfig", hidden_size: int) -> "BertConfig":
    """The teacher's config with another hidden size, a feed-forward size in proportion, and as many of its heads as divide the hidden size."""
    if hidden_size > teacher.hidden_size:
        raise UserError(f"--hidden_size {hidden_size}: the teacher has {teacher.hidden_size}; give at most that")
    config = copy.deepcopy(teacher)
    config.hidden_size = hidden_size
    config.intermediate_size = teacher.intermediate_size * hidden_size // teacher.hidden_size
    config.num_attention_heads = max(heads for heads in range(1, teacher.num_attention_heads + 1) if hidden_size % heads == 0)
    return config


def check_target(target: Path) -> None:
    """Refuses to replace a directory that this command did not write."""
    require_writable_place(target, "--dump_checkpoint")
    if target.exists() and any(target.iterdir()) and not (target / MADE_FROM).is_file():
        raise UserError(f"--dump_checkpoint {target}: was not made by this script (no {MADE_FROM} in it); name a new directory")


def keep_layers(teacher: "BertForMaskedLM", layers: list[int], config: "BertConfig") -> "BertForMaskedLM":
    """Returns a student whose layer i is the teacher's layer ``layers[i]``; all other weights are the teacher's.

    Args:
        config: of the student; where its sizes are smaller it gets evenly spaced elements.
    """
    config = copy.deepcopy(config)
    config.num_hidden_layers = len(layers)
    student = type(teacher)(config)
    weights = teacher.state_dict()

    def teacher_name(name: str) -> str:
        return re.sub(r"(?<=\.encoder\.layer\.)\d+", lambda match: str(layers[int(match[0])]), name)

    student.load_state_dict({name: evenly_spaced(weights[teacher_name(name)], own.shape) for name, own in student.state_dict().items()})
    return student


def evenly_spaced(weight: "torch.Tensor", shape: "torch.Size") -> "torch.Tensor":
    """Of each dimension of size n the elements ``i * n // m``, i from 0, where ``shape`` has the size m."""
    for dimension, (size, wanted) in enumerate(zip(weight.shape, shape)):
        if wanted != size:
            weight = weight[(slice(None),) * dimension + ([index * size // wanted for index in range(wanted)],)]
    return weight


if __name__ == "__main__":
    run_script(main)
