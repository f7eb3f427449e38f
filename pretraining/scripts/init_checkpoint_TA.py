"""First weights for a shallower student: some of a teacher's layers, its embeddings and its masked-LM head.

    python scripts/init_checkpoint_TA.py                    the teacher assistant: layers 0 2 4 7 9 11 of RoBERTa
    python scripts/init_checkpoint_TA.py --layers 0 1 2     the first weights of RBT3

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
from pretraining.utils import ArgumentParser, UserError, run_script

if TYPE_CHECKING:
    from transformers import BertConfig, BertForMaskedLM

MADE_FROM = "made_from.json"
SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "max_position_embeddings", "type_vocab_size")


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
    if args.student_config:
        check_student(args, config, read_config(args.student_config, "the student's config"))
    with exclusive(target.with_name(f".{target.name}.lock"), f"--dump_checkpoint {target}"):
        made_from = {"teacher": model_sha256(args.model_name_or_path), "tokenizer": tokenizer_sha256(tokenizer), "layers": args.layers}
        if (target / MADE_FROM).is_file():
            saved = read_json(target / MADE_FROM, "the note on what the weights were made from")
            if saved == {**made_from, "result": model_sha256(target)}:
                print(f"{target}: up to date")
                return
        teacher = load_masked_lm(args.model_name_or_path, "the teacher")
        student = keep_layers(teacher, args.layers)
        with atomic_directory(target) as partial, disk_full_as_user_error(target):
            student.save_pretrained(str(partial))
            save_tokenizer(tokenizer, partial)
            write_json(partial / MADE_FROM, {**made_from, "result": model_sha256(partial)})
    print(f"{args.dump_checkpoint}: layers {args.layers} of {args.model_name_or_path}, {student.num_parameters():,} parameters")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--model_name_or_path", default="./pretrained_model_path/RoBERTa", help="the teacher's directory")
    parser.add_argument("--dump_checkpoint", default="./saves/init_checkpoint", help="the directory to write")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 7, 9, 11], help="layers of the teacher to keep, from 0")
    parser.add_argument("--student_config", help="the config JSON that the weights are for; refused if its layers or sizes are others")
    return parser.parse_args(argv)


def check_student(args: argparse.Namespace, teacher: "BertConfig", student: "BertConfig") -> None:
    """Refuses layers and sizes that are not those of the student."""
    if len(args.layers) != student.num_hidden_layers:
        raise UserError(
            f"--layers {' '.join(map(str, args.layers))}: {args.student_config} has {student.num_hidden_layers} layers; "
            "name as many (distill.sh: ta_layers)"
        )
    for key in SIZES:
        if getattr(student, key) != getattr(teacher, key):
            raise UserError(
                f"{args.student_config}: {key} is {getattr(student, key)}, but the layers of {args.model_name_or_path} "
                f"have {getattr(teacher, key)}; give the student the same"
            )


def check_target(target: Path) -> None:
    """Refuses to replace a directory that this command did not write."""
    require_writable_place(target, "--dump_checkpoint")
    if target.exists() and any(target.iterdir()) and not (target / MADE_FROM).is_file():
        raise UserError(f"--dump_checkpoint {target}: was not made by this script (no {MADE_FROM} in it); name a new directory")


def keep_layers(teacher: "BertForMaskedLM", layers: list[int]) -> "BertForMaskedLM":
    """Returns a student whose layer i is the teacher's layer ``layers[i]``; all other weights are the teacher's."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    student = type(teacher)(config)
    weights = teacher.state_dict()

    def teacher_name(name: str) -> str:
        return re.sub(r"(?<=\.encoder\.layer\.)\d+", lambda match: str(layers[int(match[0])]), name)

    student.load_state_dict({name: weights[teacher_name(name)] for name in student.state_dict()})
    return student


if __name__ == "__main__":
    run_script(main)
