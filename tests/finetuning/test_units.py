"""Units: their settings, commands that share a directory, kills between the writes of results, predictions and model."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning import run, units
from finetuning.task_definitions import TASKS
from finetuning.units import Unit, UnitKey, claimed_units, write_results, write_unit
from pretraining.corpus import files
from pretraining.utils import UserError
from tests import tiny
from tests.finetuning.helpers import Killed, arguments, results_of

FORK = multiprocessing.get_context("fork")
TASK = TASKS["chnsenticorp"]
SETTINGS = {"model_name_or_path": "m", "learning_rate": 1e-4}
OTHER = {**SETTINGS, "learning_rate": 1e-5}


class Model:
    """Stands for a model of transformers."""

    def __init__(self, key: UnitKey):
        self.key = key

    def save_pretrained(self, directory: Path) -> None:
        (directory / "weights").write_text(self.key.name)


def unit(seed: int, accuracy: float, settings: dict | None = None) -> Unit:
    return Unit(2, seed, {"accuracy": accuracy}, {"1": f"label of seed {seed}"}, settings or SETTINGS)


def finish(output_dir: Path, finished: Unit) -> None:
    write_unit(output_dir, TASK, finished, Model(finished.key), None)
    write_results(output_dir, TASK, finished.settings, [finished.key])


@pytest.fixture(autouse=True)
def no_tokenizer(monkeypatch):
    monkeypatch.setattr(units, "save_tokenizer", lambda *_: None)


# ---------------------------------------------------------------- settings


def claim(output_dir: Path, keys: list[UnitKey], settings: dict, sender) -> None:
    """Claims units until it is killed."""
    with claimed_units(output_dir, keys, settings) as todo:
        sender.send(todo)
        signal.alarm(60)
        signal.pause()


@pytest.fixture
def other_command():
    """``other_command(output_dir, keys, settings)``: a process that computes these units; it is killed in the end."""
    started = []

    def start(*given):
        receiver, sender = FORK.Pipe(duplex=False)
        started.append(FORK.Process(target=claim, args=(*given, sender)))
        started[-1].start()
        assert receiver.poll(60) and receiver.recv() == given[1]
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def test_commands_with_other_seeds_share_a_directory_only_with_the_same_settings(tmp_path, other_command):
    other = other_command(tmp_path, [UnitKey(2, 1)], SETTINGS)
    with pytest.raises(UserError, match="holds runs with learning_rate 0.0001, this one has 1e-05; give another --output_dir"):
        with claimed_units(tmp_path, [UnitKey(2, 2)], OTHER):
            pass
    with claimed_units(tmp_path, [UnitKey(2, 2)], {**SETTINGS, "model_name_or_path": "moved"}) as todo:
        assert todo == [UnitKey(2, 2)]
        finish(tmp_path, unit(2, 50.0))
        assert results_of(tmp_path)[0]["unfinished"] == [{"num_train_epochs": 2, "seed": 1}]
    with pytest.raises(UserError, match=f"2 epochs, seed 1: in use by process {other.pid} on .*; wait until it ends"):
        with claimed_units(tmp_path, [UnitKey(2, 2), UnitKey(2, 3), UnitKey(2, 1)], SETTINGS):
            pass
    other_command(tmp_path, [UnitKey(2, 3)], SETTINGS)  # the refused command holds nothing


def test_a_unit_that_was_killed_before_it_wrote_anything_binds_nobody(tmp_path, other_command):
    other = other_command(tmp_path, [UnitKey(2, 1)], SETTINGS)
    other.kill()
    other.join()
    half_written = tmp_path / "unfinished" / "epochs2-seed3" / ".unit.json.partial"
    half_written.parent.mkdir()
    half_written.touch()
    with claimed_units(tmp_path, [UnitKey(2, 1), UnitKey(2, 2)], OTHER) as todo:
        assert todo == [UnitKey(2, 1), UnitKey(2, 2)]
    assert not (tmp_path / "unfinished").exists()


def test_a_unit_with_a_checkpoint_keeps_its_settings(tmp_path):
    with pytest.raises(Killed), claimed_units(tmp_path, [UnitKey(2, 1)], SETTINGS):
        (tmp_path / "unfinished" / "epochs2-seed1" / "checkpoint-3").mkdir()
        raise Killed
    with pytest.raises(UserError, match="holds runs with learning_rate 0.0001, this one has 1e-05"):
        with claimed_units(tmp_path, [UnitKey(2, 2)], OTHER):
            pass


def test_results_of_two_settings_are_never_averaged(tmp_path):
    finish(tmp_path, unit(1, 50.0))
    finish(tmp_path / "other", unit(2, 70.0, OTHER))
    before = tiny.snapshot(tmp_path)
    shutil.copy(tmp_path / "other" / "units" / "epochs2-seed2.json", tmp_path / "units")
    for settings, message in ((SETTINGS, "learning_rate 1e-05, this one has 0.0001"), (OTHER, "learning_rate 0.0001, this one has 1e-05")):
        with pytest.raises(UserError, match=f"holds runs with {message}"):
            write_results(tmp_path, TASK, settings, [])
    (tmp_path / "units" / "epochs2-seed2.json").unlink()
    assert tiny.snapshot(tmp_path) == before


def test_units_of_older_versions_have_the_settings_of_their_directory(tmp_path):
    finish(tmp_path, unit(1, 50.0))
    path = tmp_path / "units" / "epochs2-seed1.json"
    content = json.loads(path.read_text())
    del content["settings"]
    path.write_text(json.dumps(content))
    (tmp_path / "model" / "unit.json").unlink()
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    with claimed_units(tmp_path, [UnitKey(2, 1)], SETTINGS) as todo:
        assert todo == []
    assert write_results(tmp_path, TASK, SETTINGS, [])["settings"] == SETTINGS and (tmp_path / "model" / "weights").is_file()
    with pytest.raises(UserError, match="holds runs with learning_rate 0.0001"), claimed_units(tmp_path, [UnitKey(2, 2)], OTHER):
        pass


# ---------------------------------------------------------------- kills


def named_runs(output_dir: Path) -> set[str]:
    """The runs that results, predictions and model name, where they exist."""
    named = set()
    if (output_dir / "results.json").exists():
        of = json.loads((output_dir / "results.json").read_text())["predictions_and_model_of"]
        named.add(UnitKey(**of).name)
    if (output_dir / "predictions.json").exists():
        label = json.loads((output_dir / "predictions.json").read_text())["1"]
        named.add(f"epochs2-{label.removeprefix('label of ').replace(' ', '')}")
    if (output_dir / "model").exists():
        named.add((output_dir / "model" / "weights").read_text())
    return named


def test_killed_between_any_two_writes_results_predictions_and_model_are_of_one_run(tmp_path, monkeypatch):
    """A worse run, a better one, then one in the middle; the process dies before change number ``last`` of a name."""
    for last in range(200):
        output_dir, done = tmp_path / str(last), []

        def killing(name, output_dir=output_dir, done=done, last=last):
            change = getattr(os, name)

            def changed(*given, **named):
                if str(output_dir) in str(given[0]) and ".lock" not in str(given[0]):
                    if len(done) == last:
                        raise Killed
                    done.append(name)
                return change(*given, **named)

            return changed

        finish(output_dir, unit(1, 50.0))
        try:
            with monkeypatch.context() as patch:
                for name in ("replace", "rename", "unlink"):
                    patch.setattr(os, name, killing(name))
                patch.setattr(files.shutil, "rmtree", lambda *_, **__: None)  # as if it had died before it could clean up
                finish(output_dir, unit(2, 70.0))
                finish(output_dir, unit(3, 60.0))
            killed = False
        except Killed:
            killed = True
        assert len(named_runs(output_dir)) <= 1, (last, done, named_runs(output_dir))
        finished = {path.stem for path in (output_dir / "units").glob("*.json")}
        for again in (unit(2, 70.0), unit(3, 60.0)):
            if again.key.name not in finished:
                finish(output_dir, again)
        write_results(output_dir, TASK, SETTINGS, [])
        assert named_runs(output_dir) == {"epochs2-seed2"} and (output_dir / "results.json").exists()
        if not killed:
            break
    assert last > 8


# ---------------------------------------------------------------- the command

HOLD = """
import signal
from finetuning import run, training
def hold(*args, **kwargs):
    print("at work", flush=True)
    signal.alarm(120)
    signal.pause()
training.Trainer.training_step = hold
run.main()
"""


@pytest.mark.slow
def test_two_commands_at_once_and_after_sigkill(world, tmp_path):
    given = arguments(world, "chnsenticorp", tmp_path / "out", "--num_train_epochs", 1, "--seeds")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen([sys.executable, "-c", HOLD, *given, "1"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        while (line := first.stdout.readline()) != b"at work\n":
            assert line
        for more, message in (
            (["1"], f"1 epochs, seed 1: in use by process {first.pid} on "),
            (["2", "--learning_rate", "0.1"], "holds runs with learning_rate 0.01, this one has 0.1; give another --output_dir"),
        ):
            command = [sys.executable, run.__file__, *given, *more]
            ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
            assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
            assert message in ended.stderr
        command = [sys.executable, run.__file__, *given, "2"]
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
    finally:
        first.kill()
        first.communicate()
    subprocess.run([sys.executable, run.__file__, *given, "1"], env=environment, check=True, capture_output=True, timeout=240)
    results, _ = results_of(tmp_path / "out")
    assert [row["seeds"] for row in results["by_epochs"]] == [[1, 2]] and results["unfinished"] == []
