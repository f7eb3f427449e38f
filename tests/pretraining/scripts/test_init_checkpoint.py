"""init_checkpoint_TA.py: which of the teacher's weights the student gets."""

import json

import pytest
import torch
from transformers import BertForMaskedLM

from pretraining.distillation.modeling import load_masked_lm
from pretraining.scripts import init_checkpoint_TA
from pretraining.utils import UserError


def test_layers_are_the_teachers_and_so_is_the_rest(corpus, tmp_path, capsys):
    target = tmp_path / "init"
    init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", "3", "0", "3"])
    teacher = load_masked_lm(corpus.teacher, "the teacher").state_dict()
    student = load_masked_lm(target, "the student").state_dict()
    assert f"{target}: layers [3, 0, 3] of {corpus.teacher}" in capsys.readouterr().out
    assert json.loads((target / "config.json").read_text())["num_hidden_layers"] == 3
    outside = {name for name in teacher if ".encoder.layer." not in name}
    assert outside == {name for name in student if ".encoder.layer." not in name}
    assert any(name.startswith("cls.") for name in outside)
    for name in outside:
        assert torch.equal(student[name], teacher[name])
    for student_layer, teacher_layer in enumerate((3, 0, 3)):
        names = [name for name in student if f".encoder.layer.{student_layer}." in name]
        assert len(names) == 16
        for name in names:
            assert torch.equal(student[name], teacher[name.replace(f".layer.{student_layer}.", f".layer.{teacher_layer}.")])


def test_a_result_of_the_same_teacher_is_kept_and_a_changed_one_replaced(corpus, tmp_path, capsys):
    target = tmp_path / "init"

    def run(*layers: str) -> str:
        init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", *layers])
        return capsys.readouterr().out

    assert "layers [0, 2]" in run("0", "2")
    assert run("0", "2") == f"{target}: up to date\n"
    assert "layers [1]" in run("1")
    (target / "model.safetensors").write_bytes(b"damaged")
    assert "layers [1]" in run("1")


def test_a_directory_of_the_users_is_not_replaced(corpus, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="was not made by this script"):
        init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(tmp_path)])


def test_layers_and_sizes_are_those_of_the_student_that_is_named(corpus, tmp_path):
    """train.py would refuse the weights too, but only after the text is tokenised."""
    config = json.loads((corpus.teacher / "config.json").read_text())
    student = tmp_path / "student.json"
    arguments = ["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(tmp_path / "init"), "--student_config", str(student)]

    def run(*layers: str, **changes) -> None:
        student.write_text(json.dumps({**config, "num_hidden_layers": 2, **changes}))
        init_checkpoint_TA.main([*arguments, "--layers", *layers])

    with pytest.raises(UserError, match=r"^--layers 0 1 3: \S+/student.json has 2 layers; name as many"):
        run("0", "1", "3")
    with pytest.raises(UserError, match=r"student.json: intermediate_size is 32, but the layers of \S+ have 64; give the student the same"):
        run("0", "3", intermediate_size=32)
    assert not (tmp_path / "init").exists()
    run("0", "3")
    assert (tmp_path / "init" / "model.safetensors").exists()


def test_a_full_disk_is_one_line(corpus, tmp_path, monkeypatch):
    """safetensors has an exception of its own for it."""

    def full(*_, **__):
        raise RuntimeError("I/O error: No space left on device\nmore")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    target = tmp_path / "init"
    with pytest.raises(UserError, match=f"{target}: could not be written; is the disk full?"):
        init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", "0"])
    assert [path.name for path in tmp_path.iterdir()] == [".init.lock"]
