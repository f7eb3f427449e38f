"""Makes the vocabulary, the model configs and the data.json of the demo out of the sample corpus; scripts/demo.sh calls it.

python scripts/make_demo_models.py --output_dir ./saves/demo
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tokenizers.normalizers import BertNormalizer

from pretraining.corpus.files import TextAndRefs, atomic_write, read_data_json, read_lines, write_json
from pretraining.corpus.tokenizer import SPECIAL_TOKENS
from pretraining.utils import ArgumentParser, run_script


class Shape(NamedTuple):
    """A model's number of layers and hidden size."""

    layers: int
    hidden_size: int


SHAPES = {
    "shallow": Shape(layers=2, hidden_size=96),
    "teacher": Shape(layers=12, hidden_size=96),
    "rbt6": Shape(layers=6, hidden_size=96),
    "minirbt": Shape(layers=6, hidden_size=64),
}
HEAD_SIZE = 32


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output_dir = Path(args.output_dir)
    splits = read_data_json(args.data_files_json)
    tokens = vocabulary([file.text for file in splits["train"]])
    with atomic_write(output_dir / "vocabulary" / "vocab.txt") as file:
        file.writelines(f"{token}\n" for token in tokens)
    for name, shape in SHAPES.items():
        write_json(output_dir / "configs" / f"{name}.json", model_config(shape, len(tokens)))
    write_json(output_dir / "data.json", data_json(splits, output_dir / "ref_files"))
    print(f"{output_dir}: a vocabulary of {len(tokens)} tokens, configs of {', '.join(SHAPES)}, data.json")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the sample corpus")
    parser.add_argument("--output_dir", required=True)
    return parser.parse_args(argv)


def vocabulary(texts: list[Path]) -> list[str]:
    """The special tokens, then every character of the texts by falling frequency, then the ``##`` pieces of ASCII letters and digits."""
    normalizer = BertNormalizer(lowercase=True)
    counts: Counter[str] = Counter()
    for text in texts:
        for line in read_lines(text):
            counts.update(normalizer.normalize_str(line))
    by_frequency = sorted(counts, key=lambda character: (-counts[character], character))
    characters = [character for character in by_frequency if not character.isspace()]
    pieces = [f"##{character}" for character in characters if character.isascii() and character.isalnum()]
    return [*SPECIAL_TOKENS, *characters, *pieces]


def model_config(shape: Shape, vocab_size: int) -> dict[str, int | str]:
    """A BERT config."""
    return {
        "model_type": "bert",
        "vocab_size": vocab_size,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden_size,
        "intermediate_size": 4 * shape.hidden_size,
        "num_attention_heads": shape.hidden_size // HEAD_SIZE,
        "max_position_embeddings": 128,
    }


def data_json(splits: dict[str, list[TextAndRefs]], ref_dir: Path) -> dict[str, dict[str, list[str]]]:
    """The same texts with their reference files in ``ref_dir``."""
    return {
        split: {
            f"{split}_files": [str(file.text) for file in files],
            f"{split}_ref_files": [str(ref_dir / f"{file.text.stem}_ref.txt") for file in files],
        }
        for split, files in splits.items()
    }


if __name__ == "__main__":
    run_script(main)
