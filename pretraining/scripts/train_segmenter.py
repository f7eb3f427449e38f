"""Hand-segmented sentences -> an LTP legacy word segmenter, for run_chinese_ref.py when no LTP model is at hand.

    python scripts/train_segmenter.py --train ./dataset/segmented/segmented.txt --dev ./dataset/segmented/segmented_dev.txt \
        --output_dir ./pretrained_model_path/ltp

The files hold a sentence a line, its words divided by white space. The words that the trained model finds are the same every time; the
bytes of its file are not, LTP writes them in any order.
"""

import argparse
import json
import os
import sys
import tempfile
from itertools import accumulate
from pathlib import Path

from ltp_extension.perceptron import CWSModel, CWSTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import UserError, parse_one_line_errors, read_json, read_line_blocks, require_file, run_script, whole_file  # noqa: E402

EPOCHS = 10
CONFIG = {"nerual": False, "tasks": {"cws": "cws_model.bin"}}  # LTP's spelling


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains an LTP legacy word segmenter.", allow_abbrev=False)
    parser.add_argument("--train", required=True, help="sentences to learn from, one a line, words divided by white space")
    parser.add_argument("--dev", required=True, help="other sentences: the best of the epochs is chosen by them, and the F1 is theirs")
    parser.add_argument("--output_dir", required=True, help="the LTP directory to write")
    args = parse_one_line_errors(parser)

    output = Path(args.output_dir)
    if (output / "config.json").exists() and read_json(output / "config.json", "the config.json of an LTP model") != CONFIG:
        raise UserError(f"{output}: holds another LTP model; choose another --output_dir")
    train, dev = read_sentences(args.train), read_sentences(args.dev)
    model = train_model(train, dev)
    save_model(model, output)
    print(f"{output}: trained on {len(train):,} sentences; word F1 on the {len(dev):,} of {args.dev}: {word_f1(model, dev):.4f}")


def read_sentences(path: str) -> list[list[str]]:
    """Reads segmented sentences as lists of words; blank lines are left out."""
    require_file(path, "segmented sentences, one a line")
    sentences = [line.split() for lines in read_line_blocks(path) for line in lines if line.strip()]
    if not any(len(sentence) > 1 for sentence in sentences):
        raise UserError(f"{path}: no line with two words in it; write a sentence a line, its words divided by spaces")
    return sentences


def train_model(train: list[list[str]], dev: list[list[str]]) -> CWSModel:
    trainer = CWSTrainer()
    trainer.epoch = EPOCHS
    trainer.shuffle = False  # the order of the file: the same words from every run
    with tempfile.TemporaryDirectory() as folder:
        for name, sentences, load in (("train", train, trainer.load_train_data), ("dev", dev, trainer.load_eval_data)):
            path = os.path.join(folder, name)
            Path(path).write_text("".join(" ".join(sentence) + "\n" for sentence in sentences), encoding="utf-8", newline="\n")
            load(path)
        return trainer.train()  # without dev sentences it would stop after one epoch


def save_model(model: CWSModel, output: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        model.save(str(path))
        weights = path.read_bytes()
    with whole_file(output / CONFIG["tasks"]["cws"], "wb") as file:
        file.write(weights)
    with whole_file(output / "config.json") as file:
        file.write(json.dumps(CONFIG) + "\n")


def word_f1(model: CWSModel, sentences: list[list[str]]) -> float:
    """The F1 of the words' spans; a word is right if both its ends are."""
    right = found = wanted = 0
    for sentence, predicted in zip(sentences, model.batch_predict(["".join(sentence) for sentence in sentences])):
        gold_spans, spans = spans_of(sentence), spans_of(predicted)
        right, found, wanted = right + len(gold_spans & spans), found + len(spans), wanted + len(gold_spans)
    return 2 * right / (found + wanted)


def spans_of(words: list[str]) -> set[tuple[int, int]]:
    ends = list(accumulate(map(len, words)))
    return set(zip([0, *ends], ends))


if __name__ == "__main__":
    run_script(main)
