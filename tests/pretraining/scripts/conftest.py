"""Fixtures for the tests of the commands in pretraining/scripts/."""

from types import ModuleType

import pytest

from pretraining.exporting import onnx_check
from pretraining.reporting import model_speed
from pretraining.scripts import report


@pytest.fixture
def quick(monkeypatch):
    """One call a turn and one round: these tests do not look at the times."""
    for module in (model_speed, onnx_check):
        monkeypatch.setattr(module, "TURN_SECONDS", 0.0)
    for module in (report, onnx_check):
        monkeypatch.setattr(module, "ROUNDS", 1)


@pytest.fixture
def call(quick, capsys):
    """Runs a command's main with arguments in this process; returns what it printed."""

    def run(module: ModuleType, *arguments) -> str:
        module.main(list(map(str, arguments)))
        return capsys.readouterr().out

    return run
