"""Shards: no token lost, words marked exactly, the same for any number of workers, rebuilt for any difference, there whole or not at all."""

import fcntl
import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock, Timeout
from transformers import BertTokenizer

from pretraining import my_datasets
from pretraining.corpus import files, shards
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import TextAndRefs, read_data_json
from pretraining.corpus.shards import ShardSpec, data_fingerprint, describe_shards, load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.corpus.tokens import TokenBlock
from pretraining.utils import UserError
from tests import tiny

PRETRAINING = Path(my_datasets.__file__).parent
LENGTH = 32


def load(files: list[TextAndRefs], cache: Path, tokenizer, length: int = LENGTH):
    return load_shards(files, ShardSpec(cache, length, tokenizer), progress=False)


def fingerprint(files: list[TextAndRefs], cache: Path, tokenizer, length: int = LENGTH) -> str:
    return data_fingerprint(describe_shards(files, ShardSpec(cache, length, tokenizer)))


def write(directory: Path, name: str, lines: list[str], refs: list[list[int]] | None, tokenizer) -> TextAndRefs:
    text = directory / f"{name}.txt"
    tiny.write_text(text, lines, tokenizer)
    if refs is not None:
        text.with_suffix(".refs").write_text("".join(f"{json.dumps(ref)}\n" for ref in refs))
    return TextAndRefs(text, text.with_suffix(".refs"))


def tokens_and_flags(file: TextAndRefs, tokenizer) -> tuple[list[int], list[bool]]:
    """What the rows of a file must add up to, one line after the other, by the tokenizer's public call."""
    ids, flags = [], []
    lines = file.text.read_text(encoding="utf-8").split("\n")
    for line, ref in zip(lines, file.refs.read_text().split("\n")):
        line_ids = tokenizer(line, add_special_tokens=False)["input_ids"]
        marked = set(json.loads(ref or "[]"))
        ids += line_ids
        flags += [i + 1 in marked or token.startswith("##") for i, token in enumerate(tokenizer.convert_ids_to_tokens(line_ids))]
    return ids, flags


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """The names of the shards that are built, in order."""
    built, build = [], shards._build

    def counted(file, *rest):
        built.append(file.text.stem)
        time.sleep(0.05)
        build(file, *rest)

    monkeypatch.setattr(shards, "_build", counted)
    return built


@pytest.mark.parametrize("block_bytes", [1 << 22, 100])
@pytest.mark.parametrize("length", [4, 7, 32, 64])
def test_no_token_is_lost_in_chunking(length, block_bytes, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", block_bytes)
    texts = read_data_json(corpus.data_json)["train"]
    dataset = load(texts, tmp_path, corpus.tokenizer, length)
    first = 0
    for file in texts:
        ids, flags = tokens_and_flags(file, corpus.tokenizer)
        rows = -(-len(ids) // (length - 2))
        own = dataset[first : first + rows]
        assert [len(row) for row in own["input_ids"]][:-1] == [length - 2] * (rows - 1)  # only a file's last row is short
        assert np.concatenate(list(own["input_ids"])).tolist() == ids
        assert np.concatenate(list(own["continues"])).tolist() == flags
        first += rows
        stored = json.loads((tmp_path / file.text.stem / "shard.json").read_text())
        assert (stored["tokens"], stored["rows"]) == (len(ids), rows)
    assert len(dataset) == first
    assert sum(len(row) for row in dataset["input_ids"]) == sum(len(tokens_and_flags(file, corpus.tokenizer)[0]) for file in texts)


def test_words_and_pieces_at_exact_places(tiny_tokenizer, tmp_path):
    file = write(tmp_path, "text", ["我喜欢北京", "", "training火车站", "天气"], [[3, 5], [], [4, 5], []], tiny_tokenizer)
    dataset = load([file], tmp_path / "cache", tiny_tokenizer)
    assert len(dataset) == 1
    assert tiny_tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist()) == [*"我喜欢北京", "train", "##ing", *"火车站天气"]
    assert dataset[0]["continues"].tolist() == [False, False, True, False, True, False, True, False, True, True, False, False]


def test_lines_end_at_newline_alone(tiny_tokenizer, tmp_path):
    """U+2028, U+0085, VT and FF stay inside their line; a carriage return before the newline goes; the last line needs no newline."""
    text, refs = tmp_path / "text.txt", tmp_path / "text.refs"
    text.write_bytes("今天\u2028天气\u0085很\v好\f\r\n我们\r\n\n北京".encode())
    refs.write_bytes(b"[2, 4]\r\n[2]\n[]\n[2]")
    dataset = load([TextAndRefs(text, refs)], tmp_path / "cache", tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist()) == list("今天天气很好我们北京")
    assert np.flatnonzero(dataset[0]["continues"]).tolist() == [1, 3, 7, 9]


@pytest.mark.parametrize(("size", "dtype"), [(200, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_have_the_smallest_type_that_holds_the_vocabulary(size, dtype, tmp_path):
    directory = tmp_path / "vocabulary"
    directory.mkdir()
    tokens = [*tiny.SPECIAL, *"今天气"]
    tokens += [f"[unused{i + 2}]" for i in range(size - len(tokens) - 1)] + ["很"]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(str(directory))
    file = write(tmp_path, "text", ["今天很"], [[2]], tokenizer)
    dataset = load([file], tmp_path / "cache", tokenizer)
    assert dataset.features["input_ids"].feature.dtype == dtype and dataset.features["continues"].feature.dtype == "bool"
    assert dataset[0]["input_ids"].tolist() == [6, 7, size - 1]


def test_typed_special_tokens_keep_their_place(tiny_tokenizer, tmp_path):
    file = write(tmp_path, "text", ["今天[MASK]天气"], [[2, 5]], tiny_tokenizer)
    dataset = load([file], tmp_path / "cache", tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist()) == ["今", "天", "[MASK]", "天", "气"]
    assert dataset[0]["continues"].tolist() == [False, True, False, False, True]


def test_truncation_and_padding_saved_with_a_tokenizer_lose_nothing(tiny_tokenizer, tmp_path):
    """A tokenizer.json often carries the truncation and padding of the program that wrote it."""
    directory = tmp_path / "vocabulary"
    saved = tiny.write_vocabulary(directory)
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=6)
    saved.backend_tokenizer.save(str(directory / "tokenizer.json"))
    file = write(tmp_path, "text", ["今天天气很好", "我"], [[], []], tiny_tokenizer)
    dataset = load([file], tmp_path / "cache", load_tokenizer(directory))
    assert tiny_tokenizer.convert_ids_to_tokens(dataset[0]["input_ids"].tolist()) == list("今天天气很好我")


@pytest.mark.slow
def test_rows_and_bytes_are_the_same_for_any_number_of_workers(corpus, tmp_path):
    """The tokenizer's threads are set once a process, so each number runs in its own."""
    running = [
        subprocess.Popen(
            [sys.executable, "my_datasets.py", "--data_files_json", str(corpus.data_json), "--tokenizer", str(corpus.vocabulary)]
            + ["--data_cache_dir", str(tmp_path / workers), "--max_seq_length", str(LENGTH), "--preprocessing_num_workers", workers],
            cwd=PRETRAINING,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for workers in ("1", "3")
    ]
    printed = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], printed
    assert printed[0][0] == printed[1][0] and "train: " in printed[0][0] and "dev: " in printed[0][0]
    files = tiny.snapshot(tmp_path / "1")
    assert files == tiny.snapshot(tmp_path / "3")
    assert {"long/data.arrow", "long/shard.json", "short/data.arrow", "middle/data.arrow", "dev/data.arrow"} <= files.keys()


@pytest.fixture
def changeable(tiny_tokenizer, tmp_path) -> TextAndRefs:
    return write(tmp_path, "text", ["今天天气很好", "我们"], [[2, 4], [2]], tiny_tokenizer)


def test_a_current_shard_is_taken_as_it_is(changeable, tiny_tokenizer, tmp_path, builds):
    first = fingerprint([changeable], tmp_path / "cache", tiny_tokenizer)
    load([changeable], tmp_path / "cache", tiny_tokenizer)
    before = tiny.snapshot(tmp_path / "cache")
    load([changeable], tmp_path / "cache", tiny_tokenizer)
    second = fingerprint([changeable], tmp_path / "cache", tiny_tokenizer)
    assert builds == ["text"] and first == second and tiny.snapshot(tmp_path / "cache") == before


@pytest.mark.parametrize("what", ["text", "refs", "tokenizer", "length", "truncated", "no description", "description of something else"])
def test_any_difference_rebuilds(what, changeable, tiny_tokenizer, tmp_path, builds):
    cache = tmp_path / "cache"
    load([changeable], cache, tiny_tokenizer)
    before = fingerprint([changeable], cache, tiny_tokenizer)
    tokenizer, length, description = tiny_tokenizer, LENGTH, cache / "text" / "shard.json"
    if what == "text":
        changeable.text.write_text("今天天气很冷\n我们\n", encoding="utf-8")
    elif what == "refs":
        changeable.refs.write_text("[2]\n[2]\n")
    elif what == "tokenizer":
        tokenizer = tiny.write_vocabulary(tmp_path / "other", extra=["##好"])
    elif what == "length":
        length = 6
    elif what == "truncated":
        data = cache / "text" / "data.arrow"
        data.write_bytes(data.read_bytes()[:-8])
    elif what == "no description":
        description.unlink()
    else:
        description.write_text('{"rows": 1}')
    dataset, after = load([changeable], cache, tokenizer, length), fingerprint([changeable], cache, tokenizer, length)
    assert builds == ["text", "text"]
    assert (before == after) == (what in ("truncated", "no description", "description of something else"))
    ids, flags = tokens_and_flags(changeable, tokenizer)
    assert np.concatenate(list(dataset["input_ids"])).tolist() == ids
    assert np.concatenate(list(dataset["continues"])).tolist() == flags


def test_the_fingerprint_names_the_files_order_and_content(corpus, tmp_path):
    files = read_data_json(corpus.data_json)["train"]
    whole = fingerprint(files, tmp_path, corpus.tokenizer)
    assert fingerprint(files, tmp_path / "another place", corpus.tokenizer) == whole
    assert fingerprint(files[::-1], tmp_path, corpus.tokenizer) != whole
    assert fingerprint(files[:2], tmp_path, corpus.tokenizer) != whole


def in_a_forked_process(target, *arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def build_and_die(file: TextAndRefs, cache: Path, tokenizer) -> None:
    """Ends the process in the middle of the shard, as SIGKILL does: nothing is cleaned up."""

    def one_block(*_):
        yield TokenBlock(np.arange(100), np.zeros(100, bool), 1)
        os._exit(9)

    shards.read_token_blocks = one_block
    load([file], cache, tokenizer)


def test_a_killed_build_leaves_nothing_under_the_final_name(changeable, tiny_tokenizer, tmp_path, builds):
    cache = tmp_path / "cache"
    assert in_a_forked_process(build_and_die, changeable, cache, tiny_tokenizer) == 9
    assert not (cache / "text").exists() and (cache / ".text.partial").exists()
    load([changeable], cache, tiny_tokenizer)
    assert sorted(path.name for path in cache.iterdir()) == [".text.lock", "text"]
    load([changeable], tmp_path / "undisturbed", tiny_tokenizer)
    assert tiny.snapshot(cache / "text") == tiny.snapshot(tmp_path / "undisturbed" / "text")


def test_a_killed_rebuild_leaves_the_old_shard_whole(changeable, tiny_tokenizer, tmp_path, builds):
    cache = tmp_path / "cache"
    load([changeable], cache, tiny_tokenizer)
    before = tiny.snapshot(cache / "text")
    changeable.refs.write_text("[2]\n[2]\n")
    assert in_a_forked_process(build_and_die, changeable, cache, tiny_tokenizer) == 9
    assert tiny.snapshot(cache / "text") == before
    dataset = load([changeable], cache, tiny_tokenizer)
    assert dataset[0]["continues"].tolist() == tokens_and_flags(changeable, tiny_tokenizer)[1]


@pytest.mark.parametrize(
    ("second", "says"),
    [
        ("[9]", "text.refs:2: position 9 lies outside"),
        (f"[{'9' * 5000}]", "text.refs:2: is not a JSON list"),
        ("[" * 5000, "text.refs:2: is not"),
    ],
)
def test_an_error_while_building_leaves_nothing(second, says, changeable, tiny_tokenizer, tmp_path):
    changeable.refs.write_text(f"[2]\n{second}\n")
    with pytest.raises(UserError, match=says):
        load([changeable], tmp_path / "cache", tiny_tokenizer)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [".text.lock"]


def test_an_error_does_not_remove_a_lock_for_which_another_process_waits(changeable, tiny_tokenizer, tmp_path):
    """The one that waits has opened the file before; if it were removed, it and a third process would both get a lock."""
    lock = tmp_path / "cache" / ".text.lock"
    lock.parent.mkdir()
    changeable.refs.write_text("[2]\n[9]\n")
    with open(lock, "w") as waiting:
        with pytest.raises(UserError, match="lies outside"):
            load([changeable], tmp_path / "cache", tiny_tokenizer)
        fcntl.flock(waiting, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with pytest.raises(Timeout):
            FileLock(lock, timeout=0).acquire()


def test_of_concurrent_processes_one_builds(changeable, tiny_tokenizer, tmp_path, builds):
    """Threads with their own file locks stand for the processes: the lock is the operating system's."""
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(load([changeable], tmp_path / "cache", tiny_tokenizer)["input_ids"]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["text"]
    assert len(results) == 4 and all(np.array_equal(rows[0], results[0][0]) for rows in results)


def test_another_process_that_rebuilds_does_not_change_rows_already_loaded(changeable, tiny_tokenizer, tmp_path, monkeypatch):
    """Two runs of different length share a cache: the other's shard comes right after this one has let go of the lock."""
    cache, released, in_between = tmp_path / "cache", FileLock.release, []

    def release(lock, *arguments, **keywords):
        released(lock, *arguments, **keywords)
        if not in_between:
            in_between.append("begun")
            in_between.append(load([changeable], cache, tiny_tokenizer, 5))

    monkeypatch.setattr(FileLock, "release", release)
    dataset = load([changeable], cache, tiny_tokenizer, 8)
    assert [len(row) for row in dataset["input_ids"]] == [6, 2]
    assert [len(row) for row in in_between[1]["input_ids"]] == [3, 3, 2]


def test_no_text_at_all_is_an_error(tiny_tokenizer, tmp_path):
    empty = write(tmp_path, "empty", [], [], tiny_tokenizer)
    blank = write(tmp_path, "blank", ["", " "], [[], []], tiny_tokenizer)
    with pytest.raises(UserError, match="no text in them"):
        load([empty, blank], tmp_path / "cache", tiny_tokenizer)
    text = write(tmp_path, "text", ["今天"], [[2]], tiny_tokenizer)
    assert len(load([empty, text, blank], tmp_path / "cache", tiny_tokenizer)) == 1


def test_order_is_a_permutation_of_each_epoch_and_a_pure_function_of_seed_and_epoch():
    rows = range(997)
    batches = TrainingBatches(rows, masker=None, seed=4, train_batch_size=10)
    orders = []
    for epoch in range(3):
        epochs, indices = batches.examples(epoch * 997, 997)
        assert (epochs == epoch).all() and sorted(indices.tolist()) == list(rows)
        orders.append(indices.tolist())
    assert len({tuple(order) for order in orders}) == 3
    again = TrainingBatches(rows, masker=None, seed=4, train_batch_size=7)
    assert [again.examples(epoch * 997, 997)[1].tolist() for epoch in (2, 0, 1)] == [orders[2], orders[0], orders[1]]
    assert TrainingBatches(rows, masker=None, seed=5, train_batch_size=10).examples(0, 997)[1].tolist() != orders[0]


def test_a_batch_may_reach_over_the_end_of_an_epoch():
    batches = TrainingBatches(range(10), masker=None, seed=4, train_batch_size=10)
    epochs, indices = batches.examples(8, 15)
    assert epochs.tolist() == [0] * 2 + [1] * 10 + [2] * 3
    assert indices[2:12].tolist() == batches.examples(10, 10)[1].tolist() and sorted(indices[2:12].tolist()) == list(range(10))


def test_a_tokenizer_left_truncating_loses_no_token(corpus, tmp_path):
    files = read_data_json(corpus.data_json)["train"]
    tokenizer = load_tokenizer(corpus.vocabulary)
    whole, expected = load(files, tmp_path / "whole", tokenizer), fingerprint(files, tmp_path / "whole", tokenizer)
    tokenizer("今天天气", truncation=True, padding="max_length", max_length=8)
    again, found = load(files, tmp_path / "again", tokenizer), fingerprint(files, tmp_path / "again", tokenizer)
    assert (len(again), found) == (len(whole), expected)
