"""What the benchmarks work on: a sample text, its vocabulary and references, and the training data made of them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from transformers import BertTokenizer

from benchmarks.processes import PRETRAINING
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import TextAndRefs, read_data_json, read_lines
from pretraining.corpus.masking import WholeWordMasker
from pretraining.corpus.rows import Rows
from pretraining.corpus.shards import ShardSpec, load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.scripts.make_demo_models import vocabulary
from pretraining.utils import UserError

LENGTH, VOCABULARY = 512, 21128
SAMPLE_BYTES = 4 << 20


def sample_corpus() -> list[Path]:
    """The text files of the sample corpus."""
    return sorted((PRETRAINING / "dataset/train/train_files").glob("*.txt"))


# ---------------------------------------------------------------- files


def write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def write_sample(path: Path, texts: list[Path]) -> None:
    """Writes the first ``SAMPLE_BYTES`` of the texts, up to the end of that line; shorter texts are repeated."""
    write_lines(path, _first_lines(texts, SAMPLE_BYTES))


def _first_lines(texts: list[Path], size: int) -> Iterator[str]:
    written = 0
    while written < size:
        before = written
        for text in texts:
            for line in read_lines(text):
                yield line
                written += len(line.encode()) + 1
                if written >= size:
                    return
        if written == before:
            raise UserError(f"{texts[0]}: no text in it; name a text file with a paragraph on each line")


def write_vocabulary(directory: Path, texts: list[Path], entries: int) -> None:
    """Writes a ``vocab.txt`` of the texts' characters, filled up to ``entries`` with unused tokens."""
    tokens = vocabulary(texts)[:VOCABULARY]
    tokens += [f"[unused{number}]" for number in range(entries - len(tokens))]
    directory.mkdir()
    write_lines(directory / "vocab.txt", tokens)


def write_data_json(work: Path, name: str) -> Path:
    """Writes a ``data.json`` with the one text ``<name>.txt`` and its references ``<name>.refs``; returns its path."""
    path = work / f"{name}.json"
    entry = {"train_files": [str(work / f"{name}.txt")], "train_ref_files": [str(work / f"{name}.refs")]}
    path.write_text(json.dumps({"train": entry}))
    return path


def write_corpus_with_references(work: Path, tokenizer: BertTokenizer, repeats: int) -> TextAndRefs:
    """Writes the sample corpus, ``repeats`` times, with references by which every second token continues a word."""
    lines = [line for text in sample_corpus() for line in read_lines(text)]
    encoded = tokenizer(lines, add_special_tokens=False)["input_ids"]
    references = [list(range(2, len(ids) + 1, 2)) for ids in encoded]
    file = TextAndRefs(work / "sample.txt", work / "sample.refs")
    write_lines(file.text, lines * repeats)
    write_lines(file.refs, map(str, references * repeats))
    return file


# ---------------------------------------------------------------- training data


class Data(NamedTuple):
    """The training data as train.py has it."""

    tokenizer: BertTokenizer
    dataset: Rows
    masker: WholeWordMasker

    def batches(self, size: int) -> TrainingBatches:
        """Batches of ``size`` samples for a single process without gradient accumulation."""
        return TrainingBatches(self.dataset, self.masker, seed=1, train_batch_size=size)


def load_data(files: list[TextAndRefs], shards: Path, tokenizer: BertTokenizer, length: int, num_workers: int = 1) -> Data:
    """Builds the shards in the directory ``shards`` or reads those that are there; samples have ``length`` tokens."""
    dataset = load_shards(files, ShardSpec(shards, length, tokenizer), num_workers=num_workers, progress=False)
    masker = WholeWordMasker(tokenizer, max_seq_length=length, mlm_probability=0.15, seed=1)
    return Data(tokenizer, dataset, masker)


def load_sample(work: Path) -> Data:
    """The data of bench.py: the sample that it wrote into ``work``."""
    files = read_data_json(work / "sample.json")["train"]
    return load_data(files, work / "shards", load_tokenizer(work / "bert"), LENGTH)
