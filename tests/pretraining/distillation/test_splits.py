"""However the global batch is split into processes, micro-batches and accumulation, the same model comes out (dropout off)."""

import json
import multiprocessing
import os
import shutil
import signal
import traceback
from pathlib import Path

import numpy as np
import pytest

from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import read_data_json
from pretraining.corpus.masking import WholeWordMasker
from pretraining.corpus.shards import ShardSpec, load_shards
from pretraining.utils import UserError
from tests import tiny
from tests.workplace import free_port

STEPS = 5


def arguments(corpus, output_dir: Path, batch: int, accumulation: int, **changes) -> list[str]:
    """``batch`` and ``accumulation`` as on the command line, a process; everything else stays, weight decay and clipping included."""
    changes = {"num_train_steps": STEPS, "ckpt_steps": 1, "keep_checkpoints": 0, "warmup_proportion": 0, **changes}
    values = {"student_config": corpus.calm_json, "train_batch_size": batch, "gradient_accumulation_steps": accumulation, **changes}
    return corpus.arguments(output_dir, **values)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> tiny.Corpus:
    """With a text of unknown characters, which are never masked."""
    made = tiny.Corpus(tmp_path_factory.mktemp("splits") / "corpus")
    tiny.write_text(made.directory / "long.txt", [*tiny.paragraphs(14, seed=1), "龘" * 200], made.tokenizer)
    return made


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory) -> Path:
    """Five steps of eight samples, a forward each."""
    directory = tmp_path_factory.mktemp("splits") / "whole"
    tiny.run_train(arguments(corpus, directory, 8, 1))
    return directory


@pytest.fixture(scope="module")
def without_teacher(corpus, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("splits") / "masked-lm"
    tiny.run_train(arguments(corpus, directory, 8, 1, **PLAIN(corpus)))
    return directory


def PLAIN(corpus) -> dict:  # noqa: N802
    return {"teacher_name_or_path": None, "matches": None, "tokenizer": corpus.vocabulary}


RELATIONS = {"matches": "L2h16_L4h32_relation", "kd_weight": 0}  # the head and the end of the last layer have no gradient


def assert_same_training(directory: Path, whole: Path, first: int = 1) -> None:
    for step in range(first, STEPS + 1):
        assert tiny.largest_difference(directory / f"gs{step}", whole / f"gs{step}") < 1e-5
    ours, theirs = tiny.scalars(directory), tiny.scalars(whole)
    assert ours.keys() == theirs.keys()
    for tag, values in theirs.items():
        assert [step for step, _ in ours[tag]] == [step for step, _ in values] == list(range(1, STEPS + 1))
        assert [value for _, value in ours[tag]] == pytest.approx([value for _, value in values], rel=2e-5, abs=1e-6), tag


def test_the_rows_have_different_numbers_of_masked_tokens(corpus):
    """Else these tests would not see a mean taken over each micro-batch instead of over the global batch."""
    spec = ShardSpec(corpus.directory / "shards", 32, corpus.tokenizer)
    dataset = load_shards(read_data_json(corpus.data_json)["train"], spec, progress=False)
    masker = WholeWordMasker(corpus.tokenizer, 32, 0.15, seed=10236797)
    batches = TrainingBatches(dataset, masker, 10236797, train_batch_size=8, micro_batches=4)
    counts = np.array([[tiny.masked_tokens(batches[4 * step + micro]).sum() for micro in range(4)] for step in range(STEPS)])
    assert [len(set(row)) > 1 for row in counts.tolist()].count(True) >= 3, counts
    assert not any("attention_mask" in batches[number] for number in range(4 * STEPS))
    assert len(dataset) < 8 * STEPS  # and an epoch ends in between


@pytest.fixture(scope="module")
def relations(corpus, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("splits") / "relations"
    tiny.run_train(arguments(corpus, directory, 8, 1, **RELATIONS))
    return directory


def test_accumulation_changes_nothing_with_relations_alone(corpus, relations, tmp_path):
    tiny.run_train(arguments(corpus, tmp_path / "run", 8, 4, **RELATIONS))
    assert_same_training(tmp_path / "run", relations)


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_changes_nothing(accumulation, corpus, whole, tmp_path):
    tiny.run_train(arguments(corpus, tmp_path / "run", 8, accumulation))
    assert_same_training(tmp_path / "run", whole)


def test_accumulation_changes_nothing_without_a_teacher(corpus, without_teacher, tmp_path):
    tiny.run_train(arguments(corpus, tmp_path / "run", 8, 4, **PLAIN(corpus)))
    assert_same_training(tmp_path / "run", without_teacher)


def test_a_run_goes_on_with_another_accumulation(corpus, whole, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole, directory)
    for step in (4, 5):
        shutil.rmtree(directory / f"gs{step}")
    tiny.run_train(arguments(corpus, directory, 8, 4, resume_from_checkpoint="latest"))
    assert_same_training(directory, whole)


def disk_full(*_):
    raise UserError("the disk is full")


def one_of_two(rank: int, jobs: list[dict], results: Path) -> None:
    """One of two processes, as torchrun starts them; runs train.py once for each job and notes how it ended."""
    ended = []
    for job in jobs:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": job["port"],
        }

        def at_step(step, distiller, job=job):
            if step == job["signal_at"] and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            if step == STEPS and rank == 1 and job["name"] == "stopped at the end":  # the processes have told each other their signals
                distiller.module.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))

        try:
            tiny.run_train(job["arguments"], step_callback=at_step, save_callback=disk_full if job["name"] == "disk full" else None)
            ended.append("finished")
        except SystemExit as error:
            ended.append(f"exit {error.code}")
        except UserError as error:
            ended.append(str(error))
        except BaseException:
            ended.append(traceback.format_exc())
        ended[-1] = [ended[-1], group_threads()]
    (results / f"rank{rank}.json").write_text(json.dumps(ended))


def group_threads() -> list[str]:
    """The threads of gloo and of the process group's store in this process."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return sorted(name for name in names if name.startswith(("gloo", "pt_")))


@pytest.fixture(scope="module")
def two_processes(corpus, whole, without_teacher, tmp_path_factory) -> dict:
    """Several runs of two processes, one after the other in the same two, for each takes seconds to start.

    Returns:
        for each job its directory, how the two ended, and the threads of the process group that were left in them.
    """
    home = tmp_path_factory.mktemp("two")
    fresh = home / "shards"  # both processes want to build them
    interrupted = home / "resumed"
    shutil.copytree(whole, interrupted)
    for step in (3, 4, 5):
        shutil.rmtree(interrupted / f"gs{step}")
    wanted = {
        "two by two": arguments(corpus, home / "two by two", 4, 2, data_cache_dir=fresh, do_eval="true"),
        "two by one": arguments(corpus, home / "two by one", 4, 1),
        "masked-lm": arguments(corpus, home / "masked-lm", 4, 2, **PLAIN(corpus)),
        "relations": arguments(corpus, home / "relations", 4, 2, **RELATIONS),
        "resumed": arguments(corpus, interrupted, 4, 4, resume_from_checkpoint="latest"),
        "stopped": arguments(corpus, home / "stopped", 4, 2, ckpt_steps=STEPS),
        "stopped at the end": arguments(corpus, home / "stopped at the end", 4, 2, do_eval="true"),
        "not finite": arguments(corpus, home / "not finite", 4, 2, learning_rate=1e30),
        "disk full": arguments(corpus, home / "disk full", 4, 2, ckpt_steps=2),
    }
    jobs = [
        {"arguments": line, "port": str(free_port()), "signal_at": 3 if name == "stopped" else -1, "name": name}
        for name, line in wanted.items()
    ]
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(rank, jobs, home)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        process.kill()
    ended = [json.loads((home / f"rank{rank}.json").read_text()) for rank in range(2)]
    return {name: (home / name, *zip(*both)) for name, both in zip(wanted, zip(*ended))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two by two", "two by one", "masked-lm", "relations", "resumed"])
def test_two_processes_train_the_same_model(name, two_processes, whole, without_teacher, relations):
    directory, ended, _ = two_processes[name]
    assert ended == ("finished", "finished")
    assert_same_training(directory, {"masked-lm": without_teacher, "relations": relations}.get(name, whole))


@pytest.mark.slow
def test_two_processes_evaluate_as_one(two_processes, corpus, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    tiny.run_train(arguments(corpus, tmp_path / "run", 8, 1, resume_from_checkpoint="latest", do_eval="true"))
    ours, theirs = (json.loads((path / "eval.json").read_text()) for path in (two_processes["two by two"][0], tmp_path / "run"))
    for name in ("student", "teacher"):
        assert ours[name]["masked_tokens"] == theirs[name]["masked_tokens"] > 0
        assert ours[name]["loss"] == pytest.approx(theirs[name]["loss"], abs=1e-4)
        assert ours[name]["accuracy"] == theirs[name]["accuracy"]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_after_the_same_step_and_one_process_goes_on(two_processes, corpus, whole, tmp_path):
    directory, ended, _ = two_processes["stopped"]
    assert ended == ("exit 143", "exit 143")
    assert [path.name for path in directory.glob("gs*")] == ["gs3"]
    assert tiny.largest_difference(directory / "gs3", whole / "gs3") < 1e-5
    shutil.copytree(directory, tmp_path / "run")
    tiny.run_train(arguments(corpus, tmp_path / "run", 8, 2, resume_from_checkpoint="latest"))
    assert_same_training(tmp_path / "run", whole, first=3)


@pytest.mark.slow
def test_a_signal_to_one_process_in_the_last_step_stops_both(two_processes, whole):
    directory, ended, _ = two_processes["stopped at the end"]
    assert ended == ("exit 143", "exit 143")
    assert_same_training(directory, whole)
    assert not (directory / "eval.json").exists()


@pytest.mark.slow
def test_both_processes_end_with_one_line_when_the_loss_is_not_finite(two_processes):
    directory, ended, _ = two_processes["not finite"]
    silent, line = sorted(ended)  # one line for a machine
    assert silent == "exit 2" and line.startswith("step 2: the loss is no longer finite (total_loss ")
    assert len(json.loads((directory / "nonfinite_step2.json").read_text())["examples"]) == 8


@pytest.mark.slow
def test_both_processes_end_with_one_line_when_the_first_cannot_write_the_checkpoint(two_processes):
    assert sorted(two_processes["disk full"][1]) == ["exit 2", "the disk is full"]


@pytest.mark.slow
def test_no_thread_of_the_process_group_outlives_train_py(two_processes):
    """Such a thread can abort a process that has done its work ("terminate called without an active exception")."""
    assert {name: threads for name, (*_, threads) in two_processes.items()} == dict.fromkeys(two_processes, ([], []))
