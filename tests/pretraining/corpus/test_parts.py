"""Parts: a function of the content alone; the same references and rows as of a whole file; only what is missing is made."""

import hashlib
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pretraining.corpus import parts as parts_module
from pretraining.corpus.executor_settings import PART_BYTES, Executor
from pretraining.corpus.files import FileFacts, TextAndRefs
from pretraining.corpus.parts import Part, divide, divide_by_lines, require_unchanged
from pretraining.corpus.reference_files import ReferenceMaker
from pretraining.corpus.shard_parts import ShardMaker
from pretraining.corpus.shards import ShardSpec, build_shards, data_fingerprint, describe_shards, load_shards
from pretraining.utils import UserError
from tests import tiny, workplace


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


TEXT = b"ab\ncd\nefgh\ni"
PARTS = [Part(0, 6, 1, 2, sha256(b"ab\ncd\n")), Part(6, 5, 3, 1, sha256(b"efgh\n")), Part(11, 1, 4, 1, sha256(b"i"))]


@pytest.mark.parametrize("block_bytes", [1, 2, 3, 5, 1 << 22])
def test_a_part_ends_at_the_first_line_end_at_or_after_its_size(block_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(parts_module, "BLOCK_BYTES", block_bytes)
    (tmp_path / "text").write_bytes(TEXT)
    facts = FileFacts(sha256(TEXT), 4)
    assert divide(tmp_path / "text", 4) == (facts, PARTS)
    assert divide(tmp_path / "text", 100) == (facts, [Part(0, 12, 1, 4, sha256(TEXT))])
    assert [part.lines for part in divide(tmp_path / "text", 1)[1]] == [1, 1, 1, 1]
    assert divide_by_lines(tmp_path / "text", [2, 1, 1]) == (facts, PARTS)


def test_an_empty_file_has_no_parts(tmp_path):
    (tmp_path / "text").touch()
    assert divide(tmp_path / "text", 4) == divide_by_lines(tmp_path / "text", []) == (FileFacts(sha256(b""), 0), [])


@pytest.mark.parametrize("more", [b"j", b"j\n", b"\n", b"\nklmnopq\nr\n"])
def test_what_is_appended_changes_the_last_part_only(more, tmp_path):
    (tmp_path / "text").write_bytes(TEXT + more)
    assert divide(tmp_path / "text", 4)[1][:2] == PARTS[:2]


def test_a_part_that_has_changed_is_noticed(tmp_path):
    (tmp_path / "text").write_bytes(TEXT + b" more")
    require_unchanged(tmp_path / "text", PARTS[1])
    (tmp_path / "text").write_bytes(TEXT.replace(b"g", b"G"))
    require_unchanged(tmp_path / "text", PARTS[0])
    with pytest.raises(UserError, match="text: was changed while it was read; run again"):
        require_unchanged(tmp_path / "text", PARTS[1])


# ---------------------------------------------------------------- references

LINES = [line for line in tiny.paragraphs(30, seed=4) for line in (line, "")]
PART_MEGABYTES = 0.0005


@pytest.fixture(scope="module")
def ltp(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("ltp")
    (place / "segmented.txt").write_text(
        "".join(f"{' '.join(tiny.WORDS[first::3])}\n" for first in range(len(tiny.WORDS))), encoding="utf-8"
    )
    workplace.write_legacy_ltp(place / "ltp", place / "segmented.txt")
    return place / "ltp"


@pytest.fixture
def place(corpus, ltp, tmp_path) -> Path:
    """A directory with a.txt of many parts and dev.txt of one, the list of them, and both models."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "a.txt").write_text("".join(f"{line}\n" for line in LINES), encoding="utf-8")
    (place / "dev.txt").write_text("老师\n", encoding="utf-8")
    workplace.write_data_json(place, ["a.txt"], ["dev.txt"])
    shutil.copytree(ltp, place / "ltp")
    shutil.copytree(corpus.vocabulary, place / "vocabulary")
    return place


@pytest.fixture
def run(place, capfd) -> Callable[..., workplace.Ended]:
    """Makes references in small parts; the keywords replace arguments."""

    def call(*more: str, **changes) -> workplace.Ended:
        line = workplace.command_line("run_chinese_ref.py", **{"part_megabytes": PART_MEGABYTES, **changes})
        return workplace.run_here("run_chinese_ref.py", [*line, *more], place, capfd)

    return call


@pytest.fixture
def made(monkeypatch, tmp_path) -> Callable[[], list[int]]:
    """Gives the numbers of the parts of a.txt that were made since the last call, in order, by this process or its children."""
    log, references, rows = tmp_path / "log", ReferenceMaker._write, ShardMaker._write_rows

    def note(text: Path, part: Part) -> None:
        if text.stem == "a":
            with open(log, "a") as file:
                first_lines = [small.first_line for small in divide(text, int(PART_MEGABYTES * 1e6))[1]]
                file.write(f"{first_lines.index(part.first_line)}\n")

    def write(maker, work, report):
        note(work.text, work.part)
        references(maker, work, report)

    def write_rows(maker, part, *rest):
        note(part.file.text, part.text)
        return rows(maker, part, *rest)

    monkeypatch.setattr(ReferenceMaker, "_write", write)
    monkeypatch.setattr(ShardMaker, "_write_rows", write_rows)

    def numbers() -> list[int]:
        found = list(map(int, log.read_text().split())) if log.exists() else []
        log.unlink(missing_ok=True)
        return found

    return numbers


def outputs(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.glob("*.refs")}


def test_the_references_of_parts_are_those_of_the_whole_file(place, run, made):
    assert run(part_megabytes=1).status == 0
    whole = outputs(place)
    assert made() == [0] and list(json.loads((place / "a.refs.json").read_text())) == [
        *("format", "ltp_sha256", "tokenizer_sha256", "text_sha256", "lines", "refs_sha256")
    ]
    assert run("--overwrite").status == 0
    noted = json.loads((place / "a.refs.json").read_text())["parts"]
    assert made() == list(range(len(noted))) and len(noted) > 5
    assert outputs(place) == whole and sum(size for _, size, _ in noted) == len(whole["a.refs"])
    assert run().out.count("up to date") == 2
    assert not list(place.glob(".*.parts"))


def test_only_the_end_of_a_longer_text_is_segmented(place, run, made):
    run()
    parts = made()
    with open(place / "a.txt", "a", encoding="utf-8") as text:
        text.write("他们喜欢北京\n" * 40)
    assert run().status == 0
    assert made()[0] == parts[-1]
    longer = outputs(place)
    run("--overwrite")
    assert outputs(place) == longer


@pytest.mark.parametrize("what", ["references", "sizes", "kinds", "other models"])
def test_references_of_parts_that_cannot_be_trusted_are_made_again(what, place, run, made):
    run()
    parts, note = made(), place / "a.refs.json"
    noted = json.loads(note.read_text())
    if what == "references":
        content = (place / "a.refs").read_bytes()
        (place / "a.refs").write_bytes(content.replace(b"2", b"3", 1))
    elif what == "sizes":
        noted["parts"] = [[key, size + 1, sha] for key, size, sha in noted["parts"]]
        noted["lines"] = 0
    elif what == "kinds":
        noted["parts"], noted["lines"] = [["a", "b", "c"]], 0
    else:
        with open(place / "ltp" / "config.json", "a") as file:
            file.write("\n")
    note.write_text(json.dumps(noted))
    assert run().status == 0
    assert made() == (parts[:1] if what == "references" else parts)
    repaired = outputs(place)
    run("--overwrite")
    assert outputs(place) == repaired


def die_after(parts: int, module: str, name: str) -> None:
    """Lets this process end at the next part, as SIGKILL does: nothing is cleaned up."""
    maker, count = {"references": ReferenceMaker, "shards": ShardMaker}[module], []
    write = getattr(maker, name)

    def counted(*arguments):
        if len(count) == parts:
            os._exit(9)
        count.append(1)
        return write(*arguments)

    setattr(maker, name, counted)


def in_a_forked_process(target: Callable, *arguments) -> int:
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_a_killed_run_makes_only_what_is_missing(place, run, made):
    run()
    parts, whole = made(), outputs(place)
    for path in place.glob("*.refs*"):
        path.unlink()

    def killed() -> None:
        die_after(3, "references", "_write")
        run()

    assert in_a_forked_process(killed) == 9
    assert outputs(place) == {} and made() == parts[:3]
    assert run().status == 0
    assert made() == parts[3:] and outputs(place) == whole


def test_a_part_with_too_few_references_is_not_joined(place, run):
    run()
    whole = outputs(place)
    (place / "a.refs.json").unlink()
    (place / "a.refs").unlink()
    killed = lambda: (die_after(3, "references", "_write"), run())  # noqa: E731
    assert in_a_forked_process(killed) == 9
    first = min((place / ".a.refs.parts").glob("00000-*"))
    first.write_bytes(b"[]\n")
    ended = run()
    assert ended.status == 2 and f"{first.relative_to(place)}: has 1 lines, its part of a.txt " in ended.err
    assert "a.refs" not in outputs(place)
    first.unlink()
    assert run().status == 0 and outputs(place) == whole


# ---------------------------------------------------------------- shards


@pytest.fixture
def spec(corpus, place, run, made) -> Callable[..., ShardSpec]:
    run()
    made()
    return lambda cache="shards": ShardSpec(place / cache, 32, corpus.tokenizer)


def build(place: Path, spec: ShardSpec, part_bytes: int = int(PART_MEGABYTES * 1e6)) -> dict[str, list]:
    """Builds the shard of a.txt; returns its rows."""
    file = TextAndRefs(place / "a.txt", place / "a.refs")
    descriptions = describe_shards([file], spec)
    assert build_shards([file], spec, descriptions, Executor(), part_bytes)
    return tiny.all_rows(load_shards([file], spec, descriptions, progress=False))


def test_rows_and_fingerprint_do_not_depend_on_the_parts(place, spec, made):
    rows = build(place, spec("whole"), PART_BYTES)
    assert sorted(path.name for path in (place / "whole" / "a").iterdir()) == ["data.arrow", "shard.json"]
    assert build(place, spec("parts")) == rows
    names = sorted(path.name for path in (place / "parts" / "a").iterdir() if path.suffix != ".lock")
    assert names == [*(f"{number:05d}" for number in range(len(names) - 1)), "shard.json"] and len(names) > 5
    file = TextAndRefs(place / "a.txt", place / "a.refs")
    assert data_fingerprint(describe_shards([file], spec("whole"))) == data_fingerprint(describe_shards([file], spec("parts")))
    made()
    assert build(place, spec("parts"), PART_BYTES) == rows and made() == []


def test_only_the_last_shard_of_a_longer_text_is_built(place, spec, run, made):
    build(place, spec())
    parts = made()
    with open(place / "a.txt", "a", encoding="utf-8") as text:
        text.write("他们喜欢北京\n" * 40)
    run()
    made()
    longer = build(place, spec())
    assert made()[0] == parts[-1]
    assert build(place, spec("again"), PART_BYTES) == longer


def test_a_damaged_part_is_built_again(place, spec, made):
    rows = build(place, spec())
    made()
    data = place / "shards" / "a" / "00002" / "data.arrow"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    assert build(place, spec()) == rows and made() == [2]


@pytest.mark.parametrize("sizes", [(500, PART_BYTES), (PART_BYTES, 500)])
def test_nothing_of_an_earlier_division_stays(sizes, place, spec, run):
    build(place, spec(), sizes[0])
    (place / "a.txt").write_text("".join(f"{line}\n" for line in LINES[6:]), encoding="utf-8")
    run()
    rows = build(place, spec(), sizes[1])
    build(place, spec("fresh"), sizes[1])
    assert tiny.snapshot(place / "shards" / "a") == tiny.snapshot(place / "fresh" / "a")
    assert tiny.all_rows(load_shards([TextAndRefs(place / "a.txt", place / "a.refs")], spec("fresh"), progress=False)) == rows


def test_a_killed_build_builds_only_what_is_missing(place, spec, made):
    rows = build(place, spec("whole"))
    parts = made()

    def killed() -> None:
        die_after(3, "shards", "_write_rows")
        build(place, spec())

    assert in_a_forked_process(killed) == 9
    assert made() == parts[:3]
    assert build(place, spec()) == rows and made() == parts[3:]
