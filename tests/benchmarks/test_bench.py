"""benchmarks/bench.py: its stages exist, its sample text has the size it should, wrong arguments are refused before any work."""

import pkgutil
from pathlib import Path

import pytest

from benchmarks import bench, inputs, relations, startup
from pretraining.utils import UserError


@pytest.mark.parametrize("function", [bench.PREPARE, *bench.STAGES.values()])
def test_every_stage_exists(function: str):
    assert callable(pkgutil.resolve_name(function))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rounds", "0"], "--rounds 0: must be a whole number above 0"),
        (["--only", "steps"], "--only: invalid choice: 'steps'"),
        (["--corpus", "nowhere.txt"], "nowhere.txt: no such file"),
    ],
)
def test_bench_refuses_wrong_arguments(arguments: list[str], message: str):
    with pytest.raises(UserError, match=message):
        bench.main(arguments)


def test_a_short_text_is_repeated_up_to_the_size_of_the_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inputs, "SAMPLE_BYTES", 30)
    texts = [tmp_path / "a.txt", tmp_path / "b.txt"]
    texts[0].write_text("第一行\n\n", encoding="utf-8")  # 9 + 1 + 1 bytes
    texts[1].write_text("second", encoding="utf-8")  # 6 + 1 bytes
    inputs.write_sample(tmp_path / "sample.txt", texts)
    lines = (tmp_path / "sample.txt").read_text(encoding="utf-8").split("\n")
    assert lines == [*["第一行", "", "second"] * 2, ""]


def test_an_empty_text_is_refused(tmp_path: Path):
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="empty.txt: no text in it"):
        inputs.write_sample(tmp_path / "sample.txt", [tmp_path / "empty.txt"])


@pytest.mark.slow
def test_startup_times_every_kind_of_start(capsys: pytest.CaptureFixture):
    startup.main(["--gigabytes", "0.002", "--megabytes", "1", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split()[0] for line in lines[:2]] == ["first", "later"] and lines[0].startswith("2 files, 0.002 GB")


@pytest.mark.slow
def test_relations_measures_every_objective(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relations, "in_fresh_process", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(relations, "VOCABULARY", 300)
    relations.main(["--batch", "1", "--length", "8", "--rounds", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[-4:]] == list(relations.OBJECTIVES) and lines[-1].endswith(" MB")
