"""The named layer mappings: all of the published recipe's names, exact entries, and the checks against both models."""

import copy
import re

import pytest
from textbrewer import DistillationConfig
from transformers import BertConfig

from pretraining import matches
from pretraining.utils import UserError

# name -> (feature, loss, [(student layer, teacher layer), ...], projection); mmd and gram name each layer twice
EVERY_3, EVERY_2, SAME_6 = [(i, 3 * i) for i in range(5)], [(i, 2 * i) for i in range(7)], [(i, i) for i in range(7)]
EVERY_4, EVEN = [(0, 0), (1, 4), (2, 8), (3, 12)], [(0, 0), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10), (12, 12)]
ATTENTION_3, ATTENTION_4 = [(0, 3), (1, 7), (2, 11)], [(0, 2), (1, 5), (2, 8), (3, 11)]
EXPECTED = {
    "L3_attention_mse": ("attention", "attention_mse", ATTENTION_3, None),
    "L3_attention_mse_sum": ("attention", "attention_mse_sum", ATTENTION_3, None),
    "L3_attention_ce": ("attention", "attention_ce", ATTENTION_3, None),
    "L3_attention_ce_mean": ("attention", "attention_ce_mean", ATTENTION_3, None),
    "L3_hidden_mse": ("hidden", "hidden_mse", EVERY_4, None),
    "L3_hidden_smmd": ("hidden", "mmd", EVERY_4, None),
    "L3n_hidden_mse": ("hidden", "hidden_mse", EVERY_4, (384, 768)),
    "L4_attention_mse": ("attention", "attention_mse", ATTENTION_4, None),
    "L4_attention_mse_sum": ("attention", "attention_mse_sum", ATTENTION_4, None),
    "L4_attention_ce": ("attention", "attention_ce", ATTENTION_4, None),
    "L4_attention_ce_mean": ("attention", "attention_ce_mean", ATTENTION_4, None),
    "L4_hidden_mse": ("hidden", "hidden_mse", [(i, i) for i in range(5)], (312, 768)),
    "L4_hidden_smmd": ("hidden", "mmd", EVERY_3, None),
    "L4t_hidden_mse": ("hidden", "hidden_mse", EVERY_3, (312, 768)),
    "L4t_hidden_sgram": ("hidden", "gram", EVERY_3, (312, 768)),
    "L6_hidden_mse": ("hidden", "hidden_mse", EVERY_2, None),
    "L6_hidden_smmd": ("hidden", "mmd", EVERY_2, None),
    "L6n0_hidden_mse": ("hidden", "hidden_mse", EVERY_2, (288, 768)),
    "L6h256_roberta_hidden_mse": ("hidden", "hidden_mse", EVERY_2, (256, 768)),
    "L6h256_rbt6_hidden_mse": ("hidden", "hidden_mse", SAME_6, (256, 768)),
    "L6h288_rbt6_hidden_mse": ("hidden", "hidden_mse", SAME_6, (288, 768)),
    "L6_hidden_cos": ("hidden", "cos", [(6, 12)], None),
    "L6h256_rbt6_hidden_cos": ("hidden", "cos", [(6, 6)], (256, 768)),
    "small_hidden_mse": ("hidden", "hidden_mse", EVEN, (256, 768)),
    "small_hidden_smmd": ("hidden", "mmd", EVEN, None),
}

# name -> the teacher's layer, counted from 0, and relation heads; the student's layer is its last
RELATIONS = {
    "L4h312_roberta_relation": (3, 11, 24),
    "L6h256_roberta_relation": (5, 11, 32),
    "L6h256_rbt6_relation": (5, 5, 32),
    "L6h288_rbt6_relation": (5, 5, 48),
}


def bert(layers: int, hidden: int, heads: int = 12) -> BertConfig:
    return BertConfig(num_hidden_layers=layers, hidden_size=hidden, num_attention_heads=heads)


def test_all_names_are_there():
    assert matches.matches.keys() == EXPECTED.keys() | RELATIONS.keys()


@pytest.mark.parametrize("name", RELATIONS)
def test_relations_are_exact(name):
    student, teacher, heads = RELATIONS[name]
    expected = [
        {"layer_S": student, "layer_T": teacher, "feature": feature, "loss": f"relation{heads}", "weight": 1}
        for feature in ("query", "key", "value")
    ]
    assert matches.get_matches([name], bert(student + 1, int(name[3:6])), bert(teacher + 1, 768)) == matches.matches[name] == expected


@pytest.mark.parametrize(
    ("name", "teacher_layer", "heads"),
    [
        ("L6h384_L12h768_relation", 12, 48),  # both as in the paper
        ("L6h384_L24h1024_relation", 21, 64),
        ("L6h320_L24h1024_relation", 21, 64),
        ("L4h312_L24h1024_relation", 21, 8),
        ("L6h320_L24h1024_relation_T24", 24, 64),
        ("L6h320_L24h1024_relation_R32", 21, 32),
        ("L6h320_L24h1024_relation_T19_R16", 19, 16),
        ("L3h250_L13h770_relation", 12, 10),
    ],
)
def test_relations_of_own_sizes(name, teacher_layer, heads):
    student_layers, student_size, teacher_layers, teacher_size = map(int, re.findall(r"\d+", name)[:4])
    found = matches.get_matches([name], bert(student_layers, student_size, 1), bert(teacher_layers, teacher_size, 1))
    assert [entry["feature"] for entry in found] == ["query", "key", "value"]
    assert {(entry["layer_S"], entry["layer_T"], entry["loss"]) for entry in found} == {
        (student_layers - 1, teacher_layer - 1, f"relation{heads}")
    }


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ((4, 10), [0, 3, 5, 8, 10]),  # 2.5 and 7.5 go up
        ((4, 6), [0, 2, 3, 5, 6]),
        ((5, 12), [0, 2, 5, 7, 10, 12]),
        ((6, 4), [0, 1, 1, 2, 3, 3, 4]),
        ((6, 12), [0, 2, 4, 6, 8, 10, 12]),
    ],
)
def test_depths_that_do_not_divide_get_the_nearest_relative_depth(layers, expected):
    found = matches.get_matches([f"L{layers[0]}h32_L{layers[1]}h48_hidden_mse"], bert(layers[0], 32, 4), bert(layers[1], 48, 4))
    assert [(entry["layer_S"], entry["layer_T"]) for entry in found] == list(enumerate(expected))


def test_cosines_of_own_sizes_compare_the_last_hidden_states():
    expected = {"layer_S": 3, "layer_T": 10, "feature": "hidden", "loss": "cos", "weight": 1, "proj": ["linear", 32, 48]}
    assert matches.get_matches(["L3h32_L10h48_hidden_cos"], bert(3, 32, 4), bert(10, 48, 4)) == [expected]


def test_the_description_names_every_pair():
    found = matches.get_matches(["L2h32_L3h48_hidden_mse", "L2h32_L3h48_relation"], bert(2, 32, 4), bert(3, 48, 4))
    text = "hidden hidden_mse 0<-0 1<-2 2<-3; query relation16 1<-2; key relation16 1<-2; value relation16 1<-2"
    assert matches.describe(found) == text
    assert matches.describe(matches.matches["L4_hidden_smmd"]) == "hidden mmd 0<-0 1<-3 2<-6 3<-9 4<-12"


@pytest.mark.parametrize("name", EXPECTED)
def test_entries_are_exact(name):
    feature, loss, pairs, proj = EXPECTED[name]
    expected = []
    for student, teacher in pairs:
        entry = {"layer_S": student, "layer_T": teacher, "feature": feature, "loss": loss, "weight": 1}
        if loss in ("mmd", "gram"):
            entry |= {"layer_S": [student, student], "layer_T": [teacher, teacher]}
        if proj:
            entry["proj"] = ["linear", *proj]
        expected.append(entry)
    assert matches.matches[name] == expected


@pytest.mark.parametrize("name", EXPECTED)
def test_each_fits_the_models_it_is_named_for(name):
    layers = {"L3": 3, "L4": 4, "L6": 6, "sm": 12}[name[:2]]
    proj = EXPECTED[name][3]
    teacher_layers = max(teacher for _, teacher in EXPECTED[name][2]) + (EXPECTED[name][0] == "attention")
    assert matches.get_matches([name], bert(layers, proj[0] if proj else 768), bert(teacher_layers, 768)) == matches.matches[name]


def test_several_are_joined_and_textbrewer_takes_them_without_changing_the_table():
    before = copy.deepcopy(matches.matches)
    for _ in range(2):
        found = matches.get_matches(["L4t_hidden_mse", "L4_attention_mse"], bert(4, 312), bert(12, 768))
        assert len(found) == 5 + 4
        DistillationConfig(intermediate_matches=found)  # completes "proj" in place
    assert matches.matches == before


def test_own_sizes_need_no_entry():
    found = matches.get_matches(["L2h16_L4h32_hidden_mse"], bert(2, 16, 2), bert(4, 32, 2))
    assert [(entry["layer_S"], entry["layer_T"]) for entry in found] == [(0, 0), (1, 2), (2, 4)]
    assert all(entry["proj"] == ["linear", 16, 32] and entry["loss"] == "hidden_mse" for entry in found)


@pytest.mark.parametrize(
    ("name", "student", "teacher", "says"),
    [
        ("L6_hidden_mse", bert(3, 768), bert(12, 768), "wants hidden 4 of the student, whose last is 3 (3 layers)"),
        ("L6_hidden_mse", bert(6, 768), bert(6, 768), "wants hidden 8 of the teacher, whose last is 6 (6 layers)"),
        ("L6_hidden_smmd", bert(6, 768), bert(6, 768), "wants hidden 8 of the teacher"),
        ("L3_attention_mse", bert(3, 768), bert(11, 768, 12), "wants attention 11 of the teacher, whose last is 10 (11 layers)"),
        ("L4_attention_ce", bert(3, 312), bert(12, 768), "wants attention 3 of the student, whose last is 2 (3 layers)"),
        ("L6h256_rbt6_hidden_mse", bert(6, 288), bert(6, 768), "from 256 to 768, but the student's hidden size is 288"),
        ("L6h256_rbt6_hidden_mse", bert(6, 256, 8), bert(6, 1024, 8), "the teacher's 1024"),
        ("L6_hidden_mse", bert(6, 256, 8), bert(12, 768), "has no projection, but the hidden sizes differ (student 256, teacher 768)"),
        ("L3_attention_mse", bert(3, 256, 8), bert(12, 768), "the student has 8 and the teacher 12"),
        ("L4_attention_ce", bert(4, 256, 8), bert(12, 768), "the student has 8 and the teacher 12"),
        ("L6h256_rbt6_hiden_mse", bert(6, 256, 8), bert(6, 768), "the nearest is L6h256_rbt6_hidden_mse"),
        ("?", bert(6, 256, 8), bert(6, 768), "no such mapping"),
        ("L0h256_L6h768_hidden_mse", bert(4, 256, 8), bert(6, 768), "whole numbers above 0"),
        ("L6h0_L6h768_relation", bert(6, 256, 8), bert(6, 768), "whole numbers above 0"),
        ("L6h256_L6h768_relation_T7", bert(6, 256, 8), bert(6, 768), "the teacher's layers count from 1 to 6"),
        ("L6h256_L6h768_relation_T0", bert(6, 256, 8), bert(6, 768), "the teacher's layers count from 1 to 6"),
        (
            "L6h256_L6h768_relation_R48",
            bert(6, 256, 8),
            bert(6, 768),
            "48 relation heads do not divide both hidden sizes; the most that do are 128",
        ),
        ("L6h256_L6h768_relation_R256", bert(6, 256, 8), bert(6, 768), "256 relation heads do not divide"),
        ("L6h256_L6h768_relation_R0", bert(6, 256, 8), bert(6, 768), "0 relation heads do not divide"),
        (
            "L6h256_rbt6_relation",
            bert(6, 312),
            bert(6, 768),
            "its 32 relation heads do not divide both hidden sizes (student 312, teacher 768)",
        ),
        ("L6h256_rbt6_relation", bert(4, 256, 8), bert(6, 768), "wants query 5 of the student, whose last is 3 (4 layers)"),
        ("L6h256_rbt6_hidden_cos", bert(6, 288), bert(6, 768), "the student's hidden size is 288"),
        ("L6h256_L6h768_relation", bert(6, 288), bert(6, 768), "the student's hidden size is 288 and the teacher's 768"),
        ("L6h320_L12h1024_hidden_mse", bert(6, 256, 8), bert(12, 1024, 8), "the student's hidden size is 256"),
    ],
)
def test_a_mapping_that_does_not_fit_is_refused(name, student, teacher, says):
    with pytest.raises(UserError) as error:
        matches.get_matches([name], student, teacher)
    assert says in str(error.value) and f"--matches {name}" in str(error.value)


@pytest.mark.parametrize("name", ["L3_attention_mse_sum", "L3_attention_ce_mean", "L3_hidden_smmd"])
def test_losses_that_need_no_equal_heads_or_sizes_take_any(name):
    assert matches.get_matches([name], bert(3, 256, 8), bert(12, 768, 12))


def test_own_sizes_must_name_the_layers_of_both_models():
    student = BertConfig(num_hidden_layers=6, hidden_size=320, num_attention_heads=8)
    with pytest.raises(UserError, match="the student has 6 layers and the teacher 24"):
        matches.get_matches(
            ["L6h320_L12h1024_hidden_mse"], student, BertConfig(num_hidden_layers=24, hidden_size=1024, num_attention_heads=16)
        )
