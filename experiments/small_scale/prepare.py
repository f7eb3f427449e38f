"""Data and model shapes of the experiment: splits the corpus by article, writes data.json, the vocabulary's directory and the configs.

Checks all inputs first, those of later stages too, and that the two shapes that are compared have equally large encoders.
"""

import argparse
import json
import lzma
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / directory) for directory in ("pretraining", "pretraining/scripts", "finetuning")]
from tasks import TASKS, find_file, load_split, task_labels  # noqa: E402
from utils import UserError, load_tokenizer, parse_one_line_errors, read_line_blocks, require_file, run_script, whole_file  # noqa: E402

LARGEST_DIFFERENCE = 0.03  # of the encoders' parameters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--scale", required=True, choices=("gpu", "dry"))
    parser.add_argument("--corpus", required=True, help="UTF-8 text, plain or .xz; a blank line ends an article")
    parser.add_argument("--corpus_bytes", required=True, type=int, help="take so many bytes of it")
    parser.add_argument("--dev_every", required=True, type=int, help="each so manyth article is for evaluation")
    parser.add_argument("--vocabulary", required=True, help="BERT's vocab.txt")
    parser.add_argument("--ltp", required=True, help="directory of an LTP model")
    parser.add_argument("--tasks_dir", required=True)
    parser.add_argument("--tasks", nargs="+", required=True, metavar="NAME:TRAIN:DEV")
    parser.add_argument("--shapes", nargs="+", required=True, metavar="NAME=LAYERS/HIDDEN/FFN/HEADS")
    parser.add_argument("--positions", required=True, type=int)
    parser.add_argument("--length", required=True, type=int)
    parser.add_argument("--output_dir", required=True)
    args = parse_one_line_errors(parser)
    output_dir = Path(args.output_dir)

    require_file(args.corpus, "the corpus")
    require_file(args.vocabulary, "the BERT vocabulary")
    require_file(Path(args.ltp) / "config.json", "the config of an LTP model")
    for name in (setting.split(":")[0] for setting in args.tasks):
        directory = Path(args.tasks_dir) / name
        for split in ("train", "dev"):
            load_split(TASKS[name], find_file(TASKS[name], directory, split), task_labels(TASKS[name], directory))

    with whole_file(output_dir / "vocabulary" / "vocab.txt", "wb") as file:
        file.write(Path(args.vocabulary).read_bytes())
    tokenizer = load_tokenizer(output_dir / "vocabulary")
    about_machine(args.scale, output_dir)
    write_configs(args.shapes, len(tokenizer), args.positions, output_dir / "configs")
    corpus = unpack(Path(args.corpus), args.corpus_bytes, output_dir)
    split_corpus(corpus, args.dev_every, output_dir)
    corpus.unlink()
    files = {split: {f"{split}_files": [str(output_dir / f"{split}.txt")]} for split in ("train", "dev")}
    for split, entry in files.items():
        entry[f"{split}_ref_files"] = [str(output_dir / f"{split}_ref.txt")]
    with whole_file(output_dir / "data.json") as file:
        json.dump(files, file, indent=1)


def about_machine(scale: str, output_dir: Path) -> None:
    """Notes what the experiment runs on."""
    import torch
    import transformers
    from compare_models import device_name

    if scale == "gpu" and not torch.cuda.is_available():
        raise UserError("SCALE=gpu needs a GPU that torch sees; SCALE=dry runs every stage on the CPU")
    about = {
        "device": device_name("cuda" if torch.cuda.is_available() else "cpu"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    with whole_file(output_dir / "machine.json") as file:
        json.dump(about, file, indent=1)


# ---------------------------------------------------------------- corpus


def unpack(corpus: Path, most_bytes: int, output_dir: Path) -> Path:
    """Copies the first lines of the corpus, at most so many bytes of them."""
    plain = output_dir / "corpus.txt"
    try:
        with (lzma.open if corpus.suffix == ".xz" else open)(corpus, "rb") as packed:
            text = packed.read(most_bytes)
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{corpus}: cannot be unpacked ({error}); is it a whole .xz file?") from None
    with whole_file(plain, "wb") as file:
        file.write(text if len(text) < most_bytes else text[: text.rfind(b"\n") + 1])
    return plain


def articles(path: Path) -> Iterator[list[str]]:
    """The articles' lines; a blank line ends an article."""
    article: list[str] = []
    for lines in read_line_blocks(path):
        for line in lines:
            if line.strip():
                article.append(line)
            elif article:
                yield article
                article = []
    if article:
        yield article


def split_corpus(corpus: Path, dev_every: int, output_dir: Path) -> None:
    """Writes train.txt and dev.txt, the latter each ``dev_every``-th article; says how many articles and characters they have."""
    counts, characters = {"train": 0, "dev": 0}, {"train": 0, "dev": 0}
    with whole_file(output_dir / "train.txt") as train, whole_file(output_dir / "dev.txt") as dev:
        for number, article in enumerate(articles(corpus), start=1):
            split, file = ("train", train) if number % dev_every else ("dev", dev)
            file.writelines(f"{line}\n" for line in article)
            counts[split] += 1
            characters[split] += sum(map(len, article))
    if not counts["dev"]:
        raise UserError(f"--corpus: has only {counts['train']} articles, a blank line ends one; each {dev_every}th is for evaluation")
    for split in counts:
        print(f"{split}: {counts[split]:,} articles, {characters[split]:,} characters")


# ---------------------------------------------------------------- models


def write_configs(shapes: list[str], vocabulary_size: int, positions: int, output_dir: Path) -> None:
    """Writes NAME.json for each NAME=LAYERS/HIDDEN/FFN/HEADS, after a check that the encoders compared are equally large."""
    from modeling import read_config

    for item in shapes:
        name, _, shape = item.partition("=")
        layers, hidden, ffn, heads = map(int, shape.split("/"))
        config = {
            "model_type": "bert",
            "vocab_size": vocabulary_size,
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "intermediate_size": ffn,
            "num_attention_heads": heads,
            "max_position_embeddings": positions,
        }
        with whole_file(output_dir / f"{name}.json") as file:
            json.dump(config, file, indent=1)
    sizes = {
        name: encoder_parameters(read_config(output_dir / f"{name}.json", "a student's config")) for name in ("narrow_deep", "wide_shallow")
    }
    difference = sizes["wide_shallow"] / sizes["narrow_deep"] - 1
    print(f"encoders: narrow-deep {sizes['narrow_deep']:,}, wide-shallow {sizes['wide_shallow']:,} parameters ({difference:+.2%})")
    if abs(difference) > LARGEST_DIFFERENCE:
        raise UserError(
            f"settings.sh: the encoders of narrow_deep_shape and wide_shallow_shape differ by {difference:+.1%}, more than {LARGEST_DIFFERENCE:.0%}"
        )


def encoder_parameters(config) -> int:
    """The parameters of the Transformer layers alone: no embeddings, pooler or head."""
    import torch
    from transformers import BertModel

    with torch.device("meta"):  # shapes alone, no memory
        return sum(parameter.numel() for parameter in BertModel(config).encoder.parameters())


if __name__ == "__main__":
    run_script(main)
