"""The search over learning rates: its figure, its directory, resuming; runs side by side."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from finetuning import jobs, run, search, training
from finetuning.jobs import Job, run_side_by_side
from finetuning.task_definitions import TASKS
from pretraining.corpus.files import write_json
from pretraining.utils import UserError
from tests.finetuning.helpers import Killed, arguments, assert_same_outcome, results_of, run_and_kill, run_main

RATES = ["--learning_rate", "1e-5", "1e-2", "--num_train_epochs", "1", "2", "--seeds", "5", "6"]


@pytest.fixture(scope="module")
def searched(world, tmp_path_factory) -> Path:
    """The directory of a search that nothing interrupted."""
    directory = tmp_path_factory.mktemp("searched") / "out"
    run_main(*arguments(world, "chnsenticorp", directory, *RATES))
    return directory


def test_the_figure_is_the_best_over_rates_and_epochs_of_the_mean_over_the_seeds(world, searched, tmp_path, monkeypatch, capsys):
    results, predictions = results_of(searched)
    of_rate = {rate: results_of(searched / f"learning_rate_{rate:g}")[0] for rate in (1e-5, 1e-2)}
    assert [row["learning_rate"] for row in results["by_learning_rate"]] == [1e-5, 1e-2]
    for row in results["by_learning_rate"]:
        assert {name: value for name, value in row.items() if name != "learning_rate"} == of_rate[row["learning_rate"]]["best"]
    means = [row["accuracy_mean"] for each in of_rate.values() for row in each["by_epochs"]]
    assert results["best"]["accuracy_mean"] == max(means) > min(means)
    assert results["settings"]["learning_rate"] == 1e-2 and results["settings"]["learning_rates"] == [1e-5, 1e-2]
    assert len(results["runs"]) == 8 and results["unfinished"] == [] and not (searched / "unfinished").exists()
    best = results["predictions_and_model_of"]
    (run_of_model,) = [each for each in results["runs"] if {**each, **best} == each]
    assert run_of_model["metrics"]["accuracy"] == max(each["metrics"]["accuracy"] for each in results["runs"])
    assert best == json.loads((searched / "model" / "unit.json").read_text()) and best["learning_rate"] == 1e-2

    run_main(*arguments(world, "chnsenticorp", tmp_path / "plain", *RATES[3:], "--learning_rate", "1e-2"))
    assert_same_outcome(searched / "learning_rate_0.01", tmp_path / "plain")
    assert predictions == results_of(tmp_path / "plain")[1]
    assert (searched / "model" / "model.safetensors").read_bytes() == (tmp_path / "plain" / "model" / "model.safetensors").read_bytes()

    monkeypatch.setattr(training, "fine_tune", lambda *_: pytest.fail("a finished run ran again"))
    run_main(*arguments(world, "chnsenticorp", searched, *RATES))
    assert results_of(searched) == (results, predictions)
    assert re.search(
        r"learning rate 1e-05, 2 seeds: accuracy .*\nlearning rate 0.01, 2 seeds: accuracy .*  <- best", capsys.readouterr().out
    )


@pytest.mark.slow
def test_a_killed_search_goes_on(world, searched, tmp_path):
    given = arguments(world, "chnsenticorp", tmp_path / "out", *RATES)
    run_and_kill(*given, steps=40)  # 36 steps a rate
    assert sorted(path.name for path in (tmp_path / "out").glob("learning_rate_*")) == ["learning_rate_0.01", "learning_rate_1e-05"]
    run_main(*given)
    assert_same_outcome(tmp_path / "out", searched)


def test_a_search_and_a_single_rate_do_not_mix(world, searched, undisturbed):
    with pytest.raises(UserError, match="holds a search over learning rates; give several to --learning_rate, or another --output_dir"):
        run_main(*arguments(world, "chnsenticorp", searched))
    with pytest.raises(UserError, match="holds runs with one learning rate, not a search; give another --output_dir"):
        run_main(*arguments(world, "chnsenticorp", undisturbed["chnsenticorp"], *RATES))
    with pytest.raises(UserError, match="--learning_rate 0.1 0.1: give each value once"):
        run_main(*arguments(world, "chnsenticorp", searched, "--learning_rate", "1e-1", "0.1"))


def rate_directory(place: Path, rate: float, accuracy: float) -> None:
    """The results of one learning rate with one run."""
    key = {"num_train_epochs": 2, "seed": 1}
    row = {**key, "accuracy_mean": accuracy, "accuracy_std": None}
    content = {"best": row, "by_epochs": [row], "runs": [{**key, "metrics": {"accuracy": accuracy}}], "unfinished": []}
    directory = place / f"learning_rate_{rate:g}"
    write_json(directory / "model" / "weights", rate)
    write_json(directory / "predictions.json", {"1": str(rate)})
    write_json(directory / "results.json", {**content, "predictions_and_model_of": key, "settings": {"learning_rate": rate}})


def test_killed_between_any_two_writes_results_predictions_and_model_are_of_one_rate(tmp_path, monkeypatch):
    """A rate, then a better one; the process dies before change number ``last`` of a name."""
    for last in range(50):
        place, done = tmp_path / str(last), []
        rate_directory(place, 1e-5, 50.0)
        search.write_search(place, TASKS["bq"])
        rate_directory(place, 1e-2, 60.0)

        def killing(name, done=done, last=last):
            change = getattr(os, name)

            def changed(*given, **named):
                if len(done) == last:
                    raise Killed
                done.append(name)
                return change(*given, **named)

            return changed

        try:
            with monkeypatch.context() as patch:
                for name in ("replace", "rename", "unlink"):
                    patch.setattr(os, name, killing(name))
                patch.setattr(search.shutil, "rmtree", lambda *_, **__: None)  # as if it had died before it could clean up
                search.write_search(place, TASKS["bq"])
            killed = False
        except Killed:
            killed = True
        if (place / "results.json").is_file():
            rate = json.loads((place / "results.json").read_text())["predictions_and_model_of"]["learning_rate"]
            assert json.loads((place / "model" / "weights").read_text()) == rate
            assert json.loads((place / "predictions.json").read_text()) == {"1": str(rate)}
        results = search.write_search(place, TASKS["bq"])
        assert results["predictions_and_model_of"]["learning_rate"] == json.loads((place / "model" / "weights").read_text()) == 1e-2
        if not killed:
            break
    assert 3 < last < 49


# ---------------------------------------------------------------- runs side by side

SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
from finetuning.jobs import end_with_parent
end_with_parent()
what, result = sys.argv[1:]
print("on GPU", os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"], flush=True)
if what == "fail":
    print("step 1\\rerror: the disk is full", file=sys.stderr)
    sys.exit(2)
if what == "wait":
    time.sleep(600)
open(result, "w").close()
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """``job(what, name)``: a job that ends well, fails or waits."""
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(jobs, "RUN", tmp_path / "run.py")
    jobs.RUN.write_text(SCRIPT.format(root=str(Path(run.__file__).parents[1])))
    return lambda what, name: Job(
        name, [what, str(tmp_path / f"{name}.json")], tmp_path / "logs" / f"{name}.log", tmp_path / f"{name}.json"
    )


def test_a_run_that_fails_is_named_and_the_others_go_on(job, tmp_path, capsys):
    with pytest.raises(UserError, match="1 of 3 runs failed, see above; the same command repeats these alone"):
        run_side_by_side([job("work", "a"), job("fail", "b"), job("work", "c")], 2, ["3", "7"])
    assert (tmp_path / "a.json").is_file() and (tmp_path / "c.json").is_file()
    assert f"error: b ended with status 2: the disk is full (log: {tmp_path}/logs/b.log)\n" in capsys.readouterr().err
    placed = [(tmp_path / "logs" / f"{name}.log").read_text().split()[2] for name in "abc"]
    assert placed[:2] == ["3", "7"] and placed[2] in ("3", "7")


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(") ")[1][0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_signal_ends_all_runs(job, tmp_path, number, status):
    waiting = job("wait", "a")
    given = f"[jobs.Job(name, {waiting.arguments!r}, Path({str(tmp_path)!r}, name), Path('x')) for name in 'ab']"
    code = f"""
import sys; sys.path.insert(0, {str(Path(run.__file__).parents[1])!r})
from pathlib import Path
from finetuning import jobs
from pretraining.utils import run_script
jobs.RUN = {str(jobs.RUN)!r}
start = jobs._start
def noted(*given):
    process = start(*given)
    print(process.pid, flush=True)
    return process
jobs._start = noted
run_script(lambda: jobs.run_side_by_side({given}, 2, []))
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=tmp_path)
    children = [int(parent.stdout.readline()) for _ in range(2)]
    while not all((tmp_path / name).is_file() and (tmp_path / name).stat().st_size for name in "ab"):
        assert parent.poll() is None
        time.sleep(0.01)
    parent.send_signal(number)
    assert parent.wait(60) == status
    while any(map(is_alive, children)):  # hangs where a run outlives its parent
        time.sleep(0.01)


def test_run_py_watches_the_process_that_started_it(world, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "end_with_parent", lambda: pytest.fail("watches"))
    with pytest.raises(pytest.fail.Exception, match="watches"):
        run_main(*arguments(world, "chnsenticorp", tmp_path / "out"))


@pytest.mark.slow
def test_runs_side_by_side_are_those_of_one_process(world, searched, tmp_path, capfd):
    given = arguments(world, "chnsenticorp", tmp_path / "out", *RATES, "--num_train_epochs", "2", "--seeds", "5")
    run_main(*given, "--jobs", "2")
    for rate in ("1e-05", "0.01"):
        unit = Path(f"learning_rate_{rate}", "units", "epochs2-seed5.json")
        assert (tmp_path / "out" / unit).read_bytes() == (searched / unit).read_bytes()
    results, _ = results_of(tmp_path / "out")
    assert [row["learning_rate"] for row in results["by_learning_rate"]] == [1e-5, 1e-2] and results["unfinished"] == []
    assert "learning rate 0.01, 2 epochs, seed 5: done" in capfd.readouterr().out
    run_main(*given, "--jobs", "2")
    assert "2 runs requested, 2 of them finished; 2 side by side" in capfd.readouterr().out
