"""Fixtures that several test files share; what they build is in tiny.py."""

import pytest
import tiny


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> tiny.Corpus:
    """Vocabulary, texts with references, teacher and student configs; read it, never write into it."""
    return tiny.Corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def tiny_tokenizer(corpus):
    return corpus.tokenizer
