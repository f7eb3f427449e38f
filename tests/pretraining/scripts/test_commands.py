"""All commands of pretraining/scripts/: wrong arguments are one line, and --help does not wait for heavy imports."""

import pytest

from tests.pretraining.scripts.helpers import COMMANDS, run_script

HEAVY = {"torch", "transformers", "datasets", "matplotlib", "tensorboard", "textbrewer"}


@pytest.mark.parametrize("script", COMMANDS)
def test_wrong_arguments_end_in_one_line(script):
    result = run_script(script, "--nonsense")
    assert (result.returncode, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1 and result.stderr.startswith("error: ") and script in result.stderr


@pytest.mark.parametrize("script", COMMANDS)
def test_help_imports_nothing_heavy(script):
    result = run_script(script, "--help", options=("-X", "importtime"))
    assert result.returncode == 0 and result.stdout.startswith(f"usage: {script}")
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert "argparse" in imported and not imported & HEAVY
