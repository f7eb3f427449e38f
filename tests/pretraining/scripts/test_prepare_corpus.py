"""prepare_corpus.py: every document of every kind of source once, in one line what is wrong, the same bytes after any kill."""

import bz2
import csv
import gzip
import json
import lzma
import multiprocessing
import os
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.corpus import sources
from pretraining.corpus.files import check_lines, read_data_json
from tests import tiny, workplace

SCRIPT = "scripts/prepare_corpus.py"
DOCUMENTS = ["春天来了\n花开了", "我们在学校学习", "图书馆里有很多书", "今天下雨，\u2028带伞\x85", "老师说：“早”", "the end"]
TEXT = "".join(f"{document}\n\n" for document in DOCUMENTS)
JSON_LINES = "".join(f"{json.dumps({'id': 1, 'text': document})}\n" for document in DOCUMENTS)
PACK = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


def write_csv(path: Path) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *enumerate(DOCUMENTS)])


def write_dataset(path: Path) -> None:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    Dataset.from_dict({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS}).save_to_disk(str(path))


SOURCES: dict[str, Callable[[Path], object]] = {
    **{f"a.txt{end}": lambda path, pack=pack: path.write_bytes(pack(TEXT.encode())) for end, pack in PACK.items()},
    **{f"a.jsonl{end}": lambda path, pack=pack: path.write_bytes(pack(JSON_LINES.encode())) for end, pack in PACK.items()},
    "crlf.txt": lambda path: path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()),
    "no-end.txt": lambda path: path.write_bytes(TEXT.rstrip("\n").encode()),
    "a.csv": write_csv,
    "a.parquet": lambda path: pq.write_table(pa.table({"id": list(range(len(DOCUMENTS))), "text": DOCUMENTS}), path, row_group_size=2),
    "dataset": write_dataset,
}


@pytest.fixture
def run(tmp_path, capfd) -> Callable[..., workplace.Ended]:
    """Runs the command below tmp_path; the keywords are arguments."""

    def call(*names: str, **arguments) -> workplace.Ended:
        line = ["--sources", *names, "--output_dir", "out"]
        for name, value in arguments.items():
            line += [f"--{name}", *([] if value is True else [str(value)])]
        return workplace.run_here(SCRIPT, line, tmp_path, capfd)

    return call


def written(place: Path, split: str = "train") -> str:
    files = read_json(place / "out/data.json")[split][f"{split}_files"]
    return "".join((place / name).read_bytes().decode() for name in files)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SOURCES)
def test_each_document_becomes_its_lines_and_a_blank_line(name, run, tmp_path):
    SOURCES[name](tmp_path / name)
    ended = run(name)
    assert ended.status == 0 and ended.out.splitlines() == [
        "6 documents read from 1 sources",
        "6 in 1 train files, 0.0 MB; 0 dev documents",
        "next: python run_chinese_ref.py --data_files_json out/data.json",
    ]
    assert written(tmp_path) == TEXT


def test_the_next_commands_read_what_was_written(run, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    assert run("a.txt", dev_documents=2).status == 0
    monkeypatch.chdir(tmp_path)
    files = read_data_json("out/data.json")
    assert [len(files[split]) for split in ("train", "dev")] == [1, 1]
    assert str(files["dev"][0].refs) == "out/ref_files/dev_ref.txt"
    for file in (*files["train"], *files["dev"]):
        check_lines(file.text)


@pytest.mark.parametrize("encoding", ["gbk", "gb18030", "big5", "utf-16"])
def test_other_encodings(encoding, run, tmp_path):
    text = "春天\n花\n\n書本\n\n"
    (tmp_path / "a.txt").write_text(text.replace("書", "书") if encoding == "gbk" else text.replace("书", "書"), encoding=encoding)
    assert run("a.txt", encoding=encoding).status == 0
    assert written(tmp_path).replace("书", "書") == text


def test_files_folders_and_patterns(run, tmp_path):
    for name in ("b/2.txt", "b/1.jsonl.gz", "b/notes.md", "c1.csv", "c2.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name == "b/notes.md":
            (tmp_path / name).write_text("no source")
        elif name.startswith("c"):
            (tmp_path / name).write_text(f"text\n{name}\n")
        else:
            content = {"b/2.txt": b"two\n", "b/1.jsonl.gz": gzip.compress(b'{"text": "one"}\n')}[name]
            (tmp_path / name).write_bytes(content)
    assert run("c2.csv", "b", "c1*").status == 0
    assert written(tmp_path) == "c2.csv\n\none\n\ntwo\n\nc1.csv\n\n"


def test_what_is_left_out_is_counted(run, tmp_path):
    texts = ["春天来了", "春天来了", "", " \n ", "短", "mostly Latin letters 春", "花开了花开了"]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps({'body': text})}\n" for text in texts))
    ended = run("a.jsonl", text_key="body", min_characters=4, min_chinese_share=0.5, deduplicate=True)
    assert ended.out.splitlines()[:6] == [
        "7 documents read from 1 sources",
        "2 in 1 train files, 0.0 MB; 0 dev documents",
        "2 left out: empty",
        "1 left out: equal to an earlier one",
        "1 left out: not Chinese",
        "1 left out: short",
    ]
    assert written(tmp_path) == "春天来了\n\n花开了花开了\n\n"


@pytest.mark.parametrize("order", [1, -1])
def test_dev_documents_are_never_in_the_train_files(order, run, tmp_path):
    texts = [f"第{number % 40}篇文章" for number in range(100)][::order]
    (tmp_path / "a.txt").write_text("".join(f"{text}\n\n" for text in texts), encoding="utf-8")
    assert run("a.txt", dev_documents=10).status == 0
    train, dev = written(tmp_path).split("\n\n")[:-1], written(tmp_path, "dev").split("\n\n")[:-1]
    assert len(dev) == len(set(dev)) == 10 and not set(dev) & set(train) and set(train) | set(dev) == set(texts)
    assert sorted(dev)[:3] == ["第11篇文章", "第21篇文章", "第22篇文章"]  # the smallest hashes, in any order of the texts


BROKEN = {
    "truncated gz": ("a.txt.gz", gzip.compress(TEXT.encode() * 500)[:-200], r"a.txt.gz:\d+: is damaged or cut off "),
    "truncated xz": ("a.jsonl.xz", lzma.compress(JSON_LINES.encode() * 500)[:-200], r"a.jsonl.xz:\d+: is damaged or cut off "),
    "truncated zst": ("a.txt.zst", PACK[".zst"](TEXT.encode() * 500)[:-20], r"a.txt.zst:\d+: is damaged or cut off "),
    "no gz": ("a.txt.gz", TEXT.encode(), "a.txt.gz:1: is damaged or cut off "),
    "no JSON": ("a.jsonl", b'{"text": "one"}\nno JSON\n', "a.jsonl:2: is not JSON; each line must be one JSON object"),
    "no object": ("a.jsonl", b'{"text": "one"}\n[1]\n', "a.jsonl:2: is not a JSON object"),
    "no key": ("a.jsonl", b'{"text": "one"}\n\n{"body": "two"}\n', "a.jsonl:3: has no 'text', but ['body']; name the right --text_key"),
    "no text": ("a.jsonl", b'{"text": "one"}\n{"text": 2}\n', "a.jsonl:2: its 'text' is not a text"),
    "surrogate": ("a.jsonl", b'{"text": "one"}\n{"text": "\\ud800"}\n', "a.jsonl:2: holds half of a surrogate pair"),
    "NUL": ("a.txt", b"one\n\ntwo\0\n", "a.txt:3: holds a NUL character"),
    "encoding": ("a.txt", b"one\n\n" + "春天".encode("gb18030"), "a.txt:3: is not in utf-8; name the right --encoding"),
    "no column": ("a.csv", b"id,body\n1,one\n", "a.csv:1: there is no column 'text', but ['id', 'body']; name the right --text_key"),
    "few columns": ("a.csv", b"id,text\n1,one\n2\n", "a.csv:3: has too few columns"),
    "quote": ("a.csv", b'id,text\n1,one\n2,"two" more\n', "a.csv:3: is not CSV "),
    "no Parquet": ("a.parquet", b"PAR1 nothing", "a.parquet: is damaged or cut off "),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_is_one_line_or_left_out(what, run, tmp_path):
    name, content, says = BROKEN[what]
    (tmp_path / name).write_bytes(content)
    (tmp_path / "good.txt").write_text("good\n")
    ended = run(name, "good.txt")
    line = ended.err.strip().split("\n")[-1]
    assert ended.status == 2 and line.startswith("error: ") and line.endswith(", or leave it out with --skip_broken")
    assert re.match(says if "\\d" in says else re.escape(says), line.removeprefix("error: "))
    assert not (tmp_path / "out/data.json").exists()
    ended = run(name, "good.txt", skip_broken=True)
    assert ended.status == 0 and "1 left out: broken\n" in ended.out
    assert written(tmp_path).endswith("good\n\n") and "two" not in written(tmp_path)


@pytest.mark.parametrize(
    ("names", "arguments", "says"),
    [
        (["nowhere.txt"], {}, "nowhere.txt: no such file"),
        (["*.nothing"], {}, "*.nothing: no file has such a name"),
        (["a.md"], {}, "a.md: is no .txt, .jsonl, .json, .csv, plain or with .gz, .xz, .bz2, .zst, and no .parquet file"),
        (["empty"], {}, "empty: has no .txt, .jsonl, .json, .csv or .parquet file"),
        (["a.txt", "*.txt"], {}, "a.txt: is named twice"),
        (["lines.txt"], {}, "lines.txt: holds JSON objects, not plain text"),
        (["a.txt"], {"encoding": "klingon"}, "--encoding klingon: is no encoding of Chinese text"),
        (["a.txt"], {"encoding": "ascii"}, "--encoding ascii: is no encoding of Chinese text"),
        (["a.txt"], {"data_files_json": "a.md"}, "a.md: was not made by this command"),
        (["a.txt"], {"min_characters": 1000}, "out: no document is left for the train files"),
    ],
)
def test_what_a_user_can_do_wrong(names, arguments, says, run, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "lines.txt").write_text(JSON_LINES)
    (tmp_path / "a.md").write_text("notes")
    (tmp_path / "empty").mkdir()
    ended = run(*names, **arguments)
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith(f"error: {says}")
    assert not list(tmp_path.glob("out/*.txt"))


@pytest.mark.parametrize("kill_at", range(1, 9))
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(kill_at, run, tmp_path):
    """Killed at each write of a file: state, train file, state, train file, state, dev file, list, state."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text("".join(f"第{n % 30}篇{name if n < 25 else ''}\n\n" for n in range(40)), encoding="utf-8")
    names, arguments = ("a.txt", "b.txt", "c.txt"), {"file_megabytes": 0.0008, "dev_documents": 5, "deduplicate": True}
    assert run(*names, **arguments).status == 0
    expected = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if not tiny.is_lock(path)}
    assert len(expected) == 5 and ".prepare_corpus.json" in expected
    (tmp_path / "out").rename(tmp_path / "whole")
    process = multiprocessing.get_context("fork").Process(target=lambda: (die_at(kill_at), run(*names, **arguments)))
    process.start()
    process.join()
    assert process.exitcode == 9 and (tmp_path / "out/data.json").exists() == (kill_at == 8)
    ended = run(*names, **arguments)
    assert ended.status == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if not tiny.is_lock(path)} == expected
    again = run(*names, **arguments)
    assert (again.err, again.out) == ("", ended.out)  # nothing is left to do


def die_at(number: int) -> None:
    """Ends this process at a write, as SIGKILL does."""
    count, replace = [], os.replace

    def counted(source, target):
        count.append(target)
        if len(count) == number:
            os._exit(9)
        replace(source, target)

    os.replace = counted


def test_other_settings_or_sources_are_refused(run, tmp_path):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    assert run("a.txt").status == 0
    before = workplace.entries(tmp_path / "out")
    says = "error: out: was made with other settings or of other sources; choose another --output_dir, or remove it\n"
    assert run("a.txt", deduplicate=True).err == says
    (tmp_path / "a.txt").write_text(TEXT + "more\n", encoding="utf-8")
    assert run("a.txt").err == says
    assert workplace.entries(tmp_path / "out") == before


def test_a_long_text_without_blank_lines_is_cut_at_line_ends(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_TEXT_DOCUMENT", 12)
    (tmp_path / "a.txt").write_text("春天来了\n" * 10, encoding="utf-8")
    assert run("a.txt").out.startswith("4 documents read")
    assert written(tmp_path) == "春天来了\n春天来了\n春天来了\n\n" * 3 + "春天来了\n\n"
