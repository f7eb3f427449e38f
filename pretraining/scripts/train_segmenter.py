"""Hand-segmented sentences -> an LTP legacy word segmenter, for run_chinese_ref.py when there is no LTP model.

    python scripts/train_segmenter.py --train ./dataset/segmented/segmented.txt --dev ./dataset/segmented/segmented_dev.txt \\
        --output_dir ./pretrained_model_path/ltp

Each line of the files is a sentence; white space separates its words. Training again gives a model that finds the same words, but its
file has other bytes, because LTP writes the weights in random order.
"""

import argparse
import json
import re
import tempfile
from itertools import accumulate
from pathlib import Path

from ltp_extension.perceptron import CWSModel, CWSTrainer

from pretraining.corpus.files import atomic_write, read_json, read_lines, require_file
from pretraining.utils import ArgumentParser, UserError, run_script

EPOCHS = 10
LONGEST_MEAN_WORD = 4.0  # Chinese characters per word; hand-segmented text has fewer than 2
WEIGHTS = "cws_model.bin"
CONFIG = {"nerual": False, "tasks": {"cws": WEIGHTS}}  # LTP's spelling


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output = Path(args.output_dir)
    if (output / "config.json").exists() and read_json(output / "config.json", "the config.json of an LTP model") != CONFIG:
        raise UserError(f"{output}: holds another LTP model; choose another --output_dir")
    train, dev = read_sentences(args.train), read_sentences(args.dev)
    model = train_model(train, dev)
    save_model(model, output)
    print(f"{output}: trained on {len(train):,} sentences; word F1 on the {len(dev):,} of {args.dev}: {word_f1(model, dev):.4f}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--train", required=True, help="sentences to learn from, one per line, white space between the words")
    parser.add_argument("--dev", required=True, help="other sentences; they decide which epoch is best, and the F1 is measured on them")
    parser.add_argument("--output_dir", required=True, help="the LTP directory to write")
    return parser.parse_args(argv)


def read_sentences(path: str) -> list[list[str]]:
    """Reads segmented sentences as lists of words; skips blank lines."""
    require_file(path, "segmented sentences, one per line")
    sentences = [line.split() for line in read_lines(path) if line.strip()]
    if not any(len(sentence) > 1 for sentence in sentences):
        raise UserError(f"{path}: no line with two words in it; write one sentence per line with spaces between its words")
    chinese = [len(run) for sentence in sentences for word in sentence for run in re.findall("[\u4e00-\u9fff]+", word)]
    if chinese and sum(chinese) / len(chinese) > LONGEST_MEAN_WORD:
        raise UserError(
            f"{path}: {sum(chinese) / len(chinese):.1f} Chinese characters per word; are its words separated? Write spaces between all words"
        )
    return sentences


def train_model(train: list[list[str]], dev: list[list[str]]) -> CWSModel:
    """Trains the perceptron; returns the model of the best epoch on ``dev``."""
    trainer = CWSTrainer()
    trainer.epoch = EPOCHS
    trainer.shuffle = False  # keeps the order of the file, so that every run finds the same words
    with tempfile.TemporaryDirectory() as folder:
        trainer.load_train_data(_write_sentences(Path(folder, "train"), train))
        trainer.load_eval_data(_write_sentences(Path(folder, "dev"), dev))  # without them LTP stops after one epoch
        return trainer.train()


def _write_sentences(path: Path, sentences: list[list[str]]) -> str:
    path.write_text("".join(" ".join(words) + "\n" for words in sentences), encoding="utf-8", newline="\n")
    return str(path)


def save_model(model: CWSModel, output: Path) -> None:
    """Writes an LTP directory: the weights, then the config."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model")
        model.save(str(path))
        weights = path.read_bytes()
    with atomic_write(output / WEIGHTS, "wb") as file:
        file.write(weights)
    with atomic_write(output / "config.json") as file:
        file.write(json.dumps(CONFIG) + "\n")


def word_f1(model: CWSModel, sentences: list[list[str]]) -> float:
    """F1 of the words' spans; a word is correct if both its ends are."""
    correct = predicted = wanted = 0
    lines = ["".join(words) for words in sentences]
    for words, predicted_words in zip(sentences, model.batch_predict(lines)):
        gold_spans, predicted_spans = spans_of(words), spans_of(predicted_words)
        correct += len(gold_spans & predicted_spans)
        predicted += len(predicted_spans)
        wanted += len(gold_spans)
    return 2 * correct / (predicted + wanted)


def spans_of(words: list[str]) -> set[tuple[int, int]]:
    """Start and end of each word in the sentence."""
    ends = list(accumulate(map(len, words)))
    return set(zip([0, *ends], ends))


if __name__ == "__main__":
    run_script(main)
