"""A training state that does not fit the run is refused in one line; one that fits is restored bit by bit."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from pretraining.config import TrainingArguments
from pretraining.distillation import checkpoint
from pretraining.distillation.optimizer import make_optimizer, make_scheduler
from pretraining.distillation.training_state import restore_state
from pretraining.utils import UserError
from tests import tiny
from tests.pretraining.distillation.test_old_checkpoints import RUN_OF_3D33EEA, arguments

STEP = 3
EXPANDED = torch.zeros(1).expand(4, 4)  # one number, and strides of 0


class Parts:
    """What a training state is loaded into."""

    def __init__(self) -> None:
        torch.manual_seed(1)
        student, self.projections = nn.Linear(4, 4), nn.ModuleList([nn.Linear(4, 6)])
        args = TrainingArguments(student_config="", output_dir="", num_train_steps=10)
        self.optimizer = make_optimizer(student, self.projections, args)
        self.scheduler = make_scheduler(self.optimizer, args)
        self.scaler = torch.amp.GradScaler("cpu")
        self.parameters = [*student.parameters(), *self.projections.parameters()]

    def step(self, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in self.parameters:
            parameter.grad = torch.randn_like(parameter)
        self.optimizer.step()
        self.scheduler.step()

    def state(self) -> dict:
        parts = {name: getattr(self, name).state_dict() for name in ("projections", "optimizer", "scheduler", "scaler")}
        return copy.deepcopy({"step": STEP, "path": "gs3/training_state.pt", **parts})

    def restore(self, state: dict) -> None:
        restore_state(state, self.projections, self.optimizer, self.scheduler, self.scaler)


@pytest.fixture
def state() -> dict:
    parts = Parts()
    for seed in range(STEP):
        parts.step(seed)
    return parts.state()


def assert_same(left, right) -> None:
    if isinstance(left, torch.Tensor):
        assert left.equal(right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys() and all(assert_same(left[key], right[key]) is None for key in left)
    elif isinstance(left, list | tuple):
        assert len(left) == len(right) and all(assert_same(*pair) is None for pair in zip(left, right))
    else:
        assert left == right


def test_a_state_is_restored_whole(state):
    parts = Parts()
    parts.restore(copy.deepcopy(state))
    assert_same(parts.state(), state)


def test_a_key_that_an_older_release_of_torch_did_not_write_keeps_its_value(state):
    parts = Parts()
    parts.restore({**state, "scheduler": {key: value for key, value in state["scheduler"].items() if key != "_is_initial"}})
    assert_same(parts.state(), state)


def spoiled(state: dict, keys: tuple, value) -> dict:
    """The state with another value, or without one (``value`` is Ellipsis)."""
    holder = state
    for key in keys[:-1]:
        holder = holder[key]
    if value is ...:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = value
    return state


MOMENT = ("optimizer", "state", 0, "exp_avg")
RATE = ("optimizer", "param_groups", 0, "lr")


@pytest.mark.parametrize(
    ("keys", "value", "named"),
    [
        (MOMENT, torch.zeros(2, 4), "optimizer state 0 exp_avg"),
        (MOMENT, torch.zeros(4, 4, dtype=torch.float16), "optimizer state 0 exp_avg"),
        (MOMENT, torch.zeros(4, 4, dtype=torch.int64), "optimizer state 0 exp_avg"),
        (MOMENT, torch.zeros(4, 4).to_sparse(), "optimizer state 0 exp_avg"),
        (MOMENT, torch.zeros(4, 4, device="meta"), "optimizer state 0 exp_avg"),
        (MOMENT, EXPANDED, "optimizer state 0 exp_avg"),
        (MOMENT, [0.0] * 16, "optimizer state 0 exp_avg"),
        (MOMENT, ..., "optimizer state 0"),
        (("optimizer", "state", 0, "step"), torch.zeros(1), "optimizer state 0 step"),
        (("optimizer", "state", 0, "step"), 3, "optimizer state 0 step"),
        (("optimizer", "state", 0), None, "optimizer state 0"),
        (("optimizer", "state"), [], "optimizer state"),
        (("optimizer",), None, "optimizer"),
        (("optimizer", "param_groups"), [], "optimizer param_groups"),
        (("optimizer", "param_groups", 0, "params"), [1], "optimizer param_groups"),
        (RATE, float("nan"), "optimizer param_groups lr"),
        (RATE, torch.zeros(2), "optimizer param_groups lr"),
        (RATE, ..., "optimizer param_groups"),
        (("scheduler", "last_epoch"), 2, "scheduler last_epoch"),
        (("scheduler", "last_epoch"), ..., "scheduler"),
        (("scheduler", "base_lrs"), [1e-3], "scheduler base_lrs"),
        (("scheduler", "_last_lr"), [1e-3, "x", 1e-3], "scheduler _last_lr"),
        (("scaler", "scale"), "x", "scaler scale"),
        (("scaler", "_growth_tracker"), 2**63, "scaler _growth_tracker"),
        (("scaler",), {}, "scaler"),
        (("projections", "0.weight"), torch.zeros(6, 5), "projections 0.weight"),
        (("projections", "0.weight"), ..., "projections"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_nothing_is_loaded(keys, value, named, state):
    parts = Parts()
    before = parts.state()
    with pytest.raises(UserError) as error:
        parts.restore(spoiled(state, keys, value))
    assert str(error.value) == f"gs3/training_state.pt: its {named} does not fit this run; choose another checkpoint"
    assert_same(parts.state(), before)


@pytest.fixture
def copied_run(tmp_path, monkeypatch) -> Path:
    shutil.copytree(RUN_OF_3D33EEA, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old" / "run" / "gs4"


def save_spoiled(directory: Path, keys: tuple, value) -> None:
    """As a stranger would: the checksums are right."""
    state = torch.load(directory / "training_state.pt", weights_only=True)
    torch.save(spoiled(state, keys, value), directory / "training_state.pt")
    (directory / "checksums.json").unlink()
    checkpoint.write_checksums(directory)


def test_train_refuses_a_checkpoint_whose_moments_are_too_small(copied_run):
    """Fused AdamW corrupted the heap of the process."""
    save_spoiled(copied_run, MOMENT, torch.zeros(1))
    message = "run/gs4/training_state.pt: its optimizer state 0 exp_avg does not fit this run; choose another checkpoint"
    with pytest.raises(UserError, match=f"^{message}$"):
        tiny.run_train(arguments())


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("step",), "4"),
        (("step",), -1),
        (("step",), 2**63),
        (("format",), "x"),
        (("format",), torch.zeros(2)),
        (("identity",), [1]),
        (("identity", "seed"), torch.zeros(2)),
        (("identity", ("a", "b")), 1),
    ],
)
def test_train_refuses_what_is_no_training_state(keys, value, copied_run):
    save_spoiled(copied_run, keys, value)
    with pytest.raises(UserError, match=r"^run/gs4/training_state.pt: is no training state of train.py; choose another checkpoint$"):
        tiny.run_train(arguments())


@pytest.mark.parametrize("name", ["../text.txt", "/dev/zero", "", ".", "今" * 400, "a\0b", "\ud800"])
def test_a_checkpoint_whose_checksums_name_no_file_of_it(name, copied_run):
    sums = json.loads((copied_run / "checksums.json").read_text())
    (copied_run / "checksums.json").write_text(json.dumps({**sums, name: "0"}))
    with pytest.raises(UserError, match=r"all of its 1 checkpoints are damaged \(.* (is no file of the checkpoint|is missing)\)"):
        tiny.run_train(arguments())
