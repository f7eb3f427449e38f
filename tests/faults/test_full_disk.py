"""A full disk: one line, status 2, what was written before stays whole, and the rerun with space ends as if nothing had happened."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny, workplace
from tests.faults.disks import CannotMountError, FileSizeLimit, Tmpfs
from tests.workplace import command_line, entries

REFS, SHARDS, TRAIN, INIT, *_ = workplace.ARGUMENTS
DIRECTORIES = {REFS: "references", SHARDS: "shards", TRAIN: "run", INIT: "init"}


@pytest.fixture
def full(request, work):
    """``full(kind, script, kilobytes)``: the directory that the script writes to is as small as that."""
    made = []

    def make(kind, script: str, kilobytes: int):
        try:
            made.append(kind(work / DIRECTORIES[script], kilobytes))
        except CannotMountError as error:
            pytest.skip(str(error))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def long_texts(work) -> Path:
    """The work directory with a small first text and a second of a thousand paragraphs, references in a directory of their own."""
    tokenizer = tiny.write_vocabulary(work / "vocabulary")
    tiny.write_text(work / "b.txt", tiny.paragraphs(1000, seed=4), tokenizer)
    workplace.write_data_json(work, ["a.txt", "b.txt"], [])
    return work


def run_in_space(script: str, disk, work: Path, **changes) -> workplace.Ended:
    """Runs a script in a process of its own, whose files may not grow where ``disk`` says so."""
    process = subprocess.run(
        [sys.executable, script, *command_line(script, **changes)],
        cwd=work,
        env=workplace.ENVIRONMENT,
        capture_output=True,
        preexec_fn=disk.prepare,
        timeout=120,
    )
    return workplace.Ended(process.returncode, process.stdout.decode(), workplace.on_a_terminal(process.stderr.decode()), 0.0)


def assert_one_line(ended: workplace.Ended, place: str, finished: int = 0) -> None:
    """``finished``: lines of progress bars that came to their end before."""
    lines = ended.err.split("\n")
    assert ended.status == 2, ended.err
    assert len(lines) == 2 + finished and lines[-1] == "", ended.err
    assert lines[-2].startswith("error: ") and place in lines[-2] and "free some space" in lines[-2]
    assert "Traceback" not in ended.out + ended.err


KINDS = [
    pytest.param(Tmpfs, marks=pytest.mark.slow, id="a full file system"),
    pytest.param(FileSizeLimit, marks=pytest.mark.slow, id="a limit on files"),
]


@pytest.mark.parametrize("kind", KINDS)
def test_while_writing_references(kind, full, long_texts, template, capfd):
    work = long_texts
    data = (work / "data.json").read_text()
    (work / "data.json").write_text(data.replace("a.refs", "references/a.refs").replace("b.refs", "references/b.refs"))
    disk = full(kind, REFS, 24)
    ended = run_in_space(REFS, disk, work)
    assert_one_line(ended, "references/.b.refs.parts/00000-")
    whole = entries(work / "references")
    assert [name for name in whole if name.startswith(".a.refs.parts/00000-")] and not [name for name in whole if name.endswith(".refs")]

    disk.make_space()
    ended = workplace.run_here(REFS, command_line(REFS), work, capfd)
    assert ended.status == 0 and "1,000 lines in 1 part in" in ended.out  # of b; that of a is there
    shutil.copytree(work, work.parent / "undisturbed", ignore=shutil.ignore_patterns("references"))
    assert workplace.run_here(REFS, command_line(REFS), work.parent / "undisturbed", capfd).status == 0
    assert tiny.snapshot(work / "references") == tiny.snapshot(work.parent / "undisturbed" / "references")


@pytest.mark.parametrize("kind", KINDS)
def test_while_writing_a_shard(kind, full, long_texts, capfd):
    work = long_texts
    disk = full(kind, SHARDS, 32)
    ended = run_in_space(SHARDS, disk, work)
    assert_one_line(ended, "shards/b")
    whole = entries(work / "shards")
    assert {name for name in whole if not name.startswith(".known")} == {"a", "a/data.arrow", "a/shard.json"}

    disk.make_space()
    assert workplace.run_here(SHARDS, command_line(SHARDS), work, capfd).status == 0
    assert tiny.snapshot(work / "shards" / "a") == {name[2:]: entry[2] for name, entry in whole.items() if name.startswith("a/")}
    assert workplace.run_here(SHARDS, command_line(SHARDS, data_cache_dir="undisturbed"), work, capfd).status == 0
    for cache in ("shards", "undisturbed"):
        shutil.rmtree(work / cache / ".known")  # has times and places of files
    assert tiny.snapshot(work / "shards") == tiny.snapshot(work / "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kilobytes", "what", "kept"),
    [
        (Tmpfs, 260, "run/gs4: ", ["gs2"]),
        (FileSizeLimit, 60, "run/gs2: ", []),
        (Tmpfs, 8, "run: the TensorBoard scalars", []),
    ],
    ids=["a full file system", "a limit on files", "no space for the scalars"],
)
def test_while_training(kind, kilobytes, what, kept, full, work, capfd):
    changes = {"num_train_steps": 6, "keep_checkpoints": 0, "resume_from_checkpoint": "latest"}
    disk = full(kind, TRAIN, kilobytes)
    ended = run_in_space(TRAIN, disk, work, **changes)
    assert_one_line(ended, what, finished=1)  # the bar of the shards
    assert sorted(path.name for path in (work / "run").glob("gs*")) == kept
    assert [path.name for path in (work / "run").glob(".*")] == [".lock"]

    disk.make_space()
    assert workplace.run_here(TRAIN, command_line(TRAIN, **changes), work, capfd).status == 0
    assert workplace.run_here(TRAIN, command_line(TRAIN, **changes, output_dir="undisturbed"), work, capfd).status == 0
    weights = "gs6/model.safetensors"
    assert (work / "run" / weights).read_bytes() == (work / "undisturbed" / weights).read_bytes()
    assert tiny.scalars(work / "run") == tiny.scalars(work / "undisturbed")


@pytest.mark.slow
def test_while_writing_first_weights(full, work, capfd):
    disk = full(FileSizeLimit, INIT, 16)
    assert_one_line(run_in_space(INIT, disk, work), "init: ")
    assert not list(work.glob("*init"))

    assert workplace.run_here(INIT, command_line(INIT), work, capfd).status == 0
    assert workplace.run_here(INIT, command_line(INIT, dump_checkpoint="undisturbed"), work, capfd).status == 0
    assert tiny.snapshot(work / "init") == tiny.snapshot(work / "undisturbed")
