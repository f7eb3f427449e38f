"""References and shards made by Slurm jobs and Ray workers: the files of one worker, its errors, and its resume."""

import shutil
import sys
from pathlib import Path

import pytest

from tests import workplace
from tests.cluster import kills
from tests.cluster.kills import EXECUTORS, PARTS, VICTIMS, Kill
from tests.cluster.test_training import full
from tests.pretraining.corpus.test_executors import made

pytestmark = pytest.mark.slow

REFERENCES, SHARDS = "run_chinese_ref.py", "my_datasets.py"
SLURM = "slurm"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A pretraining directory without references, its text in several parts."""
    place = tmp_path_factory.mktemp("executors") / "built"
    kills.build(place)
    return place


@pytest.fixture(scope="module")
def alone(built, tmp_path_factory) -> Path:
    """What one worker has made of it."""
    place = shutil.copytree(built, tmp_path_factory.mktemp("executors") / "alone")
    for script in (REFERENCES, SHARDS):
        assert run(script, place).status == 0
    return place


@pytest.fixture
def place(built, tmp_path) -> Path:
    return shutil.copytree(built, tmp_path / "place")


@pytest.fixture
def environment(request) -> dict[str, str]:
    """What a command needs for an executor; skips the test where it is not installed."""
    if request.param == "ray":
        pytest.importorskip("ray", reason="pip install -r pretraining/requirements-cluster.txt")
        return {}
    return request.getfixturevalue("cluster").environment


def run(script: str, place: Path, *more: str, **environment: str) -> workplace.Ended:
    parts = ["--part_megabytes", str(kills.PART_BYTES / 1e6)]
    return workplace.run_there([sys.executable, script, *workplace.command_line(script), *parts, *more], place, **environment)


def on(*executors: str):
    return pytest.mark.parametrize(("executor", "environment"), [(name, name) for name in executors], indirect=["environment"])


# ---------------------------------------------------------------- the same files


def refs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if ".refs" in name}


@on("slurm", "ray")
def test_references_are_those_of_one_worker(executor, environment, alone, place):
    ended = run(REFERENCES, place, *EXECUTORS[executor], **environment)
    assert ended.status == 0 and f" in {PARTS} parts" in ended.out and "100%" in ended.err, ended
    assert refs(made(place)) == refs(made(alone)) and not list(place.rglob(".workers"))


@full
@on("slurm", "ray")
def test_shards_are_those_of_one_worker(executor, environment, alone, place):
    for path in alone.glob("*.refs*"):
        shutil.copy2(path, place)
    ended = run(SHARDS, place, *EXECUTORS[executor], **environment)
    assert ended.status == 0 and "fingerprint" in ended.out, ended
    assert made(place) == made(alone) and not list(place.rglob(".workers"))


# ---------------------------------------------------------------- errors


@full
@on("slurm", "ray")
def test_the_error_of_a_worker_is_the_line_of_the_command(executor, environment, alone, place):
    lines = (alone / "a.refs").read_text().split("\n")
    number = next(number for number, text in enumerate(lines, 1) if number > len(lines) // 2 and text != "[]")
    lines[number - 1] = "[9999]"
    (place / "a.refs").write_text("\n".join(lines))
    of_one, of_others = (run(SHARDS, place, *more, **environment) for more in ([], EXECUTORS[executor]))
    last = [ended.err.strip().split("\n")[-1] for ended in (of_one, of_others)]
    assert [of_one.status, of_others.status] == [2, 2] and last[0].startswith(f"error: a.refs:{number}: position 9999 ")
    assert last[0] == last[1] and "Traceback" not in of_others.err


@full
def test_a_partition_that_slurm_does_not_have(cluster, place):
    ended = run(REFERENCES, place, *EXECUTORS[SLURM], "--partition", "none", **cluster.environment)
    last = ended.err.strip().split("\n")[-1]
    assert ended.status == 2 and last.startswith("error: sbatch refused the job") and "Traceback" not in ended.err, ended
    assert cluster.jobs() == []


# ---------------------------------------------------------------- commands that do not wait, and kills


@full
def test_a_command_that_does_not_wait_returns_and_the_next_one_joins(cluster, alone, place):
    first = run(REFERENCES, place, *EXECUTORS[SLURM], "--no_wait", **cluster.environment)
    jobs = cluster.jobs()
    assert first.status == 0 and jobs and not (place / "a.refs").exists(), first
    second = run(REFERENCES, place, *EXECUTORS[SLURM], **cluster.environment)
    assert second.status == 0 and "Slurm job" in second.err + second.out, second
    assert refs(made(place)) == refs(made(alone)) and cluster.jobs() == []


@full
@pytest.mark.parametrize(
    ("executor", "environment", "victim"),
    [(executor, executor, victim) for executor in ("slurm", "ray") for victim in VICTIMS[executor]],
    indirect=["environment"],
)
def test_after_a_kill_the_same_command_ends_as_if_nothing_had_been(executor, environment, victim, request, alone, place):
    """It makes no finished part again."""
    cluster = request.getfixturevalue("cluster") if executor == SLURM else None
    outcome = kills.kill_and_run_again(Kill(executor, victim, finished=1), place, refs(made(alone)), cluster)
    assert outcome.is_same and outcome.lost == 0 and "Traceback" not in outcome.line, outcome
