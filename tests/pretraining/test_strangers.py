"""Files of strangers that escaped the fuzz test (``tests/faults/test_fuzz.py``) before they were refused in one line."""

import json

import pytest

from pretraining.corpus.files import TextAndRefs, read_data_json
from pretraining.corpus.segmenter import read_ltp_directory
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.corpus.tokens import find_pieces, read_token_blocks
from pretraining.distillation.modeling import read_config
from pretraining.utils import UserError
from tests import tiny
from tests.workplace import command_line, run_here


def test_references_that_end_before_their_text(tiny_tokenizer, tmp_path):
    tiny.write_text(tmp_path / "text.txt", tiny.paragraphs(8, seed=1), tiny_tokenizer)
    refs = tmp_path / "text.refs"
    refs.write_text("".join(refs.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match=r"text.refs: has fewer lines than .*text.txt; make it again with run_chinese_ref.py$"):
        list(read_token_blocks(TextAndRefs(tmp_path / "text.txt", refs), tiny_tokenizer, find_pieces(tiny_tokenizer)))


TOO_LONG = "今" * 400
REFERENCES, TRAIN = "run_chinese_ref.py", "train.py"


def test_a_text_whose_name_is_too_long(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(json.dumps({"train": {"train_files": [f"{TOO_LONG}.txt"], "train_ref_files": ["a.refs"]}}))
    with pytest.raises(UserError, match=r"今\.txt: cannot be opened \(File name too long; a text file of .*data.json\)$"):
        read_data_json(path)


@pytest.mark.parametrize("name", ["/", "..", ".", "a/..", "a\0b", "\ud800", "", None, 3])
@pytest.mark.parametrize("key", ["train_files", "train_ref_files"])
def test_a_name_that_no_file_can_have(key, name, work, capfd):
    """run_chinese_ref.py would find out about some of them when it writes the references."""
    data = json.loads((work / "data.json").read_text())
    data["train"][key][0] = name
    (work / "data.json").write_text(json.dumps(data))
    ended = run_here(REFERENCES, command_line(REFERENCES), work, capfd)
    assert (ended.status, ended.err) == (2, f'error: data.json: "{key}" must be a list of file names\n')


def test_an_ltp_config_that_names_a_file_with_a_name_too_long(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"nerual": False, "tasks": {"cws": TOO_LONG}}))
    with pytest.raises(UserError, match=r"今: cannot be opened \(File name too long; "):
        read_ltp_directory(tmp_path)


@pytest.mark.parametrize(
    "settings", [{"model_max_length": "512"}, {"model_max_length": [512]}, {"truncation_side": "up"}, {"padding_side": 3}]
)
def test_tokenizer_settings_of_a_wrong_type(settings, tmp_path):
    """The library notices some of them at the first text only."""
    tiny.write_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", **settings}))
    with pytest.raises(UserError, match=r"tokenizer_config.json cannot be read \(.*\); remove them$"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"chunk_size_feed_forward": 256}, "has another chunk_size_feed_forward than 0, with which it cannot be trained; remove it"),
        ({"chunk_size_feed_forward": None}, "has another chunk_size_feed_forward than 0, with which it cannot be trained; remove it"),
        ({"return_dict": False}, "has another return_dict than true, with which it cannot be trained; remove it"),
        ({"output_hidden_states": "yes"}, "needs true or false for output_hidden_states"),
        ({"output_attentions": 1}, "needs true or false for output_attentions"),
        ({"initializer_range": -0.02}, "has no number of 0 or above for initializer_range"),
        ({"layer_norm_eps": float("nan")}, "has no number of 0 or above for layer_norm_eps"),
        ({"hidden_dropout_prob": float("nan")}, "has no number of 0 or above for hidden_dropout_prob"),
        ({"num_hidden_layers": 2**31}, "needs a whole number up to 1000 for num_hidden_layers"),
        ({"num_labels": 2**31}, "needs a whole number up to 1000000 for num_labels"),
        ({"max_position_embeddings": 2**40}, r"asks for [\d,]+ parameters; at most 10,000,000,000 are possible"),
    ],
)
def test_a_student_that_could_be_read_but_not_trained(values, message, tmp_path):
    (tmp_path / "student.json").write_text(json.dumps({**tiny.config(60, 2, 16, 2), **values}))
    with pytest.raises(UserError, match=f"student.json: the student {message}$"):
        read_config(tmp_path / "student.json", "the student")


def test_a_student_whose_config_asks_for_attentions_is_trained_and_saved(work, capfd):
    """Its first checkpoint ended in a traceback: the library saves no model that asks for what its attention cannot return."""
    (work / "student.json").write_text(json.dumps({**json.loads((work / "student.json").read_text()), "output_attentions": True}))
    ended = run_here(TRAIN, command_line(TRAIN), work, capfd)
    assert ended.status == 0, ended.err
    assert (work / "run" / "gs4" / "model.safetensors").is_file()
