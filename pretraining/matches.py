"""The named layer mappings: which layers of the student learn from which layers of the teacher, and by which loss.

A mapping is a list of dicts in the format of TextBrewer's ``intermediate_matches``. Hidden states count from 0, the
embeddings, to the number of layers; attentions from 0 to the number of layers minus one. ``proj`` is
``["linear", student hidden size, teacher hidden size]``.

For models of your own size no entry is needed: ``L6h320_L12h1024_hidden_mse`` reads as "a student of 6 layers, hidden size
320, a teacher of 12 layers, hidden size 1024, evenly spaced layers, hidden_mse through a linear projection". ``_hidden_cos`` compares
the last hidden states alone, by their cosine, as DistilBERT does (Sanh et al. 2019, arXiv:1910.01108).

Relations (``distillation/relations.py``) match the query, key and value states of the student's last layer with those of one teacher
layer. These count as attentions do. ``L6h320_L24h1024_relation`` takes the paper's layer and heads; ``L6h320_L24h1024_relation_T24_R32``
the teacher's layer 24, counted from 1, and 32 relation heads. Several names add up: hidden states and relations together are
``--matches L6h256_rbt6_hidden_mse L6h256_rbt6_relation``. The soft labels are added unless ``--kd_weight`` is 0.
"""

import difflib
import re
from math import gcd
from typing import Any

from pretraining.utils import UserError

OWN_SIZES = re.compile(
    r"L(\d{1,4})h(\d{1,6})_L(\d{1,4})h(\d{1,6})_(?P<loss>hidden_mse|hidden_cos|relation(?:_T(?P<layer>\d{1,4}))?(?:_R(?P<heads>\d{1,4}))?)"
)
OWN_SIZES_EXAMPLE = "L6h320_L12h1024_hidden_mse"
RELATED_FEATURES = ("query", "key", "value")
MAX_RELATION_HEADS = 128
LOSS_NAME = re.compile(
    r"(hidden|attention|query|key|value)_(.+)_([\d-]+)_([\d-]+)"
)  # TextBrewer's: feature, loss, student's and teacher's layer


def evenly(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """(student, teacher) hidden states at the same relative depth, or the nearest there is, the embeddings included."""
    return [(layer, (2 * layer * teacher_layers + student_layers) // (2 * student_layers)) for layer in range(student_layers + 1)]


def hidden(loss: str, pairs: list[tuple[int, int]], proj: tuple[int, int] | None = None) -> list[dict]:
    """Hidden states matched by ``loss``; mmd and gram compare a layer's similarity matrix, so they name the layer twice."""
    twice = loss in ("mmd", "gram")
    return [
        {
            "layer_T": [teacher, teacher] if twice else teacher,
            "layer_S": [student, student] if twice else student,
            "feature": "hidden",
            "loss": loss,
            "weight": 1,
            **({"proj": ["linear", *proj]} if proj else {}),
        }
        for student, teacher in pairs
    ]


def attention(loss: str, student_layers: int, teacher_layers: int = 12) -> list[dict]:
    """The attention of every student layer against that of the last of the teacher layers it stands for."""
    step = teacher_layers // student_layers
    return [
        {"layer_T": (layer + 1) * step - 1, "layer_S": layer, "feature": "attention", "loss": loss, "weight": 1}
        for layer in range(student_layers)
    ]


def relation(student_layer: int, teacher_layer: int, heads: int) -> list[dict]:
    """The relations among queries, keys and values of two layers, counted from 1, split into ``heads`` relation heads."""
    return [
        {"layer_T": teacher_layer - 1, "layer_S": student_layer - 1, "feature": feature, "loss": f"relation{heads}", "weight": 1}
        for feature in RELATED_FEATURES
    ]


def relation_layer(teacher_layers: int) -> int:
    """The teacher's layer that relations match, from 1: the last up to 12 layers, else at 7/8 of the depth.

    Wang et al. 2021 (arXiv:2012.15828) take the last of the base models, and layer 21 of 24 of BERT-large.
    """
    return teacher_layers if teacher_layers <= 12 else teacher_layers - teacher_layers // 8


def relation_heads(student_size: int, teacher_size: int) -> int:
    """Relation heads: the largest number that divides both hidden sizes, but at most that of Wang et al. 2021 (arXiv:2012.15828).

    They take 48 for teachers up to hidden size 768, else 64.
    """
    most = 48 if teacher_size <= 768 else 64
    return max(heads for heads in range(1, most + 1) if gcd(student_size, teacher_size) % heads == 0)


ELECTRA_SMALL = [(layer, layer) for layer in range(0, 13, 2)]

matches = {
    **{
        f"L{layers}_{loss}": attention(loss, layers)
        for layers in (3, 4)
        for loss in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
    },
    "L3_hidden_mse": hidden("hidden_mse", evenly(3, 12)),
    "L3n_hidden_mse": hidden("hidden_mse", evenly(3, 12), (384, 768)),
    "L3_hidden_smmd": hidden("mmd", evenly(3, 12)),
    "L4_hidden_mse": hidden("hidden_mse", evenly(4, 4), (312, 768)),
    "L4t_hidden_mse": hidden("hidden_mse", evenly(4, 12), (312, 768)),
    "L4_hidden_smmd": hidden("mmd", evenly(4, 12)),
    "L4t_hidden_sgram": hidden("gram", evenly(4, 12), (312, 768)),
    "L6_hidden_mse": hidden("hidden_mse", evenly(6, 12)),
    "L6_hidden_smmd": hidden("mmd", evenly(6, 12)),
    "L6n0_hidden_mse": hidden("hidden_mse", evenly(6, 12), (288, 768)),
    "L6h256_roberta_hidden_mse": hidden("hidden_mse", evenly(6, 12), (256, 768)),
    "L6h256_rbt6_hidden_mse": hidden("hidden_mse", evenly(6, 6), (256, 768)),
    "L6h288_rbt6_hidden_mse": hidden("hidden_mse", evenly(6, 6), (288, 768)),
    "L6_hidden_cos": hidden("cos", [(6, 12)]),
    "L6h256_rbt6_hidden_cos": hidden("cos", [(6, 6)], (256, 768)),
    "L4h312_roberta_relation": relation(4, 12, relation_heads(312, 768)),
    "L6h256_roberta_relation": relation(6, 12, relation_heads(256, 768)),
    "L6h256_rbt6_relation": relation(6, 6, relation_heads(256, 768)),
    "L6h288_rbt6_relation": relation(6, 6, relation_heads(288, 768)),
    "small_hidden_mse": hidden("hidden_mse", ELECTRA_SMALL, (256, 768)),
    "small_hidden_smmd": hidden("mmd", ELECTRA_SMALL),
}


def get_matches(names: list[str], student_config: Any, teacher_config: Any) -> list[dict]:
    """The mappings of ``names``, joined, after a check that they fit both models.

    Args:
        names: keys of ``matches``, or names for own sizes such as ``L6h320_L12h1024_hidden_mse``.
        student_config, teacher_config: transformers.BertConfig

    Raises:
        UserError: a name without a mapping (:func:`fault_of_name`), a layer that does not exist, sizes or heads that do not go together.
    """
    found = []
    for name in names:
        entries = _find(name)
        if name not in matches:
            _check_own_sizes(name, student_config, teacher_config)
        for entry in entries:
            _check(name, entry, student_config, teacher_config)
        found += [{**entry, "proj": [*entry["proj"]]} if "proj" in entry else dict(entry) for entry in entries]
    return found


def describe(intermediate_matches: list[dict]) -> str:
    """One line: for each feature and loss the layers of the student, each with the teacher's that it learns from."""
    lines: dict[str, list[str]] = {}
    for entry in intermediate_matches:
        student, teacher = (entry[key][0] if isinstance(entry[key], list) else entry[key] for key in ("layer_S", "layer_T"))
        lines.setdefault(f"{entry['feature']} {entry['loss']}", []).append(f"{student}<-{teacher}")
    return "; ".join(f"{kind} {' '.join(pairs)}" for kind, pairs in lines.items())


def fault_of_name(name: str) -> str:
    """Why no mapping has that name, and what to do; empty if there is one."""
    if name in matches:
        return ""
    own = OWN_SIZES.fullmatch(name)
    if own is None:
        near = difflib.get_close_matches(name, matches, n=1, cutoff=0)[0]
        return f"no such mapping; the nearest is {near}, matches.py lists all; for your own sizes write a name like {OWN_SIZES_EXAMPLE}"
    student_layers, student_size, teacher_layers, teacher_size = map(int, own.groups()[:4])
    if not (student_layers and student_size and teacher_layers and teacher_size):
        return "layers and hidden sizes are whole numbers above 0"
    if own["layer"] and not 1 <= int(own["layer"]) <= teacher_layers:
        return f"the teacher's layers count from 1 to {teacher_layers}"
    heads = int(own["heads"] or 1)
    if not 1 <= heads <= MAX_RELATION_HEADS or gcd(student_size, teacher_size) % heads:
        most = max(number for number in range(1, MAX_RELATION_HEADS + 1) if gcd(student_size, teacher_size) % number == 0)
        return f"{heads} relation heads do not divide both hidden sizes; the most that do are {most}"
    return ""


def _find(name: str) -> list[dict]:
    if fault := fault_of_name(name):
        raise UserError(f"--matches {name}: {fault}")
    own = OWN_SIZES.fullmatch(name)
    if name in matches or own is None:
        return matches[name]
    student_layers, student_size, teacher_layers, teacher_size = map(int, own.groups()[:4])
    sizes = (student_size, teacher_size)
    if own["loss"] == "hidden_mse":
        return hidden("hidden_mse", evenly(student_layers, teacher_layers), sizes)
    if own["loss"] == "hidden_cos":
        return hidden("cos", [(student_layers, teacher_layers)], sizes)
    return relation(student_layers, int(own["layer"] or relation_layer(teacher_layers)), int(own["heads"] or relation_heads(*sizes)))


# ---------------------------------------------------------------- checks against the models


def _check_own_sizes(name: str, student_config: Any, teacher_config: Any) -> None:
    student_layers, student_size, teacher_layers, teacher_size = map(int, re.findall(r"\d+", name)[:4])
    layers = (student_config.num_hidden_layers, teacher_config.num_hidden_layers)
    if (student_layers, teacher_layers) != layers:
        raise UserError(f"--matches {name}: the student has {layers[0]} layers and the teacher {layers[1]}")
    sizes = (student_config.hidden_size, teacher_config.hidden_size)
    if (student_size, teacher_size) != sizes:
        raise UserError(f"--matches {name}: the student's hidden size is {sizes[0]} and the teacher's {sizes[1]}")


def _check(name: str, entry: dict, student_config: Any, teacher_config: Any) -> None:
    kind, loss = entry["feature"], entry["loss"]
    for who, key, config in (("student", "layer_S", student_config), ("teacher", "layer_T", teacher_config)):
        last = config.num_hidden_layers - (kind != "hidden")
        layer = max(entry[key]) if isinstance(entry[key], list) else entry[key]
        if layer > last:
            raise UserError(
                f"--matches {name}: wants {kind} {layer} of the {who}, whose last is {last} ({config.num_hidden_layers} layers)"
            )
    sizes = (student_config.hidden_size, teacher_config.hidden_size)
    if "proj" in entry and tuple(entry["proj"][1:3]) != sizes:
        raise UserError(
            f"--matches {name}: its projection goes from {entry['proj'][1]} to {entry['proj'][2]}, "
            f"but the student's hidden size is {sizes[0]} and the teacher's {sizes[1]}"
        )
    if kind == "hidden" and "proj" not in entry and loss != "mmd" and sizes[0] != sizes[1]:
        raise UserError(f"--matches {name}: has no projection, but the hidden sizes differ (student {sizes[0]}, teacher {sizes[1]})")
    if kind in RELATED_FEATURES and gcd(*sizes) % int(loss.removeprefix("relation")):
        raise UserError(
            f"--matches {name}: its {loss.removeprefix('relation')} relation heads do not divide both hidden sizes "
            f"(student {sizes[0]}, teacher {sizes[1]}); name your own sizes, such as L6h320_L24h1024_relation"
        )
    heads = (student_config.num_attention_heads, teacher_config.num_attention_heads)
    if loss in ("attention_mse", "attention_ce") and heads[0] != heads[1]:
        raise UserError(f"--matches {name}: compares heads one by one, but the student has {heads[0]} and the teacher {heads[1]}")
