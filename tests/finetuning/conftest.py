"""Tiny tasks and models for the fine-tuning tests."""

from pathlib import Path

import pytest

from finetuning import training
from tests import tiny
from tests.finetuning.helpers import arguments, run_main, write_task


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """Tiny tasks, a student (2 layers of size 16), and a teacher (4 of size 32) that is not fine-tuned."""
    directory = tmp_path_factory.mktemp("finetuning")
    for name in ("chnsenticorp", "cmrc2018"):
        write_task(directory / name, name)
    for name, shape in (("student", (2, 16, 2)), ("teacher", (4, 32, 4))):
        tokenizer = tiny.write_vocabulary(directory / name)
        tiny.model(tiny.config(len(tokenizer), *shape), seed=3).save_pretrained(str(directory / name))
    return directory


@pytest.fixture
def no_tokenising(monkeypatch):
    """The test fails if the data is tokenised."""
    monkeypatch.setattr(training, "make_features", lambda *_, **__: pytest.fail("must not tokenise"))


@pytest.fixture(scope="session")
def undisturbed(world, tmp_path_factory) -> dict[str, Path]:
    """The directories of runs that nothing interrupted, by task."""
    made = {}
    for task in ("chnsenticorp", "cmrc2018"):
        made[task] = tmp_path_factory.mktemp("undisturbed") / task
        run_main(*arguments(world, task, made[task], "--num_train_epochs", 3, "--seeds", 5))
    return made
