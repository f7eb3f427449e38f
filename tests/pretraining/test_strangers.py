"""Files of strangers that escaped the fuzz test (``tests/faults/test_fuzz.py``) before they were refused in one line."""

import json
import re

import pytest

from pretraining.corpus.files import TextAndRefs
from pretraining.corpus.tokens import read_token_blocks
from pretraining.utils import UserError
from tests import tiny


def test_references_that_end_before_their_text(tiny_tokenizer, tmp_path):
    tiny.write_text(tmp_path / "text.txt", tiny.paragraphs(8, seed=1), tiny_tokenizer)
    refs = tmp_path / "text.refs"
    refs.write_text("".join(refs.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"text.refs: has fewer lines than .*text.txt; make it again with run_chinese_ref.py$"):
        list(read_token_blocks(TextAndRefs(tmp_path / "text.txt", refs), tiny_tokenizer))
