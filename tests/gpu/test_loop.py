"""The training loop on a CUDA device of fake tensors: devices, dtypes, gradients, and what would make the host wait for a GPU.

Fake tensors have no values, so that no GPU is needed: see fake_device.py. Values are the subject of tests/pretraining/distillation/.
"""

from pathlib import Path
from typing import Any

import pytest

from pretraining import matches
from tests.gpu import groups

HALF = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
STUDENTS = {
    "distill_rbt3": ("RoBERTa", "L3_hidden_mse"),
    "distill_rbt4_312": ("RoBERTa", "L4t_hidden_mse"),
    "distill_rbt6": ("RoBERTa", "L6_hidden_mse"),
    "MiniRBT-h256": ("distill_rbt6", "L6h256_rbt6_hidden_mse"),
    "MiniRBT-h288": ("distill_rbt6", "L6h288_rbt6_hidden_mse"),
}
KINDS = {
    "hidden_mse": {"feature": "hidden", "loss": "hidden_mse"},
    "hidden_mse, projected": {"feature": "hidden", "loss": "hidden_mse", "projection": True},
    "mmd": {"feature": "hidden", "loss": "mmd"},
    "gram, projected": {"feature": "hidden", "loss": "gram", "projection": True},
    "cos, projected": {"feature": "hidden", "loss": "cos", "projection": True},
    "relation": {"feature": "relation", "loss": "relation4"},
    **{
        loss: {"feature": "attention", "loss": loss} for loss in ("attention_mse", "attention_mse_sum", "attention_ce", "attention_ce_mean")
    },
}
LONG = 21  # steps; losses are read every tenth step and in the last
long_runs: groups.Cases = {
    f"{LONG} steps, {precision}": ("kind", {**KINDS["hidden_mse, projected"], "precision": precision, "steps": LONG, "micro_batches": 1})
    for precision in HALF
}
students: groups.Cases = {
    student: ("published", {"student": student, "teacher": teacher, "name": name, "precision": "bf16", "micro_batches": 1})
    for student, (teacher, name) in STUDENTS.items()
}
no_teacher: groups.Cases = {f"no teacher, {precision}": ("without_teacher", {"precision": precision}) for precision in HALF}
mappings: dict[str, groups.Cases] = {
    precision: {f"{name}, {precision}": ("mapping", {"name": name, "precision": precision, "micro_batches": 1}) for name in matches.matches}
    for precision in HALF
}
compiled: groups.Cases = {
    f"compiled {name}, {precision}": ("kind", {**kind, "precision": precision, "compiled": True, "steps": 2})
    for precision in ("bf16", "fp16")
    for name, kind in KINDS.items()
} | {"compiled, no teacher, bf16": ("without_teacher", {"precision": "bf16", "compiled": True, "steps": 2})}
every: groups.Cases = {**long_runs, **students, **no_teacher, **mappings["bf16"], **mappings["fp16"], **mappings["fp32"], **compiled}
for _, published_mapping in STUDENTS.values():
    del every[f"{published_mapping}, bf16"]  # the student's own case has it
QUICK = (f"{LONG} steps, bf16", "MiniRBT-h256", "compiled hidden_mse, projected, bf16")
quick: groups.Cases = {name: every[name] for name in QUICK}
slow: groups.Cases = {name: case for name, case in every.items() if name not in QUICK}
evaluations: groups.Cases = {"evaluation": ("evaluation", {"padded": False}), "evaluation, padded": ("evaluation", {"padded": True})}
cases: groups.Cases = {**quick, **slow, **evaluations}


@pytest.fixture(scope="session")
def loop_report(request, fake_cuda_library, tmp_path_factory) -> dict[str, Any]:
    return groups.run(groups.collected(request.session, cases), tmp_path_factory.mktemp("loop"), fake_cuda_library)


@pytest.fixture
def result(request, loop_report) -> dict[str, Any]:
    """What the case of this name returned, and its arguments."""
    found = loop_report[request.param]
    assert "error" not in found, found["error"]
    return {"arguments": cases[request.param][1], **found}


every_loop = pytest.mark.parametrize("result", [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in slow)], indirect=True)


@every_loop
def test_the_loop_reaches_its_last_step(result):
    assert result["saved"] == [result["arguments"].get("steps", 1)]


@every_loop
def test_all_is_on_the_gpu_in_its_dtype(result):
    half = HALF[result["arguments"]["precision"]]
    for name in ("student", "gradients", "moments", "losses"):
        assert result[name] == ["cuda:0 float32"], name
    assert result["teacher"] in ([], [f"cuda:0 {half}"])
    ids = ["input_ids", "labels", "masked_positions"]
    assert result["batches"] == [*(f"{name} cuda:0 int64" for name in ids), "mean_masked cuda:0 float32"]


@every_loop
def test_every_parameter_has_a_gradient(result):
    assert result["without_gradient"] == []


@every_loop
def test_the_host_waits_only_to_save(result):
    """CUDA runs behind the host: a value that the host reads, or a copy that blocks, empties its queue."""
    last = result["saved"][0]
    assert set(result["reads"]) <= {last}
    assert set(result["blocking"]) <= {0, last}  # 0: the models, before the first step


@every_loop
def test_losses_are_read_when_they_have_long_arrived(result):
    last = result["saved"][0]
    assert (last, last) in map(tuple, result["waits"]) and result["early"] == []
    assert all(waited == last or waited - recorded >= 10 for recorded, waited in result["waits"])


@every_loop
def test_a_speed_is_shown_once_when_losses_are_written(result):
    """Two windows of losses arrive together at a checkpoint; the time between them says nothing about the speed."""
    last = result["saved"][0]
    assert result["shown"] == [*range(20, last, 10), last]


@every_loop
def test_only_copies_mix_devices(result):
    """A CUDA kernel refuses a tensor on the host, except, in some, a scalar; fake tensors let scalars pass in all."""
    assert result["mixed"] == []


@pytest.mark.parametrize(
    "result", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in compiled], indirect=True
)
def test_compile_makes_one_graph(result):
    """``fullgraph`` refuses a graph break; a second graph would be a recompilation."""
    assert result["graphs"] == 1


@pytest.mark.parametrize("result", evaluations, indirect=True)
def test_evaluation_gives_sums_on_the_host(result):
    assert (result["sums"], result["shape"], result["mixed"]) == ("cpu float64", [3], [])


def test_every_published_student_is_here():
    configs = Path(matches.__file__).parent / "distill_configs"
    assert {path.stem for path in configs.glob("*.json")} == STUDENTS.keys()
