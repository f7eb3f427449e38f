"""Shards: no token lost, words marked exactly, the same for any number of workers, rebuilt for any difference, there whole or not at all."""

import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from transformers import BertTokenizer

from pretraining import my_datasets
from pretraining.corpus import files, shard_parts, shards
from pretraining.corpus.batches import TrainingBatches, masked_batch
from pretraining.corpus.files import TextAndRefs, read_data_json
from pretraining.corpus.locks import exclusive
from pretraining.corpus.masking import WholeWordMasker
from pretraining.corpus.rows import Rows
from pretraining.corpus.shard_parts import ShardMaker
from pretraining.corpus.shards import ShardSpec, data_fingerprint, describe_shards, load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.corpus.tokens import TokenBlock
from pretraining.utils import UserError
from tests import tiny

PRETRAINING = Path(my_datasets.__file__).parent
LENGTH = 32


def load(files: list[TextAndRefs], cache: Path, tokenizer, length: int = LENGTH, **options) -> Rows:
    return load_shards(files, ShardSpec(cache, length, tokenizer), progress=False, **options)


def load_unfilled(files: list[TextAndRefs], cache: Path, tokenizer, length: int = LENGTH) -> dict[str, list[list]]:
    """All rows, the last of them short."""
    return tiny.all_rows(load(files, cache, tokenizer, length, fill_last_row=False))


def fingerprint(files: list[TextAndRefs], cache: Path, tokenizer, length: int = LENGTH) -> str:
    return data_fingerprint(describe_shards(files, ShardSpec(cache, length, tokenizer)))


def shards_in(cache: Path) -> dict[str, bytes]:
    """Every file of a cache but what is known of other files, which depends on time and place."""
    return {name: content for name, content in tiny.snapshot(cache).items() if not name.startswith(".known/")}


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
def builds(monkeypatch, tmp_path) -> Callable[[], list[str]]:
    """Gives the names of the shards that were built, in order, by this process or its children."""
    log, write_rows = tmp_path / "builds.log", ShardMaker._write_rows

    def logged(maker, part, *rest):
        with open(log, "a") as file:
            file.write(f"{part.directory.relative_to(maker.spec.cache_dir)}\n")
        time.sleep(0.05)
        return write_rows(maker, part, *rest)

    monkeypatch.setattr(ShardMaker, "_write_rows", logged)
    return lambda: log.read_text().split() if log.exists() else []


def joined(texts: list[TextAndRefs], tokenizer) -> tuple[list[int], list[bool]]:
    """The tokens and flags of several files, one after the other."""
    found = [tokens_and_flags(file, tokenizer) for file in texts]
    return [token for ids, _ in found for token in ids], [flag for _, flags in found for flag in flags]


def cut(values: list, length: int) -> list[list]:
    return [values[first : first + length] for first in range(0, len(values), length)]


@pytest.mark.parametrize("block_bytes", [1 << 22, 100])
@pytest.mark.parametrize("length", [4, 7, 32, 64])
def test_rows_are_all_tokens_and_the_first_again_up_to_a_full_row(length, block_bytes, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", block_bytes)
    texts = read_data_json(corpus.data_json)["train"]
    rows = load(texts, tmp_path, corpus.tokenizer, length)
    ids, flags = joined(texts, corpus.tokenizer)
    missing = -len(ids) % (length - 2)
    expected = {"input_ids": cut(ids + ids[:missing], length - 2), "continues": cut(flags + flags[:missing], length - 2)}
    assert tiny.all_rows(rows) == expected
    assert (rows.tokens, len(rows)) == (len(ids), len(expected["input_ids"]))
    for file in texts:
        stored, own = json.loads((tmp_path / file.text.stem / "shard.json").read_text()), len(tokens_and_flags(file, corpus.tokenizer)[0])
        assert (stored["tokens"], stored["rows"]) == (own, -(-own // (length - 2)))

    short = load(texts, tmp_path, corpus.tokenizer, length, fill_last_row=False)  # for evaluation
    assert tiny.all_rows(short) == {"input_ids": cut(ids, length - 2), "continues": cut(flags, length - 2)}


def test_a_corpus_shorter_than_a_row_is_repeated(tiny_tokenizer, tmp_path):
    texts = [
        write(tmp_path, name, [line], [[2]] if line else [[]], tiny_tokenizer)
        for name, line in (("a", "今天"), ("empty", ""), ("b", "我们北"))
    ]
    rows = load(texts, tmp_path / "cache", tiny_tokenizer, length=15)
    text = "".join(tiny_tokenizer.convert_ids_to_tokens(tiny.all_rows(rows)["input_ids"][0]))
    assert (text, len(rows), rows.tokens) == ("今天我们北今天我们北今天我", 1, 5)
    assert tiny.all_rows(rows)["continues"] == [[False, True, False, True, False] * 2 + [False, True, False]]
    with pytest.raises(IndexError, match="rows 0 to 1 of 1"):
        rows[[0, 1]]


def test_hundreds_of_small_files_give_the_rows_of_one_big_file(tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fsync_path", lambda path: None)  # most of the time
    lines = tiny.paragraphs(400, seed=5)
    small = [write(tmp_path / "small", f"{number}", [line], None, tiny_tokenizer) for number, line in enumerate(lines)]
    big = write(tmp_path, "big", lines, None, tiny_tokenizer)
    of_small, of_big = (load(texts, tmp_path / name, tiny_tokenizer, 128) for name, texts in (("many", small), ("one", [big])))
    assert tiny.all_rows(of_small) == tiny.all_rows(of_big)
    assert len(of_small) == len(of_big) < 200 and of_small.tokens == of_big.tokens


def test_training_batches_have_no_attention_mask_and_evaluation_sees_no_token_twice(corpus, tmp_path):
    texts = read_data_json(corpus.data_json)["train"]
    masker = WholeWordMasker(corpus.tokenizer, LENGTH, 0.15, seed=1)
    rows = load(texts, tmp_path, corpus.tokenizer)
    assert rows.tokens % (LENGTH - 2)  # else this test shows nothing
    batches = TrainingBatches(rows, masker, seed=1, train_batch_size=len(rows))
    assert not any("attention_mask" in batches[number] for number in range(3))
    short = load(texts, tmp_path, corpus.tokenizer, fill_last_row=False)
    indices = np.arange(len(short))
    assert int(masked_batch(short, masker, 0 * indices, indices)["attention_mask"].sum()) == short.tokens + 2 * len(short)


def test_the_first_token_of_a_file_continues_no_word_of_the_file_before(tiny_tokenizer, tmp_path):
    """No BERT tokenizer begins a line with a piece; one with tokens of its own could."""
    tokenizer = tiny.write_vocabulary(tmp_path / "vocabulary")
    tokenizer.add_tokens(["##ing"])
    texts = [write(tmp_path, "a", ["我们"], [[2]], tokenizer), write(tmp_path, "b", ["", "##ing##ing"], [[], []], tokenizer)]
    rows = load(texts, tmp_path / "cache", tokenizer, 6)
    assert [tokenizer.convert_ids_to_tokens(row) for row in tiny.all_rows(rows)["input_ids"]] == [["我", "们", "##ing", "##ing"]]
    assert tiny.all_rows(rows)["continues"] == [[False, True, False, True]]


def test_words_and_pieces_at_exact_places(tiny_tokenizer, tmp_path):
    file = write(tmp_path, "text", ["我喜欢北京", "", "training火车站", "天气"], [[3, 5], [], [4, 5], []], tiny_tokenizer)
    rows = load_unfilled([file], tmp_path / "cache", tiny_tokenizer)
    assert len(rows["input_ids"]) == 1
    assert tiny_tokenizer.convert_ids_to_tokens(rows["input_ids"][0]) == [*"我喜欢北京", "train", "##ing", *"火车站天气"]
    assert rows["continues"][0] == [False, False, True, False, True, False, True, False, True, True, False, False]


def test_lines_end_at_newline_alone(tiny_tokenizer, tmp_path):
    """U+2028, U+0085, VT and FF stay inside their line; a carriage return before the newline goes; the last line needs no newline."""
    text, refs = tmp_path / "text.txt", tmp_path / "text.refs"
    text.write_bytes("今天\u2028天气\u0085很\v好\f\r\n我们\r\n\n北京".encode())
    refs.write_bytes(b"[2, 4]\r\n[2]\n[]\n[2]")
    rows = load_unfilled([TextAndRefs(text, refs)], tmp_path / "cache", tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(rows["input_ids"][0]) == list("今天天气很好我们北京")
    assert np.flatnonzero(rows["continues"][0]).tolist() == [1, 3, 7, 9]


@pytest.mark.parametrize(("size", "dtype"), [(200, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")])
def test_ids_have_the_smallest_type_that_holds_the_vocabulary(size, dtype, tmp_path):
    directory = tmp_path / "vocabulary"
    directory.mkdir()
    tokens = [*tiny.SPECIAL, *"今天气"]
    tokens += [f"[unused{i + 2}]" for i in range(size - len(tokens) - 1)] + ["很"]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = BertTokenizer.from_pretrained(str(directory))
    file = write(tmp_path, "text", ["今天很"], [[2]], tokenizer)
    rows = load_unfilled([file], tmp_path / "cache", tokenizer)
    read = load([file], tmp_path / "cache", tokenizer)[[0]]
    assert read["input_ids"].dtype == dtype and read["continues"].dtype == bool
    assert rows["input_ids"][0] == [6, 7, size - 1]


def test_typed_special_tokens_keep_their_place(tiny_tokenizer, tmp_path):
    file = write(tmp_path, "text", ["今天[MASK]天气"], [[2, 5]], tiny_tokenizer)
    rows = load_unfilled([file], tmp_path / "cache", tiny_tokenizer)
    assert tiny_tokenizer.convert_ids_to_tokens(rows["input_ids"][0]) == ["今", "天", "[MASK]", "天", "气"]
    assert rows["continues"][0] == [False, True, False, False, True]


def test_truncation_and_padding_saved_with_a_tokenizer_lose_nothing(tiny_tokenizer, tmp_path):
    """A tokenizer.json often carries the truncation and padding of the program that wrote it."""
    directory = tmp_path / "vocabulary"
    saved = tiny.write_vocabulary(directory)
    saved.backend_tokenizer.enable_truncation(4)
    saved.backend_tokenizer.enable_padding(length=6)
    saved.backend_tokenizer.save(str(directory / "tokenizer.json"))
    file = write(tmp_path, "text", ["今天天气很好", "我"], [[], []], tiny_tokenizer)
    rows = load_unfilled([file], tmp_path / "cache", load_tokenizer(directory))
    assert tiny_tokenizer.convert_ids_to_tokens(rows["input_ids"][0]) == list("今天天气很好我")


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
    files = shards_in(tmp_path / "1")
    assert files == shards_in(tmp_path / "3")
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
    assert builds() == ["text"] and first == second and tiny.snapshot(tmp_path / "cache") == before


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
    rows, after = load_unfilled([changeable], cache, tokenizer, length), fingerprint([changeable], cache, tokenizer, length)
    assert builds() == ["text", "text"]
    assert (before == after) == (what in ("truncated", "no description", "description of something else"))
    ids, flags = tokens_and_flags(changeable, tokenizer)
    assert rows == {"input_ids": cut(ids, length - 2), "continues": cut(flags, length - 2)}


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

    shard_parts.read_token_blocks = one_block
    load([file], cache, tokenizer)


def test_a_killed_build_leaves_nothing_under_the_final_name(changeable, tiny_tokenizer, tmp_path, builds):
    cache = tmp_path / "cache"
    assert in_a_forked_process(build_and_die, changeable, cache, tiny_tokenizer) == 9
    assert not (cache / "text").exists() and (cache / ".text.partial").exists()
    load([changeable], cache, tiny_tokenizer)
    assert sorted(path.name for path in cache.iterdir()) == [".known", ".lock", ".text.lock", "text"]
    load([changeable], tmp_path / "undisturbed", tiny_tokenizer)
    assert tiny.snapshot(cache / "text") == tiny.snapshot(tmp_path / "undisturbed" / "text")


def test_a_killed_rebuild_leaves_the_old_shard_whole(changeable, tiny_tokenizer, tmp_path, builds):
    cache = tmp_path / "cache"
    load([changeable], cache, tiny_tokenizer)
    before = tiny.snapshot(cache / "text")
    changeable.refs.write_text("[2]\n[2]\n")
    assert in_a_forked_process(build_and_die, changeable, cache, tiny_tokenizer) == 9
    assert tiny.snapshot(cache / "text") == before
    rows = load_unfilled([changeable], cache, tiny_tokenizer)
    assert rows["continues"][0] == tokens_and_flags(changeable, tiny_tokenizer)[1]


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
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [".lock", ".text.lock"]


def test_an_error_does_not_remove_a_lock_for_which_another_process_waits(changeable, tiny_tokenizer, tmp_path):
    """The one that waits has opened the file before; if it were removed, it and a third process would both get a lock."""
    cache = tmp_path / "cache"
    cache.mkdir()
    locks = [cache / ".lock", cache / ".text.lock"]
    for lock in locks:
        lock.touch()
    before = [lock.stat().st_ino for lock in locks]
    changeable.refs.write_text("[2]\n[9]\n")
    with pytest.raises(UserError, match="lies outside"):
        load([changeable], cache, tiny_tokenizer)
    assert [lock.stat().st_ino for lock in locks] == before


def load_and_compare(file: TextAndRefs, cache: Path, tokenizer, expected: dict) -> None:
    os._exit(0 if load_unfilled([file], cache, tokenizer) == expected else 1)


def test_of_concurrent_processes_one_builds(changeable, tiny_tokenizer, tmp_path, builds):
    ids, flags = tokens_and_flags(changeable, tiny_tokenizer)
    expected = {"input_ids": cut(ids, LENGTH - 2), "continues": cut(flags, LENGTH - 2)}
    arguments = (changeable, tmp_path / "cache", tiny_tokenizer, expected)
    processes = [multiprocessing.get_context("fork").Process(target=load_and_compare, args=arguments) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert builds() == ["text"]


def test_another_process_that_rebuilds_does_not_change_rows_already_loaded(changeable, tiny_tokenizer, tmp_path, monkeypatch):
    """Two runs of different length share a cache: the other's shard comes right after this one has let go of the lock."""
    cache, in_between = tmp_path / "cache", []

    @contextmanager
    def followed(*arguments, **keywords):
        with exclusive(*arguments, **keywords):
            yield
        if not in_between:
            in_between.append("begun")
            in_between.append(load_unfilled([changeable], cache, tiny_tokenizer, 5))

    monkeypatch.setattr(shards, "exclusive", followed)
    rows = load_unfilled([changeable], cache, tiny_tokenizer, 8)
    assert [len(row) for row in rows["input_ids"]] == [6, 2]
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
