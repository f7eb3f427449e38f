"""Fixtures that several test files share; what they build is in tiny.py."""

import shutil
import signal
from pathlib import Path

import pytest

from tests import tiny, workplace

# nohup and a shell's background jobs have these ignored, and every process of the tests would inherit that.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tiny.Corpus:
    """Vocabulary, texts with references, teacher and student configs; read it, never write into it."""
    return tiny.Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_tokenizer(corpus):
    return corpus.tokenizer


@pytest.fixture(scope="session")
def template(tmp_path_factory) -> Path:
    """A small pretraining directory as a user has it; copy it, never write into it."""
    directory = tmp_path_factory.mktemp("template") / "pretraining"
    workplace.build(directory)
    return directory


@pytest.fixture
def work(template, tmp_path) -> Path:
    """A copy of it to work in and to spoil."""
    return Path(shutil.copytree(template, tmp_path / "work"))
