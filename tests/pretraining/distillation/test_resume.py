"""A run that was killed goes on as though it had not been; a damaged or foreign checkpoint is refused; the last good one stands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertModel, BertTokenizer

from pretraining import my_datasets
from pretraining.distillation import checkpoint
from pretraining.distillation.distiller import Distiller, step_seed
from pretraining.utils import UserError
from tests import tiny

STEPS = 8  # of batches of eight: more than one epoch


class Killed(BaseException):
    """Stands for a process's death: nothing in the project catches it."""


def die(distiller) -> None:
    raise Killed


def interrupted_run(arguments: list[str], step: int, act, raises) -> BaseException:
    """Runs train.py and calls ``act(distiller)`` at the start of optimizer step ``step``; returns the exception that ends the run."""

    def at_step(number: int, distiller: Distiller) -> None:
        if number == step:
            act(distiller)

    with pytest.raises(raises) as error:
        tiny.run_train(arguments, step_callback=at_step)
    return error.value


def steps(directory: Path) -> list[int]:
    return sorted(int(path.name[2:]) for path in directory.glob("gs*"))


@pytest.fixture(scope="module")
def whole_run(corpus, tmp_path_factory) -> Path:
    """An uninterrupted run of eight steps with dropout, all its checkpoints kept; read it, copy it, never write into it."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    tiny.run_train(corpus.arguments(directory, keep_checkpoints=0))
    return directory


@pytest.fixture
def copied(whole_run, tmp_path) -> Path:
    """A copy of the run as it was killed in step 7: the last checkpoint is of step 6."""
    directory = tmp_path / "run"
    shutil.copytree(whole_run, directory)
    shutil.rmtree(directory / "gs8")
    return directory


def resume(corpus, directory: Path, **changes) -> None:
    tiny.run_train(corpus.arguments(directory, **{"keep_checkpoints": 0, "resume_from_checkpoint": "latest", **changes}))


def assert_same_checkpoint(left: Path, right: Path) -> None:
    """Every file byte by byte; the training state by its content, for torch.save's own bookkeeping may differ."""
    ours, theirs = ({**tiny.snapshot(side), "training_state.pt": None, "checksums.json": None} for side in (left, right))
    assert ours == theirs
    assert_same_state(*({**checkpoint.load_state(side), "path": None} for side in (left, right)))


def assert_same_state(left, right) -> None:
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, (dict, list)):
        assert len(left) == len(right)
        for key in left if isinstance(left, dict) else range(len(left)):
            assert_same_state(left[key], right[key])
    else:
        assert left == right


def assert_same_run(directory: Path, whole_run: Path) -> None:
    """Final weights bit by bit, the training state too, and TensorBoard's scalars: every step once."""
    assert_same_checkpoint(directory / "gs8", whole_run / "gs8")
    shown, expected = tiny.scalars(directory), tiny.scalars(whole_run)
    assert shown == expected
    assert [step for step, _ in shown["scalar/total_loss"]] == list(range(1, STEPS + 1))


def test_a_run_is_repeatable_and_dropout_is_on(whole_run, corpus, tmp_path):
    tiny.run_train(corpus.arguments(tmp_path / "again", keep_checkpoints=0))
    assert_same_run(tmp_path / "again", whole_run)
    tiny.run_train(corpus.arguments(tmp_path / "calm", student_config=corpus.calm_json))
    assert tiny.scalars(tmp_path / "calm")["scalar/total_loss"][0] != tiny.scalars(whole_run)["scalar/total_loss"][0]


def test_every_step_and_process_draws_its_own_dropout():
    seeds = [step_seed(seed, step, rank) for seed in (0, 1) for step in range(1, 500) for rank in range(8)]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.slow
def test_killed_again_and_again_and_resumed(whole_run, corpus, tmp_path):
    """Killed in the first step, before any checkpoint; then wherever it stands; each time the same command goes on."""
    directory = tmp_path / "run"
    arguments = corpus.arguments(directory, resume_from_checkpoint="latest", keep_checkpoints=0)
    for step, kept in ((1, []), (2, []), (4, [2]), (5, [2, 4]), (8, [2, 4, 6])):
        interrupted_run(arguments, step, die, Killed)
        assert steps(directory) == kept
    tiny.run_train(arguments)
    assert_same_run(directory, whole_run)


def test_killed_without_projections_or_teacher_and_resumed(corpus, tmp_path):
    """Plain masked-LM training from given weights."""
    changes = {
        "teacher_name_or_path": None,
        "matches": None,
        "student_config": corpus.teacher / "config.json",
        "student_pretrained_weights": corpus.teacher,
        "official_schedule": "const",
        "gradient_accumulation_steps": 2,
    }
    tiny.run_train(corpus.arguments(tmp_path / "whole", **changes))
    arguments = corpus.arguments(tmp_path / "run", resume_from_checkpoint="latest", **changes)
    interrupted_run(arguments, 6, die, Killed)
    assert steps(tmp_path / "run") == [2, 4]
    tiny.run_train(arguments)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_killed_with_relations_and_resumed(corpus, tmp_path):
    changes = {"matches": "L2h16_L4h32_relation", "kd_weight": 0}
    tiny.run_train(corpus.arguments(tmp_path / "whole", **changes))
    arguments = corpus.arguments(tmp_path / "run", resume_from_checkpoint="latest", **changes)
    interrupted_run(arguments, 4, die, Killed)
    tiny.run_train(arguments)
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_half_written_scalar_does_no_harm(whole_run, corpus, tmp_path):
    directory = tmp_path / "run"
    interrupted_run(corpus.arguments(directory, keep_checkpoints=0), 6, die, Killed)
    end = time.monotonic() + 60
    while [step for step, _ in tiny.scalars(directory)["scalar/learning_rate"]] != [1, 2, 3, 4, 5]:
        assert time.monotonic() < end
        time.sleep(0.02)  # TensorBoard writes in a thread of its own
    written = next(directory.glob("events.out.tfevents.*"))
    written.write_bytes(written.read_bytes()[:-3])
    resume(corpus, directory)
    assert_same_run(directory, whole_run)


@pytest.mark.parametrize("ahead", [0, 3, 5 * 3600])
def test_a_resumed_run_has_every_scalar_once_when_its_first_process_had_a_later_clock(ahead, whole_run, corpus, tmp_path):
    directory = tmp_path / "run"
    interrupted_run(corpus.arguments(directory, keep_checkpoints=0), 6, die, Killed)
    written = next(directory.glob("events.out.tfevents.*"))
    written.rename(directory / f"events.out.tfevents.{int(time.time()) + ahead}.host.9.0")
    resume(corpus, directory)
    assert_same_run(directory, whole_run)


@pytest.mark.parametrize("precision", [{}, {"bf16": "true"}])
def test_evaluation_is_the_same_after_a_kill_and_on_a_finished_run(precision, corpus, tmp_path):
    directory = tmp_path / "run"
    arguments = corpus.arguments(tmp_path / "whole", do_eval="true", resume_from_checkpoint="latest", **precision)
    tiny.run_train(arguments)
    expected = (tmp_path / "whole" / "eval.json").read_bytes()
    assert json.loads(expected)["student"].keys() == {"loss", "accuracy", "masked_tokens"}
    tiny.run_train(arguments)
    assert (tmp_path / "whole" / "eval.json").read_bytes() == expected

    arguments = corpus.arguments(directory, do_eval="true", resume_from_checkpoint="latest", **precision)
    interrupted_run(arguments, 5, die, Killed)
    tiny.run_train(arguments)
    assert (directory / "eval.json").read_bytes() == expected
    final = (tmp_path / side / "gs8" / "model.safetensors" for side in ("run", "whole"))
    assert len({path.read_bytes() for path in final}) == 1


def test_evaluation_alone_leaves_the_run_as_it_was(whole_run, corpus, tmp_path):
    directory = tmp_path / "run"
    shutil.copytree(whole_run, directory)
    before = tiny.snapshot(directory)
    resume(corpus, directory, do_train=None, do_eval="true", learning_rate=1, num_train_steps=2)
    after = tiny.snapshot(directory)
    assert json.loads(after.pop("eval.json"))["student"]["masked_tokens"] > 0
    assert after == before
    with pytest.raises(UserError, match="has no checkpoint that --do_eval could take"):
        resume(corpus, tmp_path / "nothing here", do_train=None, do_eval="true")
    assert not (tmp_path / "nothing here").exists()


def test_a_dev_file_too_short_to_mask_is_an_error(corpus, tmp_path):
    tiny.write_text(tmp_path / "dev.txt", ["图书馆"], corpus.tokenizer)  # a word of three, a budget of one
    tiny.write_data_json(tmp_path / "data.json", corpus.texts, [tmp_path / "dev.txt"])
    changes = {
        "data_files_json": tmp_path / "data.json",
        "data_cache_dir": tmp_path / "shards",
        "student_config": corpus.teacher / "config.json",
    }
    with pytest.raises(UserError, match="dev files are so short that no word"):
        tiny.run_train(
            corpus.arguments(
                tmp_path / "run", do_train=None, matches=None, do_eval="true", student_pretrained_weights=corpus.teacher, **changes
            )
        )


KILLING = """
import os, signal, sys
import torch
from pretraining import train
def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)
callbacks = {}
if sys.argv.pop(1) == "while writing gs6":
    save = torch.save
    torch.save = lambda state, path: kill() if state["step"] == 6 else save(state, path)
else:
    callbacks["step_callback"] = lambda step, distiller: kill() if step == 7 else None
train.main(**callbacks)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["while writing gs6", "in step 7"])
def test_sigkill_and_resumed(when, whole_run, corpus, tmp_path):
    directory = tmp_path / "run"
    arguments = corpus.arguments(directory, resume_from_checkpoint="latest", keep_checkpoints=0)
    command = [sys.executable, "-c", KILLING, when, *arguments]
    ended = subprocess.run(command, cwd=Path(my_datasets.__file__).parent, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert steps(directory) == ([2, 4] if when == "while writing gs6" else [2, 4, 6])
    assert (directory / ".gs6.partial" / "model.safetensors").is_file() == (when == "while writing gs6")
    tiny.run_train(arguments)
    assert_same_run(directory, whole_run)
    assert [path.name for path in directory.glob(".*")] == [".lock"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_and_writes_a_checkpoint(number, status, whole_run, corpus, tmp_path, capsys):
    directory, handlers = tmp_path / "run", [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    arguments = corpus.arguments(directory, keep_checkpoints=0)
    ended = interrupted_run(arguments, 5, lambda _: os.kill(os.getpid(), number), SystemExit)
    assert ended.code == status
    assert steps(directory)[:2] == [2, 4] and steps(directory)[2:] in ([5], [6])  # the step it came in, or the next
    assert f"stopped by {number.name} after step {steps(directory)[-1]}; the checkpoint is written" in capsys.readouterr().err
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    shown = tiny.scalars(directory)["scalar/total_loss"]
    assert shown == tiny.scalars(whole_run)["scalar/total_loss"][: len(shown)] and len(shown) == steps(directory)[-1]
    resume(corpus, directory)
    assert_same_run(directory, whole_run)


def test_a_signal_in_the_last_step_ends_the_run_as_well(whole_run, corpus, tmp_path, capsys):
    """After the last checkpoint nothing else may begin: neither an evaluation nor distill.sh's next stage."""
    directory = tmp_path / "run"

    def signal_in_the_forward_pass(distiller: Distiller) -> None:  # the processes have agreed by then not to stop after this step
        distiller.module.register_forward_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM))

    arguments = corpus.arguments(directory, keep_checkpoints=0, do_eval="true")
    ended = interrupted_run(arguments, STEPS, signal_in_the_forward_pass, SystemExit)
    assert ended.code == 143 and "stopped by SIGTERM after step 8" in capsys.readouterr().err
    assert not (directory / "eval.json").exists()
    assert_same_run(directory, whole_run)


GROUP_SIGNAL = """
import os, signal
from pretraining.corpus.batches import ignore_signals
from torch.utils.data import DataLoader
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: None)
loader = iter(DataLoader(range(40), batch_size=None, num_workers=2, worker_init_fn=ignore_signals))
taken = [next(loader), next(loader)]  # one of each worker, so both are past their start
for number in (signal.SIGTERM, signal.SIGINT):
    os.killpg(0, number)
print(sum([*taken, *loader]))
"""


def test_a_signal_to_the_whole_group_leaves_the_loader_its_workers():
    """Ctrl-C and a cluster's preemption reach every process; the step that is to be finished needs its data."""
    directory = Path(my_datasets.__file__).parent
    command = [sys.executable, "-c", GROUP_SIGNAL]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, start_new_session=True, timeout=120)
    assert ended.returncode == 0 and ended.stdout == f"{sum(range(40))}\n", ended.stderr


def test_keep_checkpoints_keeps_the_newest(corpus, tmp_path):
    tiny.run_train(corpus.arguments(tmp_path / "two", keep_checkpoints=2, ckpt_steps=1))
    assert steps(tmp_path / "two") == [7, 8]
    tiny.run_train(corpus.arguments(tmp_path / "odd", keep_checkpoints=0, ckpt_steps=3))
    assert steps(tmp_path / "odd") == [3, 6, 8]


def test_keep_checkpoints_never_removes_the_one_just_written(copied, corpus, capsys):
    """Damaged newer ones must not push a whole one out."""
    for name in ("gs4", "gs6"):
        (copied / name / "model.safetensors").write_bytes(b"")
    arguments = corpus.arguments(copied, resume_from_checkpoint="latest", keep_checkpoints=1, ckpt_steps=1)
    interrupted_run(arguments, 4, die, Killed)  # after writing gs3
    assert checkpoint.find_checkpoint(copied, "latest") == copied / "gs3"


DAMAGES = {
    "a flipped bit in the weights": ("model.safetensors", lambda data: data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]),
    "a flipped bit in the training state": ("training_state.pt", lambda data: data[:-500] + bytes([data[-500] ^ 1]) + data[-499:]),
    "truncated weights": ("model.safetensors", lambda data: data[: len(data) // 2]),
    "a truncated training state": ("training_state.pt", lambda data: data[:-1]),
    "an empty config": ("config.json", lambda data: b""),
    "a missing vocabulary": ("vocab.txt", None),
    "a flipped bit in the checksums": ("checksums.json", lambda data: data[:-10] + bytes([data[-10] ^ 1]) + data[-9:]),
    "truncated checksums": ("checksums.json", lambda data: data[:30]),
    "no checksums": ("checksums.json", None),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_said_and_the_one_before_taken(damage, copied, capsys):
    name, change = DAMAGES[damage]
    path = copied / "gs6" / name
    path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    assert checkpoint.find_checkpoint(copied, "latest") == copied / "gs4"
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and str(copied / "gs6") in said and said.endswith("taking the checkpoint before gs6\n")
    with pytest.raises(UserError, match="gs6"):
        checkpoint.find_checkpoint(copied, str(copied / "gs6"))


def test_resumed_from_before_the_damage_the_run_is_the_same(copied, whole_run, corpus, capsys):
    weights = copied / "gs6" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    resume(corpus, copied)
    assert f"warning: {weights} is truncated or was changed; taking the checkpoint before gs6" in capsys.readouterr().err
    assert_same_run(copied, whole_run)
    assert_same_checkpoint(copied / "gs6", whole_run / "gs6")


def test_no_whole_checkpoint_left_is_an_error(copied, corpus):
    for directory in copied.glob("gs*"):
        (directory / "model.safetensors").unlink()
    before = tiny.snapshot(copied)
    with pytest.raises(UserError, match="all of its 3 checkpoints are damaged .*; remove the directory to start again"):
        resume(corpus, copied)
    assert tiny.snapshot(copied) == before


def test_resumes_from_a_named_checkpoint(copied, whole_run, corpus):
    resume(corpus, copied, resume_from_checkpoint=copied / "gs2")
    assert_same_run(copied, whole_run)
    with pytest.raises(UserError, match="no such directory"):
        resume(corpus, copied, resume_from_checkpoint=copied / "gs3")


def other_data(corpus, directory: Path) -> dict:
    """Other text, the rest the same."""
    changed = tiny.Corpus(directory)
    tiny.write_text(directory / "long.txt", tiny.paragraphs(14, seed=9), changed.tokenizer)
    return {"data_files_json": changed.data_json, "data_cache_dir": directory / "shards"}


def other_teacher(corpus, directory: Path) -> dict:
    shutil.copytree(corpus.teacher, directory)
    tiny.model(tiny.config(len(corpus.tokenizer), 4, 32, 4), seed=99).save_pretrained(str(directory))
    return {"teacher_name_or_path": directory}


def other_student(corpus, directory: Path) -> dict:
    return {"student_config": corpus.calm_json}


def other_tokenizer(corpus, directory: Path) -> dict:
    """The same tokens in another order, for teacher and text alike."""
    shutil.copytree(corpus.teacher, directory)
    tokens = (directory / "vocab.txt").read_text(encoding="utf-8").split("\n")
    tokens[10], tokens[11] = tokens[11], tokens[10]
    (directory / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
    return {"teacher_name_or_path": directory}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"learning_rate": 1e-3}, "another learning_rate (0.0004 there, 0.001 here)"),
        ({"num_train_steps": 9}, "another num_train_steps (8 there, 9 here)"),
        ({"train_batch_size": 4}, "another train_batch_size x processes (8 there, 4 here)"),
        ({"temperature": 4, "weight_decay_rate": 0}, "another temperature (8.0 there, 4.0 here), weight_decay_rate (0.01 there, 0.0 here)"),
        ({"mlm_probability": 0.2}, "another mlm_probability"),
        ({"random_seed": 1}, "another random_seed"),
        ({"official_schedule": "const"}, 'another official_schedule ("linear" there, "const" here)'),
        ({"warmup_proportion": 0.5}, "another warmup_proportion"),
        ({"matches": None}, "another matches"),
        ({"bf16": "true"}, "another bf16 (false there, true here)"),
        ({"max_seq_length": 16}, "another max_seq_length (32 there, 16 here), data ("),
        (other_data, "was trained on other data; --ignore_data_fingerprint resumes nevertheless"),
        (other_tokenizer, "another teacher|tokenizer ("),
        (other_teacher, "another teacher ("),
        (other_student, "student_config attention_probs_dropout_prob (0.1 there, 0.0 here)"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(change, says, copied, corpus, tmp_path):
    changes = change(corpus, tmp_path / "other") if callable(change) else change
    before = tiny.snapshot(copied)
    with pytest.raises(UserError) as error:
        resume(corpus, copied, **changes)
    message = str(error.value)
    assert message.startswith(f"{copied / 'gs6'}: ") and any(part in message for part in says.split("|"))
    assert tiny.snapshot(copied) == before


def test_other_tokenizer_is_named_too(copied, corpus, tmp_path):
    with pytest.raises(UserError, match="tokenizer.*data"):
        resume(corpus, copied, **other_tokenizer(corpus, tmp_path / "other"))
    with pytest.raises(UserError, match="tokenizer"):
        resume(corpus, copied, ignore_data_fingerprint="true", **other_tokenizer(corpus, tmp_path / "another"))


def test_ignore_data_fingerprint_goes_past_other_data_alone(copied, whole_run, corpus, tmp_path):
    changes = other_data(corpus, tmp_path / "other")
    with pytest.raises(UserError, match="another learning_rate"):
        resume(corpus, copied, ignore_data_fingerprint="true", **changes, learning_rate=1e-3)
    resume(corpus, copied, ignore_data_fingerprint="true", **changes)
    assert steps(copied) == [2, 4, 6, 8]
    shown, expected = tiny.scalars(copied)["scalar/total_loss"], tiny.scalars(whole_run)["scalar/total_loss"]
    assert shown[:6] == expected[:6] and shown[6:] != expected[6:] and [step for step, _ in shown] == list(range(1, 9))


def test_what_does_not_change_the_result_may_differ(copied, whole_run, corpus, tmp_path):
    """Paths of the same files, how often and how many checkpoints are written, the cache, the workers."""
    moved = tmp_path / "moved"
    shutil.copytree(corpus.teacher, moved / "teacher")
    shutil.copy(corpus.student_json, moved / "another name.json")
    changes = {"teacher_name_or_path": moved / "teacher", "student_config": moved / "another name.json", "data_cache_dir": moved / "shards"}
    resume(corpus, copied, **changes, ckpt_steps=1, keep_checkpoints=2, preprocessing_num_workers=2, do_eval="true")
    assert steps(copied) == [7, 8]
    assert_same_run(copied, whole_run)


def test_a_finished_run_says_so_and_changes_nothing(whole_run, corpus, tmp_path, capsys):
    directory = tmp_path / "run"
    shutil.copytree(whole_run, directory)
    resume(corpus, directory)
    capsys.readouterr()
    before = tiny.snapshot(directory)
    resume(corpus, directory)
    assert f"{directory / 'gs8'}: all 8 steps are done" in capsys.readouterr().out
    assert tiny.snapshot(directory) == before


def test_a_directory_that_holds_a_run_is_refused_without_the_word_to_resume(copied, corpus):
    before = tiny.snapshot(copied)
    with pytest.raises(UserError, match="already holds a run; resume it with --resume_from_checkpoint latest"):
        tiny.run_train(corpus.arguments(copied))
    assert tiny.snapshot(copied) == before


def spoil(distiller: Distiller) -> None:
    """The student predicts NaN; its hidden states stay finite."""
    with torch.no_grad():
        distiller.module.student.cls.predictions.bias.fill_(float("nan"))


@pytest.mark.parametrize("accumulation", [1, 2])
def test_nan_stops_the_run_and_the_last_good_checkpoint_stands(accumulation, whole_run, corpus, tmp_path):
    directory = tmp_path / "run"
    arguments = corpus.arguments(directory, keep_checkpoints=0, gradient_accumulation_steps=accumulation)
    message = str(interrupted_run(arguments, 6, spoil, UserError))
    assert "start another --output_dir" in message and "--learning_rate" in message  # with another rate it is another run
    terms = "total_loss nan, unweighted_kd_loss nan, grad_norm nan)"
    assert message.startswith(f"step 6: the loss is no longer finite ({terms}")

    record = json.loads((directory / "nonfinite_step6.json").read_text())
    assert record["step"] == 6 and record["losses"]["total_loss"] == "nan" and len(record["examples"]) == 8
    assert ", ".join(map(str, record["examples"])) in message
    text = "".join("".join(path.read_text().split()) for path in corpus.texts).lower()
    assert len(record["begin_with"]) == len(set(record["examples"])) and all(part in text for part in record["begin_with"].values())
    assert steps(directory) == [2, 4]
    assert all(torch.isfinite(tensor).all() for tensor in tiny.weights(directory / "gs4").values())

    if accumulation == 1:
        resume(corpus, directory)
        assert_same_run(directory, whole_run)


def test_the_examples_named_are_those_of_the_step(corpus, tmp_path):
    batches, drawn = [], []

    def keep_and_spoil(distiller: Distiller) -> None:
        batches.append(distiller.batches)
        distiller.module.register_forward_pre_hook(lambda module, inputs: drawn.append(inputs[0]))
        spoil(distiller)

    interrupted_run(corpus.arguments(tmp_path / "run"), 7, keep_and_spoil, UserError)
    named = json.loads((tmp_path / "run" / "nonfinite_step7.json").read_text())["examples"]
    (taken,) = drawn  # the one micro-batch of step 7, as the loader gave it
    assert len(named) == len(taken["input_ids"]) == 8
    for index, ids, masked in zip(named, taken["input_ids"].numpy(), taken["masked_positions"].numpy()):
        row = batches[0].dataset[[index]]["input_ids"][0]
        unmasked = np.setdiff1d(np.arange(1, len(row) + 1), masked)
        assert (ids[unmasked] == row[unmasked - 1]).all()


def test_a_mad_learning_rate_stops_the_run(corpus, tmp_path):
    with pytest.raises(UserError, match=r"step 2: the loss is no longer finite \(total_loss "):
        tiny.run_train(corpus.arguments(tmp_path / "run", learning_rate=1e30, warmup_proportion=0))
    assert steps(tmp_path / "run") == []


def test_a_checkpoint_loads_as_published(whole_run, corpus):
    directory = whole_run / "gs8"
    model, info = BertModel.from_pretrained(str(directory), output_loading_info=True)
    assert {re.sub(r"\..*", "", key) for key in info["missing_keys"]} == {"pooler"} and not info["mismatched_keys"]
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (2, 16)
    tokenizer = BertTokenizer.from_pretrained(str(directory))
    assert tokenizer.get_vocab() == corpus.tokenizer.get_vocab()
    assert tokenizer("今天[MASK]")["input_ids"] == corpus.tokenizer("今天[MASK]")["input_ids"]
    trained = tiny.weights(directory)
    assert torch.equal(model.embeddings.word_embeddings.weight, trained["bert.embeddings.word_embeddings.weight"])
    assert (directory / "vocab.txt").read_bytes() == (corpus.vocabulary / "vocab.txt").read_bytes()
    assert not [path for path in directory.iterdir() if path.suffix in (".pkl", ".pickle")]
    assert "attn_implementation" not in (directory / "config.json").read_text()  # of no use outside this project


def test_a_training_state_that_wants_to_run_code_is_refused(copied, corpus, tmp_path):
    class Malicious:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"step": 6, "x": Malicious()}, copied / "gs6" / "training_state.pt")
    sums = {path.name: checkpoint.file_facts(path).sha256 for path in (copied / "gs6").iterdir() if path.name != "checksums.json"}
    (copied / "gs6" / "checksums.json").write_text(json.dumps(sums))
    with pytest.raises(UserError, match="cannot be read as a training state"):
        resume(corpus, copied)
    assert not (tmp_path / "ran").exists()


def test_arguments_are_saved_beside_the_run(whole_run, corpus):
    saved = json.loads((whole_run / "arguments.json").read_text())
    assert saved["learning_rate"] == 4e-4 and saved["matches"] == ["L2h16_L4h32_hidden_mse"] and saved["temperature"] == 8.0
    assert saved["output_dir"] == str(whole_run)
