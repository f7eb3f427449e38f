"""SIGKILL at random moments of every program: each time a plain rerun ends with the files of an undisturbed run, byte by byte."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests import tiny, workplace
from tests.faults.forking import Run
from tests.workplace import command_line

pytestmark = pytest.mark.slow

ROUNDS = int(os.environ.get("FAULT_ROUNDS", 2))
REFS, SHARDS, TRAIN, *_ = workplace.ARGUMENTS
TRAINING = {"num_train_steps": 12, "ckpt_steps": 2, "resume_from_checkpoint": "latest", "data_files_json": "small.json"}


@pytest.fixture(scope="module")
def place(template, tmp_path_factory) -> Path:
    """The work directory with texts that take the scripts a second or so, and the small ones for training."""
    directory = Path(shutil.copytree(template, tmp_path_factory.mktemp("kill") / "place"))
    tokenizer = tiny.write_vocabulary(directory / "vocabulary")
    (directory / "data.json").rename(directory / "small.json")
    for name, seed in (("first", 4), ("second", 5), ("third", 6)):
        tiny.write_text(directory / f"{name}.txt", tiny.paragraphs(3000, seed), tokenizer)
    workplace.write_data_json(directory, ["first.txt", "second.txt"], ["third.txt"])
    return directory


@pytest.fixture(scope="module")
def report(request):
    """Says in the end how many kills there were."""
    kills: dict[str, int] = {}
    yield kills
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line(f"\nkills: {kills}, {sum(kills.values())} in all")


def arguments_of(script: str) -> list[str]:
    return command_line(script, **(TRAINING if script == TRAIN else {}))


def results(script: str, directory: Path) -> dict[str, bytes]:
    """The files that the user wants of a script. training_state.pt is left out: torch.save notes its own file name in it."""
    if script == REFS:
        patterns = ["*.refs", "*.refs.json"]
    elif script == SHARDS:
        patterns = ["shards/*/*", "shards/.*.partial*"]
    else:
        patterns = ["run/gs12/*", "run/.*", "saves/*_init/*", "saves/*/gs4/*", "shards/*/*"]
    own = ("training_state.pt", "checksums.json")
    found = {path for pattern in patterns for path in directory.glob(pattern) if path.name not in own and not tiny.is_lock(path)}
    return {str(path.relative_to(directory)): path.read_bytes() if path.is_file() else b"" for path in found}


def fresh(place: Path, script: str, name: str) -> Path:
    directory = Path(shutil.copytree(place, place.parent / name))
    if script == REFS:
        for refs in directory.glob("*.refs"):
            refs.unlink()
    return directory


@pytest.mark.parametrize(("script", "kills"), [(REFS, 2 * ROUNDS), (SHARDS, 2 * ROUNDS), (TRAIN, 2 * ROUNDS)])
def test_killed_at_any_moment(script, kills, place, report):
    """The first kill is of a process that a shell would start, from its first moment on; the others are of forked ones, at work at once."""
    random_moment = random.Random(f"{script} {kills}").random
    undisturbed = fresh(place, script, f"{script} undisturbed")
    run = Run(script, arguments_of(script), undisturbed, undisturbed / "log")
    assert run.status() == 0, run.log.read_text()
    seconds = time.perf_counter() - run.begin
    expected = results(script, undisturbed)
    assert expected

    process_seconds = 6.0  # more than a process of its own takes, the imports included
    while report.get(script, 0) < kills:
        number = report.get(script, 0) + 1
        directory = fresh(place, script, f"{script} killed {number}")
        if number == 1:
            killed = kill_a_process([sys.executable, script, *arguments_of(script)], directory, process_seconds * random_moment())
            process_seconds *= 1 if killed else 0.8  # it ended sooner
        else:
            killed = Run(script, arguments_of(script), directory, directory / "log").kill_at(seconds * random_moment())
        run = Run(script, arguments_of(script), directory, directory / "log")
        assert run.status() == 0, run.log.read_text()
        assert results(script, directory) == expected
        if script == TRAIN:
            assert tiny.scalars(directory / "run") == tiny.scalars(undisturbed / "run")
        report[script] = report.get(script, 0) + killed
        seconds *= 1 if killed else 0.9  # it ends sooner than measured
        shutil.rmtree(directory)


def kill_a_process(command: list[str], directory: Path, seconds: float, **environment) -> bool:
    """Kills a command's process group that long after its start; False if it had ended by itself."""
    process = workplace.start(command, directory, **environment)
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    return process.returncode == -signal.SIGKILL


# ---------------------------------------------------------------- distill.sh


def distil(directory: Path) -> None:
    ended = workplace.run_there(["sh", "distill.sh"], directory, **RECIPE)
    assert ended.status == 0, ended.err


RECIPE = {**workplace.RECIPE, "json_files": "./small.json"}


def kill_distill_sh(place: Path, kills: int, report: dict, failures: list) -> None:
    """Kills it again and again in one directory, in every stage in turn; then the rerun must come to the end."""
    try:
        undisturbed = fresh(place, "distill.sh", "distill.sh undisturbed")
        begin = time.perf_counter()
        distil(undisturbed)
        seconds = time.perf_counter() - begin
        expected = results("distill.sh", undisturbed)
        assert {"saves/rbt6_kd/gs4/model.safetensors", "saves/minirbt_h256/gs4/model.safetensors"} <= expected.keys()
        random_moment = random.Random(kills).random
        while report.get("distill.sh", 0) < kills:
            directory = fresh(place, "distill.sh", f"distill.sh killed {report.get('distill.sh', 0)}")
            for _ in range(2):
                killed = kill_a_process(["sh", "distill.sh"], directory, seconds * (0.3 + 0.6 * random_moment()), **RECIPE)
                report["distill.sh"] = report.get("distill.sh", 0) + killed
            distil(directory)
            assert results("distill.sh", directory) == expected
            shutil.rmtree(directory)
    except BaseException as failure:
        failures.append(failure)


@pytest.fixture(scope="module", autouse=True)
def distilling(place, report):
    """distill.sh spends its time starting Python, again and again: it does so beside the other tests."""
    failures: list[BaseException] = []
    thread = threading.Thread(target=kill_distill_sh, args=(place, ROUNDS, report, failures))
    thread.start()
    yield thread, failures
    thread.join()


def test_distill_sh_killed_at_any_moment(distilling, report):
    thread, failures = distilling
    thread.join()
    if failures:
        raise failures[0]
    assert report["distill.sh"] >= ROUNDS
