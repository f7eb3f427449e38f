"""Files that are not plain text are refused by name; a byte-order mark is dropped; one single long line gets a warning."""

import bz2
import gzip
import io
import json
import lzma
import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pretraining.corpus import files
from pretraining.corpus.files import check_lines, file_facts, read_data_json, read_line_blocks, read_lines
from pretraining.corpus.shards import ShardSpec, describe_shards, load_shards
from pretraining.corpus.tokenizer import load_tokenizer, save_tokenizer, tokenizer_sha256
from pretraining.scripts import prepare_corpus
from pretraining.utils import UserError
from tests import tiny

MARK = b"\xef\xbb\xbf"
TEXT = "今天天气很好\n我们一起去公园\n"


def zipped(text: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("a.txt", text)
    return content.getvalue()


def parquet(text: str) -> bytes:
    content = io.BytesIO()
    pq.write_table(pa.table({"text": text.splitlines()}), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "name", "advice"),
    [
        (gzip.compress(TEXT.encode()), "is a gzip file", "gzip -dk"),
        (pa.compress(TEXT.encode(), codec="zstd").to_pybytes(), "is a Zstandard file", "zstd -d"),
        (lzma.compress(TEXT.encode()), "is an xz file", "xz -dk"),
        (bz2.compress(TEXT.encode()), "is a bzip2 file", "bzip2 -dk"),
        (zipped(TEXT), "is a zip file", "unzip"),
        (parquet(TEXT), "is a Parquet file", "prepare_corpus.py --sources "),
        (TEXT.encode("utf-16"), "is in UTF-16", "iconv -f UTF-16"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "is in UTF-16", "iconv -f UTF-16"),
        (TEXT.encode("utf-32"), "is in UTF-32", "iconv -f UTF-32"),
    ],
    ids=["gzip", "zstd", "xz", "bzip2", "zip", "Parquet", "UTF-16 LE", "UTF-16 BE", "UTF-32"],
)
def test_other_formats_are_refused_by_name(content, name, advice, tmp_path):
    path = tmp_path / "my text.txt"
    path.write_bytes(content)
    with pytest.raises(UserError) as refused:
        list(read_lines(path))
    assert str(refused.value).startswith(f"{path}: {name}, not text in UTF-8; ") and advice in str(refused.value)


@pytest.mark.parametrize("text", ["PAR1 是一个标记", "BZh 是一个标记", "PK 开头", "x" * 70_000])
def test_text_that_only_looks_like_one_is_read(text, tmp_path):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    assert list(read_lines(tmp_path / "a.txt")) == [text]


# ---------------------------------------------------------------- JSON lines


def listed(directory: Path, content: bytes) -> Path:
    """A data.json with one text of that content."""
    (directory / "a.txt").write_bytes(content)
    tiny.write_data_json(directory / "data.json", [directory / "a.txt"], [])
    return directory / "data.json"


def json_lines(*objects: dict) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in objects).encode()


ROWS = [{"id": str(number), "text": f"今天天气很好\n我们去公园 {number}"} for number in range(7)]


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (json_lines(*ROWS), "text"),
        (json_lines(*ROWS[:1]), "text"),
        (MARK + json_lines(*ROWS), "text"),
        (b"\n \r\n" + json_lines(*ROWS), "text"),
        (json_lines({"标题": "短", "my content": "今天天气很好"}), "'my content'"),
        (json_lines({"id": 1}), "text"),
        (json_lines(*ROWS[:5]) + "然后是文本\n".encode(), "text"),
    ],
    ids=["many", "one", "byte-order mark", "blank lines first", "key with a blank", "no text", "text behind the fifth"],
)
def test_json_lines_are_refused_with_the_way_to_convert_them(content, key, tmp_path):
    with pytest.raises(UserError) as refused:
        read_data_json(listed(tmp_path, content))
    path = tmp_path / "a.txt"
    assert str(refused.value) == (
        f"{path}: holds JSON objects, not plain text; convert them: mv {path} {tmp_path}/a.jsonl && "
        f"python scripts/prepare_corpus.py --sources {tmp_path}/a.jsonl --text_key {key} --output_dir dataset/corpus"
    )


@pytest.mark.parametrize(
    "content",
    [
        "今天 {}\n",
        "{今天}\n",
        '{"a": 1}\n然后是文本\n',
        "[1, 2]\n",
        '{"a": ' + "[" * 5000 + "\n",
        "{" + '"a": 1, ' * 200_000 + "\n",
        "",
        "\n\n",
    ],
    ids=[
        "a brace inside",
        "no JSON",
        "one line about JSON",
        "a list",
        "nested too deep",
        "an unfinished line of a megabyte",
        "empty",
        "blank",
    ],
)
def test_text_that_is_no_json_lines_is_accepted(content, tmp_path):
    assert len(read_data_json(listed(tmp_path, content.encode()))["train"]) == 1


def test_the_advised_command_converts(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        read_data_json(listed(Path("."), json_lines(*ROWS)))
    rename, _, convert = str(refused.value).split("convert them: ")[1].partition(" && ")
    subprocess.run(shlex.split(rename), check=True)
    prepare_corpus.main(shlex.split(convert)[2:])
    train = read_data_json("dataset/corpus/data.json")["train"]
    assert list(read_lines(train[0].text))[:4] == ["今天天气很好", "我们去公园 0", "", "今天天气很好"]


# ---------------------------------------------------------------- byte-order mark


@pytest.mark.parametrize("block_bytes", [1 << 22, 7])
@pytest.mark.parametrize("text", ["今天\n天气", "今天\n", "\n今天", "a", "", "\ufeff今天\n"])
def test_a_mark_changes_neither_the_lines_nor_their_number(text, block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", block_bytes)
    plain, marked = tmp_path / "plain.txt", tmp_path / "marked.txt"
    plain.write_bytes(text.removeprefix("\ufeff").encode())
    marked.write_bytes(MARK + text.encode())
    expected = list(read_lines(plain)) or [""]
    if text.startswith("\ufeff"):  # one mark is dropped; a second is the text's
        expected[0] = "\ufeff" + expected[0]
    assert list(read_lines(marked)) == expected
    assert file_facts(marked).lines == len(expected)
    assert file_facts(plain).lines == len(list(read_lines(plain)))


def test_a_mark_in_another_place_stays(tmp_path):
    (tmp_path / "a.txt").write_text("今\ufeff天\n\ufeff天气\n", encoding="utf-8")
    assert list(read_lines(tmp_path / "a.txt")) == ["今\ufeff天", "\ufeff天气"]


def test_the_line_number_of_an_error_is_that_of_the_editor(tmp_path):
    (tmp_path / "a.txt").write_bytes(MARK + b"a\nb\xff\n")
    with pytest.raises(UserError, match=r"a\.txt:2: not valid UTF-8"):
        check_lines(tmp_path / "a.txt")


def test_data_json_texts_references_and_vocabulary_may_have_a_mark(corpus, tmp_path):
    """The same rows as without marks; the shard of a file without a mark stays the one that it was."""
    vocabulary = tmp_path / "vocabulary"
    vocabulary.mkdir()
    (vocabulary / "vocab.txt").write_bytes(MARK + (corpus.vocabulary / "vocab.txt").read_bytes())
    tokenizer = load_tokenizer(vocabulary)
    assert tokenizer_sha256(tokenizer) == tokenizer_sha256(load_tokenizer(corpus.vocabulary))

    for suffix in (".txt", ".refs"):
        (tmp_path / f"long{suffix}").write_bytes(MARK + corpus.texts[0].with_suffix(suffix).read_bytes())
    tiny.write_data_json(tmp_path / "data.json", [tmp_path / "long.txt"], [])
    (tmp_path / "data.json").write_bytes(MARK + (tmp_path / "data.json").read_bytes())
    marked = load_shards(read_data_json(tmp_path / "data.json")["train"], ShardSpec(tmp_path / "shards", 32, tokenizer), progress=False)
    plain_files = read_data_json(corpus.data_json)["train"][:1]
    plain = load_shards(plain_files, ShardSpec(tmp_path / "plain", 32, tokenizer), progress=False)
    assert tiny.all_rows(marked) == tiny.all_rows(plain)


def test_a_saved_vocabulary_has_no_mark(corpus, tmp_path):
    (tmp_path / "vocab.txt").write_bytes(MARK + (corpus.vocabulary / "vocab.txt").read_bytes())
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "config.json").write_text('{"max_position_embeddings": 64}')
    save_tokenizer(load_tokenizer(tmp_path), tmp_path / "saved")
    assert (tmp_path / "saved" / "vocab.txt").read_bytes() == (corpus.vocabulary / "vocab.txt").read_bytes()
    assert tokenizer_sha256(load_tokenizer(tmp_path / "saved")) == tokenizer_sha256(load_tokenizer(corpus.vocabulary))


# ---------------------------------------------------------------- one single line


def test_one_single_line_of_megabytes_gets_a_warning(corpus, tmp_path, capsys):
    """Old line ends are the usual cause; the line is used all the same."""
    text, refs = tmp_path / "a.txt", tmp_path / "a.refs"
    text.write_bytes("今天天气很好\r".encode() * 70_000)
    refs.write_text("[]\n")
    spec = ShardSpec(tmp_path / "shards", 32, corpus.tokenizer)
    assert len(describe_shards([files.TextAndRefs(text, refs)], spec)) == 1
    warning = f"warning: {text}: one single line of 1.3 MB; one paragraph per line is expected; if its lines end in \\r, convert them: tr '\\r' '\\n'\n"
    assert capsys.readouterr().err == warning


@pytest.mark.parametrize("content", [b"x" * 900_000, b"x" * 900_000 + b"\n" + b"x" * 900_000, b""])
def test_no_warning_for_short_or_several_lines(content, tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(content)
    check_lines(tmp_path / "a.txt", is_text=True)
    assert capsys.readouterr().err == ""


def test_long_references_get_no_warning(tmp_path, capsys):
    (tmp_path / "a.refs").write_text(str(list(range(300_000))))
    check_lines(tmp_path / "a.refs")
    assert len(next(iter(read_line_blocks(tmp_path / "a.refs")))) == 1 and capsys.readouterr().err == ""


# ---------------------------------------------------------------- ten thousand files


class CountingPath(type(Path())):
    """A path that counts how often it is compared or hashed: a search through all earlier names costs one comparison for each."""

    compared = 0

    def __eq__(self, other):
        CountingPath.compared += 1
        return super().__eq__(other)

    def __hash__(self):
        CountingPath.compared += 1
        return super().__hash__()


@pytest.mark.parametrize("count", [100, 400])
def test_reading_data_json_is_linear_in_the_files(count, tmp_path, monkeypatch):
    texts = [tmp_path / f"text{number}.txt" for number in range(count)]
    for text in texts:
        text.write_text("今天\n", encoding="utf-8")
    tiny.write_data_json(tmp_path / "data.json", texts, [])
    opened = []
    real_open = files.opened
    monkeypatch.setattr(files, "Path", CountingPath)
    monkeypatch.setattr(files, "opened", lambda path: opened.append(path) or real_open(path))
    CountingPath.compared = 0
    assert len(read_data_json(tmp_path / "data.json")["train"]) == count
    assert CountingPath.compared <= 6 * count  # linear; a list of names would take count ** 2 / 2
    assert len(opened) == count + 1


def test_a_pipe_is_read_as_a_file():
    """As /dev/stdin and a shell's <(command) are; no pipe can seek."""
    reader, writer = os.pipe()
    os.write(writer, "\ufeff好\r\n坏".encode())
    os.close(writer)
    assert list(read_lines(f"/dev/fd/{reader}")) == ["好", "坏"]
    os.close(reader)
