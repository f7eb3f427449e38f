"""--kd_weight and --hard_label_weight as arguments of a run: what is refused, what is logged, teachers without a masked-LM head."""

import json

import pytest
from transformers import BertModel

from pretraining.config import parse
from pretraining.utils import UserError
from tests import tiny

ALONE = {"teacher_name_or_path": None, "matches": None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({**ALONE, "tokenizer": "x", "hard_label_weight": 1}, "--kd_weight and --hard_label_weight need a teacher"),
        ({**ALONE, "tokenizer": "x", "kd_weight": 0}, "--kd_weight and --hard_label_weight need a teacher"),
        ({"matches": None, "kd_weight": 0}, "--kd_weight 0: there is no loss"),
    ],
)
def test_weights_without_a_use_are_refused(changes, says, corpus, tmp_path):
    with pytest.raises(UserError, match=says):
        parse(corpus.arguments(tmp_path / "run", **changes))


@pytest.mark.parametrize("weight", ["-1", "nan", "inf", "much"])
def test_a_weight_is_a_number_from_0(weight, corpus, tmp_path):
    with pytest.raises(UserError, match="must be a number, 0 or above"):
        parse(corpus.arguments(tmp_path / "run", hard_label_weight=weight))


def test_a_run_logs_the_terms_that_it_has(corpus, tmp_path):
    tiny.run_train(
        corpus.arguments(tmp_path / "run", num_train_steps=2, kd_weight=0.5, hard_label_weight=2, matches="L2h16_L4h32_relation")
    )
    shown = {tag: values[0][1] for tag, values in tiny.scalars(tmp_path / "run").items()}
    relations = [f"scalar/unweighted_{name}_relation16_1_3" for name in ("query", "key", "value")]
    expected = 0.5 * shown["scalar/unweighted_kd_loss"] + 2 * shown["scalar/unweighted_hard_label_loss"] + sum(map(shown.get, relations))
    assert shown["scalar/total_loss"] == pytest.approx(expected, rel=1e-5)


def test_a_teacher_without_a_head_needs_a_run_without_soft_labels(corpus, tmp_path):
    """Its vocabulary may also have more places than the student's."""
    teacher = tmp_path / "teacher"
    values = {**tiny.config(len(corpus.tokenizer) + 7, 3, 32, 4)}
    tiny.model(values, seed=4).bert.save_pretrained(str(teacher))
    tiny.write_vocabulary(teacher)
    assert isinstance(BertModel.from_pretrained(str(teacher)), BertModel)
    changes = {"teacher_name_or_path": teacher, "matches": "L2h16_L3h32_hidden_mse", "num_train_steps": 2, "do_eval": "true"}
    with pytest.raises(UserError, match="the vocabularies differ"):
        tiny.run_train(corpus.arguments(tmp_path / "run", **changes))

    tiny.run_train(corpus.arguments(tmp_path / "run", **changes, kd_weight=0, hard_label_weight=1))
    assert json.loads((tmp_path / "run" / "eval.json").read_text()).keys() == {"student"}
    assert "scalar/unweighted_kd_loss" not in tiny.scalars(tmp_path / "run")


def test_a_teacher_without_a_head_is_refused_where_soft_labels_are_learned(corpus, tmp_path):
    teacher = tmp_path / "teacher"
    tiny.model(tiny.config(len(corpus.tokenizer), 4, 32, 4), seed=4).bert.save_pretrained(str(teacher))
    tiny.write_vocabulary(teacher)
    with pytest.raises(UserError, match=r"the weights of the teacher lack .* first cls\..*; without soft labels \(--kd_weight 0\)"):
        tiny.run_train(corpus.arguments(tmp_path / "run", teacher_name_or_path=teacher))
