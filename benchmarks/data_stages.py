"""Stages of bench.py from text to masked batches, and the inputs of all stages. Each stage returns rows."""

import json
import random
from argparse import Namespace
from functools import partial
from itertools import chain, count
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from ltp_extension.perceptron import CWSModel

from benchmarks.inputs import (
    LENGTH,
    VOCABULARY,
    load_sample,
    sample_corpus,
    write_data_json,
    write_lines,
    write_sample,
    write_vocabulary,
)
from benchmarks.ltp_models import write_legacy_ltp, write_neural_ltp
from benchmarks.peers import PythonCollator
from benchmarks.processes import peak_memory_of_command
from benchmarks.rows import Row, at_most, faster, rate, under
from pretraining import run_chinese_ref
from pretraining.corpus.batches import dense_rows
from pretraining.corpus.files import read_data_json, read_lines
from pretraining.corpus.rows import Rows
from pretraining.corpus.segmenter import (
    CHINESE_PAIR,
    MAX_CHARACTERS,
    NeuralSegmenter,
    load_segmenter,
    read_ltp_directory,
    restore_leading_space,
    words_of,
)
from pretraining.corpus.shards import ShardSpec, load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.reporting.timing import time_in_turn
from pretraining.utils import UserError


def prepare(work: Path, args: Namespace) -> None:
    """Writes the inputs: sample text, vocabulary, LTP model, references."""
    write_sample(work / "sample.txt", [Path(args.corpus)] if args.corpus else sample_corpus())
    if args.vocab:
        (work / "bert").mkdir()
        write_lines(work / "bert/vocab.txt", read_lines(args.vocab))
    else:
        write_vocabulary(work / "bert", [work / "sample.txt"], VOCABULARY)
    if args.ltp:
        (work / "ltp").symlink_to(Path(args.ltp).resolve())
    else:
        write_legacy_ltp(work / "ltp")
    data = write_data_json(work, "sample")
    peak_memory_of_command("run_chinese_ref.py", work / "log", data_files_json=data, ltp=work / "ltp", bert=work / "bert")


# ---------------------------------------------------------------- shards -> batches


def masking_stage(work: Path, args: Namespace) -> list[Row]:
    """Both sides mask 32 samples at a time; the Python collator gets fewer samples, as it is slow."""
    tokenizer, dataset, masker = load_sample(work)
    our_count, peer_count, size = 2048, 64, 32
    indices, epochs = np.arange(our_count) % len(dataset), np.arange(our_count)
    read = dataset[indices.tolist()]
    lengths = np.fromiter(map(len, read["input_ids"]), np.int64, our_count)
    ids = dense_rows(read["input_ids"], lengths, masker.content_length)
    continues = dense_rows(read["continues"], lengths, masker.content_length)

    examples = []
    for row, flags, length in zip(ids[:peer_count].tolist(), continues, lengths):
        input_ids = [tokenizer.cls_token_id, *row[:length], tokenizer.sep_token_id]
        examples.append({"input_ids": input_ids, "chinese_ref": (np.flatnonzero(flags[:length]) + 1).tolist()})
    collate = PythonCollator(tokenizer)

    def ours() -> None:
        for start in range(0, our_count, size):
            part = slice(start, start + size)
            masker(ids[part], continues[part], lengths[part], epochs[part], indices[part])

    def peer() -> None:
        for start in range(0, peer_count, size):
            collate(examples[start : start + size])

    seconds = time_in_turn({"ours": ours, "peer": peer}, args.rounds)
    our_rates = [our_count / value for value in seconds["ours"]]
    peer_rates = [peer_count / value for value in seconds["peer"]]
    return [rate("masking, one core", our_rates, 20_000, peer_rates, 25)]


def shards_stage(work: Path, args: Namespace) -> list[Row]:
    """Random rows, 32 at a time, as masked_batch reads them; the peer reads the same rows as datasets gives them, as Python lists."""
    data = load_sample(work)  # keeps the tokenizer, as train.py does: freeing it makes glibc slower, reading by 12 %
    rows, stored_rows = data.dataset, Dataset.from_file(str(work / "shards/sample/data.arrow"))
    copies = 1 + 20_000 // len(rows)
    many, plain = Rows(rows.pieces * copies, rows.length, fill=True), concatenate_datasets([stored_rows] * copies)
    size, our_count, peer_count = 32, 300, 30  # rows a draw, draws
    draws = np.random.default_rng(1).integers(len(many), size=(our_count, size)).tolist()
    seconds = time_in_turn(
        {"ours": lambda: [many[draw] for draw in draws], "peer": lambda: [plain[draw] for draw in draws[:peer_count]]}, args.rounds
    )
    our_rates = [our_count * size / value for value in seconds["ours"]]
    peer_rates = [peer_count * size / value for value in seconds["peer"]]
    stored = json.loads((work / "shards/sample/shard.json").read_text())
    return [
        rate("shard reading, one core", our_rates, 50_000, peer_rates),
        at_most("shard on disk", "bytes a token", stored["bytes"] / stored["tokens"], 2.2),
    ]


# ---------------------------------------------------------------- text -> shards, text -> references


def my_datasets_stage(work: Path, args: Namespace) -> list[Row]:
    """Building a shard against tokenising its text."""
    tokenizer, files = load_tokenizer(work / "bert"), read_data_json(work / "sample.json")["train"]
    lines, fresh = list(read_lines(work / "sample.txt")), count()
    seconds = time_in_turn(
        {
            "ours": lambda: load_shards(files, ShardSpec(work / f"shards{next(fresh)}", LENGTH, tokenizer), progress=False),
            "peer": lambda: tokenizer.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False),
        },
        args.rounds,
    )
    return [under("my_datasets / the fast tokenizer alone, one process", "s", seconds["ours"], seconds["peer"], below=1.4)]


def references_stage(work: Path, args: Namespace) -> list[Row]:
    """The command against its two unavoidable parts, segmenting and tokenising, each with loading its model."""
    lines, weights = list(read_lines(work / "sample.txt")), str(read_ltp_directory(work / "ltp").weights)
    arguments = ["--overwrite", "--data_files_json", str(work / "sample.json"), "--ltp", str(work / "ltp"), "--bert", str(work / "bert")]
    seconds = time_in_turn(
        {
            "ours": partial(run_chinese_ref.main, arguments),
            "words": lambda: CWSModel.load(weights).batch_predict(lines, parallelism=True),
            "tokens": lambda: load_tokenizer(work / "bert").backend_tokenizer.encode_batch(lines),
        },
        args.rounds,
    )
    parts = [words + tokens for words, tokens in zip(seconds["words"], seconds["tokens"])]
    return [under("run_chinese_ref, legacy LTP / LTP + fast tokenizer", "s", seconds["ours"], parts, below=1.3)]


def neural_stage(work: Path, args: Namespace) -> list[Row]:
    """Segmentation with a neural model of 12 layers of size 256, random weights; the peer takes 50 lines at a time in their order."""
    lines = [line for line in read_lines(work / "sample.txt") if len(line) < MAX_CHARACTERS - 10 and CHINESE_PAIR.search(line)]
    lines = random.Random(1).sample(lines, 100)
    write_neural_ltp(work / "neural", work / "bert", lines)
    segment = load_segmenter(read_ltp_directory(work / "neural"))
    assert isinstance(segment, NeuralSegmenter)
    found: dict[str, list[str]] = {}

    def ours() -> None:
        found["ours"] = words_of(lines, segment)

    def peer() -> None:
        words = []
        for first in range(0, len(lines), 50):
            batch = lines[first : first + 50]
            words += segment.model.pipeline(batch, tasks=["cws"]).cws
        found["peer"] = list(chain.from_iterable(map(restore_leading_space, lines, words)))

    rounds = args.rounds if args.full else 1  # the peer takes many seconds a round
    seconds = time_in_turn({"ours": ours, "peer": peer}, rounds)
    if found["ours"] != found["peer"]:
        raise UserError("neural LTP: the words differ from those of batches of 50 lines")
    return [faster("run_chinese_ref, neural LTP / batches of 50 unsorted lines", seconds["ours"], seconds["peer"], 3.0)]


def text_memory_stage(work: Path, args: Namespace) -> list[Row]:
    """Peak memory of both commands on a text and on one of half its size."""
    half, full = (100, 200) if args.full else (8, 16)  # MB
    peaks = {megabytes: text_memory(work, megabytes) for megabytes in (half, full)}
    return [
        under(f"{command}, peak memory on {full} MB / on {half} MB", "MB", [peaks[full][command]], [peaks[half][command]], 1.1, limit=limit)
        for command, limit in (("my_datasets", 1000), ("run_chinese_ref", 1500))
    ]


def text_memory(work: Path, megabytes: int) -> dict[str, float]:
    """Peak memory in MB of each command on the sample, repeated up to ``megabytes``."""
    for old in work.glob("long.*"):
        old.unlink()
    times = max(1, round(megabytes * 1e6 / (work / "sample.txt").stat().st_size))
    for ending in ("txt", "refs"):
        content = (work / f"sample.{ending}").read_bytes()
        with open(work / f"long.{ending}", "wb") as file:
            for _ in range(times):
                file.write(content)
    data = write_data_json(work, "long")
    run = partial(peak_memory_of_command, log=work / "log", data_files_json=data)
    shards = run("my_datasets.py", data_cache_dir=work / "long", tokenizer=work / "bert")
    (work / "long.refs").unlink()
    references = run("run_chinese_ref.py", ltp=work / "ltp", bert=work / "bert")
    return {"my_datasets": shards, "run_chinese_ref": references}
