"""What a user reads on the terminal: the project's own lines, not a library's notices and not all arguments."""

import json
import sys
import warnings

import pytest
import torch
from transformers import BertConfig, BertForPreTraining

from tests import tiny, workplace
from tests.workplace import run_there

TA = "scripts/init_checkpoint_TA.py"


def write_teacher_with_unused_weights(directory) -> None:
    """As published models are: with a pooler and a next-sentence head, which masked-LM training does not use."""
    torch.manual_seed(3)
    tokenizer = tiny.write_vocabulary(directory)
    BertForPreTraining(BertConfig(**tiny.config(len(tokenizer), 4, 32, 4))).save_pretrained(str(directory))


def test_weights_that_are_rightly_unused_are_not_reported(work):
    write_teacher_with_unused_weights(work / "teacher")
    ended = run_there([sys.executable, TA, *workplace.command_line(TA)], work)
    assert (ended.status, ended.err) == (0, "")
    assert ended.out.splitlines() == ["init: layers [0, 2] of teacher, 23,849 parameters"]


def test_a_run_prints_what_is_not_the_default_and_keeps_all(work):
    write_teacher_with_unused_weights(work / "teacher")
    ended = run_there(
        [sys.executable, "train.py", *workplace.command_line("train.py", learning_rate="4e-4", preprocessing_num_workers=None)], work
    )
    assert ended.status == 0, ended.err
    lines = [line for line in ended.out.splitlines() if line and not line.startswith("checkpoint: ")]
    assert lines == [
        "student: student.json, 7,625 parameters",
        "matches, student<-teacher: hidden hidden_mse 0<-0 1<-2 2<-4",
        "device: cpu; processes: 1; samples per forward pass: 4",
        "directory: run",
        "not the default: --teacher_name_or_path teacher --matches L2h16_L4h32_hidden_mse --data_files_json data.json --data_cache_dir shards "
        "--max_seq_length 32 --do_train True --num_train_steps 4 --train_batch_size 4 --no_cuda True --ckpt_steps 2",
    ]
    assert json.loads((work / "run" / "arguments.json").read_text())["warmup_proportion"] == 0.1
    assert "Warning" not in ended.err and "LOAD REPORT" not in ended.out + ended.err


@pytest.mark.parametrize("kind", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_warning_about_a_call_of_ours_is_an_error_in_the_tests(kind):
    """pyproject.toml says so; a warning about a library's call of another is none."""
    with pytest.raises(kind):
        warnings.warn_explicit("is gone in the next release", kind, "x.py", 1, module="pretraining.distillation.distiller")
    if kind is DeprecationWarning:
        warnings.warn_explicit("is gone in the next release", kind, "x.py", 1, module="transformers.trainer")
