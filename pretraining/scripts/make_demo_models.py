"""Vocabulary and configs of the demo's small models, out of the sample corpus; used by scripts/demo.sh.

python scripts/make_demo_models.py --output_dir ./saves/demo
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import SPECIAL_TOKENS, parse_one_line_errors, read_data_json, read_line_blocks, run_script, whole_file

SHAPES = {"shallow": (2, 96), "teacher": (12, 96), "rbt6": (6, 96), "minirbt": (6, 64)}  # layers, hidden size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the sample corpus")
    parser.add_argument("--output_dir", required=True)
    args = parse_one_line_errors(parser)
    output_dir = Path(args.output_dir)
    splits = read_data_json(args.data_files_json)

    tokens = vocabulary([file.text for file in splits["train"]])
    with whole_file(output_dir / "vocabulary" / "vocab.txt") as file:
        file.writelines(f"{token}\n" for token in tokens)
    for name, (layers, hidden_size) in SHAPES.items():
        config = {
            "model_type": "bert",
            "vocab_size": len(tokens),
            "num_hidden_layers": layers,
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "num_attention_heads": hidden_size // 32,
            "max_position_embeddings": 128,
        }
        with whole_file(output_dir / "configs" / f"{name}.json") as file:
            json.dump(config, file, indent=1)
    data = {
        split: {
            f"{split}_files": [str(file.text) for file in files],
            f"{split}_ref_files": [str(output_dir / "ref_files" / f"{file.text.stem}_ref.txt") for file in files],
        }
        for split, files in splits.items()
    }
    with whole_file(output_dir / "data.json") as file:
        json.dump(data, file, indent=1)
    print(f"{output_dir}: a vocabulary of {len(tokens)} tokens, configs of {', '.join(SHAPES)}, data.json")


def vocabulary(texts: list[Path]) -> list[str]:
    """Special tokens, then every character of the texts, the frequent ones first, alone and as a ## piece if it is no Chinese one."""
    from tokenizers.normalizers import BertNormalizer

    normalizer = BertNormalizer(lowercase=True)
    counts = Counter()
    for text in texts:
        for lines in read_line_blocks(text):
            counts.update(normalizer.normalize_str(" ".join(lines)))
    characters = [character for character, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if not character.isspace()]
    pieces = [f"##{character}" for character in characters if character.isascii() and character.isalnum()]
    return [*SPECIAL_TOKENS, *characters, *pieces]


if __name__ == "__main__":
    run_script(main)
