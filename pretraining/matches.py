"""The named layer mappings: which layers of the student learn from which layers of the teacher, and by which loss.

A mapping is a list of dicts in the format of TextBrewer's ``intermediate_matches``. Hidden states count from 0, the
embeddings, to the number of layers; attentions from 0 to the number of layers minus one. ``proj`` is
``["linear", student hidden size, teacher hidden size]``.

For models of your own size no entry is needed: ``L6h320_L12h1024_hidden_mse`` reads as "a student of 6 layers, hidden size
320, a teacher of 12 layers, hidden size 1024, evenly spaced layers, hidden_mse through a linear projection".
"""

import difflib
import re
from typing import Any

from pretraining.utils import UserError

OWN_SIZES = re.compile(r"L(\d+)h(\d+)_L(\d+)h(\d+)_hidden_mse")
OWN_SIZES_EXAMPLE = "L6h320_L12h1024_hidden_mse"


def evenly(student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """(student, teacher) hidden states at the same relative depth, the embeddings included."""
    step = teacher_layers // student_layers
    return [(layer, layer * step) for layer in range(student_layers + 1)]


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
    "small_hidden_mse": hidden("hidden_mse", ELECTRA_SMALL, (256, 768)),
    "small_hidden_smmd": hidden("mmd", ELECTRA_SMALL),
}


def get_matches(names: list[str], student_config: Any, teacher_config: Any) -> list[dict]:
    """The mappings of ``names``, joined, after a check that they fit both models.

    Args:
        names: keys of ``matches``, or names of the form ``L6h320_L12h1024_hidden_mse``.
        student_config, teacher_config: transformers.BertConfig

    Raises:
        UserError: a name without a mapping (:func:`fault_of_name`), a layer that does not exist, sizes or heads that do not go together.
    """
    found = []
    for name in names:
        entries = _find(name)
        own = OWN_SIZES.fullmatch(name)
        layers = (student_config.num_hidden_layers, teacher_config.num_hidden_layers)
        if own and (int(own[1]), int(own[3])) != layers:
            raise UserError(f"--matches {name}: the student has {layers[0]} layers and the teacher {layers[1]}")
        for entry in entries:
            _check(name, entry, student_config, teacher_config)
        found += [{**entry, "proj": [*entry["proj"]]} if "proj" in entry else dict(entry) for entry in entries]
    return found


def fault_of_name(name: str) -> str:
    """Why no mapping has that name, and what to do; empty if there is one."""
    if name in matches:
        return ""
    own = OWN_SIZES.fullmatch(name)
    if own:
        student_layers, teacher_layers = int(own[1]), int(own[3])
        if student_layers and teacher_layers % student_layers == 0:
            return ""
        return f"{teacher_layers} teacher layers cannot be spaced evenly over {student_layers}; add a mapping to matches.py"
    near = difflib.get_close_matches(name, matches, n=1, cutoff=0)[0]
    return f"no such mapping; the nearest is {near}, matches.py lists all; for your own sizes write a name like {OWN_SIZES_EXAMPLE}"


def _find(name: str) -> list[dict]:
    if fault := fault_of_name(name):
        raise UserError(f"--matches {name}: {fault}")
    own = OWN_SIZES.fullmatch(name)
    if name in matches or own is None:
        return matches[name]
    student_layers, student_size, teacher_layers, teacher_size = map(int, own.groups())
    return hidden("hidden_mse", evenly(student_layers, teacher_layers), (student_size, teacher_size))


def _check(name: str, entry: dict, student_config: Any, teacher_config: Any) -> None:
    kind = entry["feature"]
    for who, key, config in (("student", "layer_S", student_config), ("teacher", "layer_T", teacher_config)):
        last = config.num_hidden_layers - (kind == "attention")
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
    if kind == "hidden" and "proj" not in entry and entry["loss"] != "mmd" and sizes[0] != sizes[1]:
        raise UserError(f"--matches {name}: has no projection, but the hidden sizes differ (student {sizes[0]}, teacher {sizes[1]})")
    heads = (student_config.num_attention_heads, teacher_config.num_attention_heads)
    if entry["loss"] in ("attention_mse", "attention_ce") and heads[0] != heads[1]:
        raise UserError(f"--matches {name}: compares heads one by one, but the student has {heads[0]} and the teacher {heads[1]}")
