"""Data and model shapes of the experiment: splits the corpus by article, writes data.json, the vocabulary's directory and the configs.

It first checks all inputs, also those of later stages. It also checks that the two shapes to compare have encoders of the same size.
"""

import argparse
import lzma
from collections.abc import Iterator
from pathlib import Path

from experiments.small_scale.settings import SCALES, Shape, TaskSample
from finetuning.task_definitions import TASKS
from finetuning.tasks import find_file, load_split, task_labels
from pretraining.corpus.files import atomic_write, read_lines, require_file, write_json
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script, sequence_length


def named_shape(text: str) -> tuple[str, Shape]:
    """``NAME=LAYERS/HIDDEN/FFN/HEADS``."""
    name, _, shape = text.partition("=")
    return name, Shape.parse(shape)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--scale", required=True, choices=SCALES)
    parser.add_argument("--corpus", required=True, help="UTF-8 text, plain or .xz; a blank line ends an article")
    parser.add_argument("--corpus_bytes", required=True, type=positive_int, help="use this many bytes of it")
    parser.add_argument("--dev_every", required=True, type=positive_int, help="every article with this number is for evaluation")
    parser.add_argument("--vocabulary", required=True, help="BERT's vocab.txt")
    parser.add_argument("--ltp", required=True, help="directory of an LTP model")
    parser.add_argument("--tasks_dir", required=True)
    parser.add_argument("--tasks", nargs="+", required=True, type=TaskSample.parse, metavar="NAME:TRAIN:DEV")
    parser.add_argument("--shapes", nargs="+", required=True, type=named_shape, metavar="NAME=LAYERS/HIDDEN/FFN/HEADS")
    parser.add_argument("--positions", required=True, type=positive_int)
    parser.add_argument("--length", required=True, type=sequence_length)
    parser.add_argument("--output_dir", required=True, type=Path)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    output_dir: Path = args.output_dir
    check_inputs(args)
    # Imported here: torch and transformers take seconds, and wrong inputs are refused before.
    from experiments.small_scale.configs import write_configs, write_machine

    with atomic_write(output_dir / "vocabulary" / "vocab.txt", "wb") as file:
        file.write(Path(args.vocabulary).read_bytes())
    tokenizer = load_tokenizer(output_dir / "vocabulary")
    write_machine(args.scale, output_dir / "machine.json")
    write_configs(dict(args.shapes), len(tokenizer), args.positions, output_dir / "configs")
    corpus = unpack(Path(args.corpus), args.corpus_bytes, output_dir)
    split_corpus(corpus, args.dev_every, output_dir)
    corpus.unlink()
    write_data_json(output_dir)


def check_inputs(args: argparse.Namespace) -> None:
    """Refuses missing or wrong inputs of all stages."""
    if args.length > args.positions:
        raise UserError(f"--length {args.length}: the models have only {args.positions} positions (see settings.toml)")
    require_file(args.corpus, "the corpus")
    require_file(args.vocabulary, "the BERT vocabulary")
    require_file(Path(args.ltp) / "config.json", "the config of an LTP model")
    for sample in args.tasks:
        if sample.name not in TASKS:
            raise UserError(f"--tasks {sample.name}: no such task; choose from {', '.join(TASKS)}")
        task, directory = TASKS[sample.name], Path(args.tasks_dir) / sample.name
        for split in ("train", "dev"):
            load_split(task, find_file(task, directory, split), task_labels(task, directory))


def write_data_json(output_dir: Path) -> None:
    """Names the text and reference files of both splits."""
    files = {}
    for split in ("train", "dev"):
        texts, refs = output_dir / f"{split}.txt", output_dir / f"{split}_ref.txt"
        files[split] = {f"{split}_files": [str(texts)], f"{split}_ref_files": [str(refs)]}
    write_json(output_dir / "data.json", files)


# ---------------------------------------------------------------- corpus


def unpack(corpus: Path, most_bytes: int, output_dir: Path) -> Path:
    """Copies the first lines of the corpus, at most ``most_bytes`` of them, to a plain file.

    Raises:
        UserError: an .xz file that is broken or cut off.
    """
    plain = output_dir / "corpus.txt"
    try:
        with (lzma.open if corpus.suffix == ".xz" else open)(corpus, "rb") as packed:
            text = packed.read(most_bytes)
    except (lzma.LZMAError, EOFError) as error:
        raise UserError(f"{corpus}: cannot be unpacked ({error}); is the .xz file complete?") from None
    with atomic_write(plain, "wb") as file:
        file.write(text if len(text) < most_bytes else text[: text.rfind(b"\n") + 1])
    return plain


def articles(path: Path) -> Iterator[list[str]]:
    """Yields the lines of each article; a blank line ends an article."""
    article: list[str] = []
    for line in read_lines(path):
        if line.strip():
            article.append(line)
        elif article:
            yield article
            article = []
    if article:
        yield article


def split_corpus(corpus: Path, dev_every: int, output_dir: Path) -> None:
    """Writes train.txt and dev.txt, and prints the number of their articles and characters.

    Args:
        dev_every: every article whose number can be divided by this goes to dev.txt.

    Raises:
        UserError: the corpus has fewer articles.
    """
    counts, characters = {"train": 0, "dev": 0}, {"train": 0, "dev": 0}
    with atomic_write(output_dir / "train.txt") as train, atomic_write(output_dir / "dev.txt") as dev:
        for number, article in enumerate(articles(corpus), start=1):
            split, file = ("train", train) if number % dev_every else ("dev", dev)
            file.writelines(f"{line}\n" for line in article)
            counts[split] += 1
            characters[split] += sum(map(len, article))
    if not counts["dev"]:
        raise UserError(f"--corpus: has only {counts['train']} articles (a blank line ends an article); give at least {dev_every}")
    for split in counts:
        print(f"{split}: {counts[split]:,} articles, {characters[split]:,} characters")


if __name__ == "__main__":
    run_script(main)
