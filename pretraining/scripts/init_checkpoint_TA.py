"""First weights for a shallower student: some of a teacher's layers, its embeddings and its masked-LM head.

    python scripts/init_checkpoint_TA.py                    the teacher assistant: layers 0 2 4 7 9 11 of RoBERTa
    python scripts/init_checkpoint_TA.py --layers 0 1 2     RBT3's start

The result is a model directory for train.py's --student_pretrained_weights.
"""

import argparse
import copy
import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import (
    UserError,
    load_tokenizer,
    parse_one_line_errors,
    read_json,
    require_writable_place,
    run_script,
    save_tokenizer,
    tokenizer_sha256,
    whole_directory,
)

MADE_FROM = "made_from.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model_name_or_path", default="./pretrained_model_path/RoBERTa", help="the teacher's directory")
    parser.add_argument("--dump_checkpoint", default="./saves/init_checkpoint", help="the directory to write")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 4, 7, 9, 11], help="which of the teacher's layers, counted from 0")
    args = parse_one_line_errors(parser)

    target = Path(args.dump_checkpoint)
    require_writable_place(target, "--dump_checkpoint")
    if target.exists() and any(target.iterdir()) and not (target / MADE_FROM).is_file():
        raise UserError(f"--dump_checkpoint {target}: was not made by this script (no {MADE_FROM} in it); name a new directory")
    tokenizer = load_tokenizer(args.model_name_or_path)
    from checkpoint import model_sha256
    from modeling import load_masked_lm, require_model_directory

    config = require_model_directory(args.model_name_or_path, "the teacher")
    for layer in args.layers:
        if not 0 <= layer < config.num_hidden_layers:
            raise UserError(f"--layers {layer}: {args.model_name_or_path} has the layers 0 to {config.num_hidden_layers - 1}")
    made_from = {"teacher": model_sha256(args.model_name_or_path), "tokenizer": tokenizer_sha256(tokenizer), "layers": args.layers}
    noted = read_json(target / MADE_FROM, "the note of what made it") if target.exists() and any(target.iterdir()) else {}
    if noted == {**made_from, "result": model_sha256(target)}:
        print(f"{target}: up to date")
        return
    teacher = load_masked_lm(args.model_name_or_path, "the teacher")
    student = keep_layers(teacher, args.layers)
    with whole_directory(target) as partial:
        student.save_pretrained(str(partial))
        save_tokenizer(tokenizer, partial)
        noted = {**made_from, "result": model_sha256(partial)}
        (partial / MADE_FROM).write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    print(f"{args.dump_checkpoint}: layers {args.layers} of {args.model_name_or_path}, {student.num_parameters():,} parameters")


def keep_layers(teacher, layers: list[int]):
    """A BertForMaskedLM whose layer i is the teacher's layer ``layers[i]``; all else is the teacher's."""
    config = copy.deepcopy(teacher.config)
    config.num_hidden_layers = len(layers)
    student = type(teacher)(config)
    weights = teacher.state_dict()
    source = {name: re.sub(r"(?<=\.encoder\.layer\.)\d+", lambda match: str(layers[int(match[0])]), name) for name in student.state_dict()}
    student.load_state_dict({name: weights[teacher_name] for name, teacher_name in source.items()})
    return student


if __name__ == "__main__":
    run_script(main)
