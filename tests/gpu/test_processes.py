"""Data parallelism as on GPUs: torch.compile inside DDP equals one eager process, and the loop runs as the first of many processes."""

from typing import Any

import pytest

from tests.gpu import groups

two: groups.Cases = {
    "two compiled": ("two_processes", {"compiled": True}),
    "two eager": ("two_processes", {"compiled": False}),
}
GRAPHS = {"two compiled": 2, "two eager": 0}  # the gradients fill two buckets
many: groups.Cases = {f"first of {processes}": ("first_of", {"processes": processes}) for processes in (8, 64)}


@pytest.fixture(scope="session")
def process_report(request, tmp_path_factory) -> dict[str, Any]:
    return groups.run(groups.collected(request.session, {**two, **many}), tmp_path_factory.mktemp("processes"))


@pytest.fixture
def result(request, process_report) -> dict[str, Any]:
    """What the case of this name returned."""
    found = process_report[request.param]
    assert "error" not in found, found["error"]
    return {"name": request.param, **found}


@pytest.mark.parametrize("result", ["two compiled", pytest.param("two eager", marks=pytest.mark.slow)], indirect=True)
def test_two_processes_have_the_gradients_of_one(result):
    assert result["graphs"] == [GRAPHS[result["name"]]] * 2
    assert result["difference"] < 2e-6 < 1e-2 < result["change"]


every_many = pytest.mark.parametrize("result", many, indirect=True)


@every_many
def test_the_first_of_many_trains_to_its_last_step(result):
    assert result["saved"] == [2] and result["moved"]


@every_many
def test_the_loss_is_divided_by_the_masked_positions_of_all(result):
    """The fake group's sum is this process's own count, so the others have no masked positions."""
    assert result["mean_masked"] == result["masked"]


@every_many
def test_the_loop_waits_for_the_others_only_to_log(result):
    """Each step has one reduction that runs while it is computed; the losses are averaged when they are written, on a CPU in each step."""
    assert result["reductions"] == ["async int64", *["async int64", "blocking float32"] * 2, "async int64"]
