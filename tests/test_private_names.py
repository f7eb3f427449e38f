"""No private name of a library is used: any of its releases may change it without a word."""

import ast
import operator
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch._subclasses.fake_tensor

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("pretraining", "finetuning", "benchmarks", "experiments") for path in sorted((ROOT / folder).rglob("*.py"))]
PRIVATE = re.compile(r"_[a-z]\w*$")  # not __dunder__, not "_"
DOCUMENTED = {"_asdict", "_fields", "_replace", "_exit"}  # Python's own documentation names them
# What has no public interface, by file; test_what_is_private_is_still_there says which release broke it.
NEEDED = {
    "pretraining/distillation/memory_trace.py": {
        "_subclasses",
        "_python_dispatch",
        "_pytree",
        "torch.ops.aten._scaled_dot_product_flash_attention",
        "torch.ops.aten._scaled_dot_product_efficient_attention",
    }
}


def private_names(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each private attribute of another object, and of each private name that is imported from another package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and PRIVATE.match(node.attr) and node.attr not in DOCUMENTED:
            if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
                yield node.lineno, ast.unparse(node)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            names = [*module.split("."), *(part for alias in node.names for part in alias.name.split("."))]
            yield from ((node.lineno, name) for name in names if PRIVATE.match(name))


def overridden(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of each private method that calls the same method of its base class, which may be a library's."""
    for function in ast.walk(ast.parse(source)):
        if isinstance(function, ast.FunctionDef) and PRIVATE.match(function.name):
            if f"super().{function.name}" in ast.unparse(function):
                yield function.lineno, function.name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_another(path):
    source, needed = path.read_text(encoding="utf-8"), NEEDED.get(str(path.relative_to(ROOT)), set())
    found = [(line, name) for line, name in (*private_names(source), *overridden(source)) if name not in needed]
    assert not found, "use the library's public interface"


@pytest.mark.parametrize(
    "name",
    [
        "_subclasses.fake_tensor.FakeTensorMode",
        "utils._python_dispatch.TorchDispatchMode",
        "utils._pytree.tree_leaves",
        "ops.aten._scaled_dot_product_flash_attention",
        "ops.aten._scaled_dot_product_efficient_attention",
    ],
)
def test_what_is_private_is_still_there(name):
    try:
        operator.attrgetter(name)(torch)
    except AttributeError:
        pytest.fail(f"torch {torch.__version__} has no torch.{name}, as 2.13.0 had; pretraining/distillation/memory_trace.py needs it")


def test_the_scan_finds_what_it_looks_for():
    source = "from a._b import c\nmodel.config._attn_implementation\nself._own\nclass T(B):\n def _save(self):\n  super()._save()\n"
    assert [name for _, name in private_names(source)] == ["_b", "model.config._attn_implementation", "super()._save"]
    assert [name for _, name in overridden(source)] == ["_save"]
