"""A start reads no file that it knows; a change of a file is noticed."""

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from pretraining import my_datasets
from pretraining.corpus import files, known_files
from pretraining.corpus.files import TextAndRefs, read_data_json
from pretraining.corpus.known_files import KnownFiles
from pretraining.corpus.shards import ShardSpec, data_fingerprint, describe_shards, load_shards
from tests import tiny

OLD = 1_700_000_000_123_456_789  # nanoseconds: long before the test


def make_old(path: Path) -> None:
    os.utime(path, ns=(OLD, OLD))


@pytest.fixture
def texts(tmp_path, tiny_tokenizer) -> list[TextAndRefs]:
    """Two texts with references, unchanged for years, listed in data.json."""
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, seed in zip(paths, (1, 2)):
        tiny.write_text(path, tiny.paragraphs(20, seed), tiny_tokenizer)
        for file in (path, path.with_suffix(".refs")):
            make_old(file)
    tiny.write_data_json(tmp_path / "data.json", paths, [])
    return [TextAndRefs(path, path.with_suffix(".refs")) for path in paths]


@pytest.fixture
def reads(monkeypatch) -> dict[str, int]:
    """How many bytes of each file were read, by its name; a shard's are hashed through the same function."""
    found: dict[str, int] = {}
    opened = files.opened

    class Counted:
        def __init__(self, file, name):
            self.file, self.name = file, name

        def read(self, *size):
            content = self.file.read(*size)
            found[self.name] = found.get(self.name, 0) + len(content)
            return content

        def __getattr__(self, name):
            return getattr(self.file, name)

    @contextmanager
    def counted(path):
        with opened(path) as file:
            yield Counted(file, "/".join(Path(path).parts[-2:]) if Path(path).suffix == ".arrow" else Path(path).name)

    monkeypatch.setattr(files, "opened", counted)
    return found


def start(place: Path, tokenizer, since: float = 0.0) -> tuple[str, dict]:
    """What train.py does with its data: the fingerprint and all rows."""
    texts = read_data_json(place / "data.json")["train"]
    spec = ShardSpec(place / "cache", 32, tokenizer, since)
    descriptions = describe_shards(texts, spec)
    return data_fingerprint(descriptions), tiny.all_rows(load_shards(texts, spec, descriptions, progress=False))


CONTENTS = {"a.txt", "a.refs", "b.txt", "b.refs", "a/data.arrow", "b/data.arrow"}


def read_to_the_end(reads: dict[str, int]) -> set[str]:
    """The files of which more was read than their first bytes, which tell the format."""
    return {name for name in CONTENTS if reads.get(name, 0) > 64}


def test_a_second_start_reads_no_text_no_references_and_no_shard(texts, tmp_path, tiny_tokenizer, reads):
    first = start(tmp_path, tiny_tokenizer)
    assert read_to_the_end(reads) == {name for name in CONTENTS if not name.endswith(".arrow")}  # a shard is hashed under another name
    reads.clear()
    assert start(tmp_path, tiny_tokenizer) == first
    assert read_to_the_end(reads) == set()


@pytest.mark.parametrize("name", ["a.txt", "b.refs", "cache/b/data.arrow"])
@pytest.mark.parametrize("change", ["touched", "replaced", "edited"])
def test_a_change_is_noticed(change, name, texts, tmp_path, tiny_tokenizer, reads):
    """Replaced: by another file of the same size and time. Edited: in place, of the same size."""
    path = tmp_path / name
    fingerprint, rows = start(tmp_path, tiny_tokenizer)
    status, content = path.stat(), path.read_bytes()
    other = content.replace("今天".encode(), "明天".encode()) if name == "a.txt" else content[:-2] + content[-2:][::-1]
    if name == "b.refs":
        other = content.replace(b", ", b" ,", 1)
    if change == "touched":
        path.touch()
    elif change == "replaced":
        (tmp_path / "new").write_bytes(other)
        os.utime(tmp_path / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").replace(path)
    else:
        with open(path, "r+b") as file:
            file.write(other)
    reads.clear()
    changed, rows_after = start(tmp_path, tiny_tokenizer)
    assert read_to_the_end(reads) >= {name.removeprefix("cache/")}
    assert (changed == fingerprint) == (change == "touched" or name.startswith("cache/"))
    assert (rows_after == rows) == (change == "touched" or name != "a.txt")


def test_a_file_that_was_just_written_is_read_again(texts, tmp_path, tiny_tokenizer, reads):
    """A second change in the same moment would leave its time as it is."""
    content = texts[0].text.read_bytes()
    now = time.time_ns()
    os.utime(texts[0].text, ns=(now, now))
    first = start(tmp_path, tiny_tokenizer)
    with open(texts[0].text, "r+b") as file:
        file.write(content.replace("今天".encode(), "明天".encode()))
    os.utime(texts[0].text, ns=(now, now))
    reads.clear()
    assert start(tmp_path, tiny_tokenizer) != first
    assert "a.txt" in read_to_the_end(reads) and "b.txt" not in read_to_the_end(reads)


def command(name: str, place: Path, corpus) -> list[str]:
    if name == "my_datasets.py":
        return [
            *("--data_files_json", str(place / "data.json"), "--data_cache_dir", str(place / "cache")),
            *("--tokenizer", str(corpus.vocabulary), "--max_seq_length", "32"),
        ]
    changes = {"data_files_json": place / "data.json", "data_cache_dir": place / "cache", "num_train_steps": 1, "ckpt_steps": 1}
    return corpus.arguments(place / f"run{len(list(place.glob('run*')))}", **changes)


@pytest.mark.parametrize("name", ["my_datasets.py", "train.py"])
def test_verify_data_finds_a_change_that_left_size_and_time_as_they_were(name, texts, corpus, tmp_path, reads):
    run = my_datasets.main if name == "my_datasets.py" else tiny.run_train
    run(command(name, tmp_path, corpus))
    shard = tmp_path / "cache/a/data.arrow"
    honest = shard.read_bytes()
    first_row = bytes(start(tmp_path, corpus.tokenizer)[1]["input_ids"][0])
    spoiled = honest.replace(first_row, first_row[::-1], 1)
    assert first_row in honest and spoiled != honest
    for path, other in ((texts[1].text, texts[1].text.read_bytes().replace("今天".encode(), "明天".encode())), (shard, spoiled)):
        status = path.stat()
        with open(path, "r+b") as file:
            file.write(other)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    text_shard = (tmp_path / "cache/b/data.arrow").read_bytes()
    reads.clear()
    if name == "my_datasets.py":  # to train on such a shard would be wrong
        run(command(name, tmp_path, corpus))
        assert read_to_the_end(reads) == set() and shard.read_bytes() == spoiled
    flag = ["--verify_data"] if name == "my_datasets.py" else ["--verify_data", "true"]
    run([*command(name, tmp_path, corpus), *flag])
    assert read_to_the_end(reads) == CONTENTS - {"b/data.arrow"}  # of another text
    assert shard.read_bytes() == honest and (tmp_path / "cache/b/data.arrow").read_bytes() != text_shard


def test_with_verify_data_one_process_reads_and_the_others_believe_it(texts, tmp_path, tiny_tokenizer, reads):
    first = start(tmp_path, tiny_tokenizer)
    began = time.time()
    for expected in (CONTENTS, set()):
        reads.clear()
        assert start(tmp_path, tiny_tokenizer, since=began) == first
        assert read_to_the_end(reads) == expected


def test_of_concurrent_processes_one_reads(texts, tmp_path, tiny_tokenizer, monkeypatch):
    """Threads with their own file locks stand for the processes: the lock is the operating system's."""
    start(tmp_path, tiny_tokenizer)
    (tmp_path / "cache/.known/files.json").unlink()
    hashed, file_facts = [], known_files.file_facts

    def slow(path):
        hashed.append(path)
        time.sleep(0.05)
        return file_facts(path)

    monkeypatch.setattr(known_files, "file_facts", slow)
    results: list = []
    threads = [threading.Thread(target=lambda: results.append(start(tmp_path, tiny_tokenizer))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4 and all(result == results[0] for result in results)
    assert len(hashed) == len(set(hashed)) == len(CONTENTS)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: b"\xff" + content,
        lambda content: b"[]",
        lambda content: b'{"format": 1}',
        lambda content: content.replace(b'"format": 1', b'"format": 9'),
        lambda content: content.replace(b'"lines"', b"7"),
        lambda content: content.replace(b'["lines"]', b"7"),
        lambda content: b'{"format": 1, "files": {"a": 3}}',
        lambda content: b'{"format": 1, "files": {"a": {"b": [1, 2, 3, 4, 5]}}}',
        lambda content: b"[" * 100_000,
    ],
)
def test_a_damaged_memory_is_ignored_and_made_again(damage, texts, tmp_path, tiny_tokenizer, reads):
    first = start(tmp_path, tiny_tokenizer)
    memory = tmp_path / "cache/.known/files.json"
    assert damage(memory.read_bytes()) != memory.read_bytes()
    memory.write_bytes(damage(memory.read_bytes()))
    reads.clear()
    assert start(tmp_path, tiny_tokenizer) == first
    assert read_to_the_end(reads) == CONTENTS
    reads.clear()
    assert start(tmp_path, tiny_tokenizer) == first
    assert read_to_the_end(reads) == set()


def test_nothing_is_made_before_the_cache_exists(texts, tmp_path, tiny_tokenizer):
    describe_shards(texts, ShardSpec(tmp_path / "cache", 32, tiny_tokenizer))
    assert not (tmp_path / "cache").exists()


def test_files_of_several_machines_under_one_path_are_kept_beside_each_other(tmp_path):
    """But not without end."""
    (tmp_path / "cache").mkdir()
    path = tmp_path / "a"
    for number in range(12):
        path.write_text(f"{number}\n" * (number + 1))
        make_old(path)
        known = KnownFiles(tmp_path / "cache")
        with known.learning():
            known.facts(path)
    remembered = KnownFiles(tmp_path / "cache").remembered
    assert sorted(int(stamp.split()[0]) for stamp in remembered[str(path)]) == sorted(len(f"{n}\n" * (n + 1)) for n in range(4, 12))
