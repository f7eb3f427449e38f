"""init_checkpoint_TA.py: which of the teacher's weights the student gets."""

import json

import pytest
import torch
from transformers import BertForMaskedLM

from pretraining.distillation.modeling import load_masked_lm
from pretraining.scripts import init_checkpoint_TA
from pretraining.utils import UserError
from tests import tiny


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


def test_a_narrower_student_gets_evenly_spaced_elements(corpus, tmp_path, capsys):
    """The teacher has 4 layers of 32, feed-forward 64; its rows and columns 0, 2, 5, 8, 10, ... of 32 for 12, where 32/12 is no whole number."""
    target = tmp_path / "init"
    arguments = ["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", "3", "1"]
    init_checkpoint_TA.main([*arguments, "--hidden_size", "12"])
    assert "hidden_size 12, intermediate_size 24, num_attention_heads 4, " in capsys.readouterr().out
    teacher, student = load_masked_lm(corpus.teacher, "the teacher").state_dict(), load_masked_lm(target, "the student")
    assert (student.config.num_hidden_layers, student.config.hidden_size, student.config.num_attention_heads) == (2, 12, 4)
    hidden, inner = [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29], [0, 2, 5, 8, 10, 13, 16, 18, 21, 24, 26, 29]
    inner += [32 + index for index in inner]
    own = student.state_dict()
    for name in ("bert.embeddings.word_embeddings.weight", "bert.embeddings.position_embeddings.weight"):
        assert torch.equal(own[name], teacher[name][:, hidden])
    assert torch.equal(own["cls.predictions.transform.dense.weight"], teacher["cls.predictions.transform.dense.weight"][hidden][:, hidden])
    assert torch.equal(own["cls.predictions.bias"], teacher["cls.predictions.bias"])
    layer, other = "bert.encoder.layer.0.", "bert.encoder.layer.3."
    query, up, down = "attention.self.query.weight", "intermediate.dense.weight", "output.dense.weight"
    assert torch.equal(own[layer + query], teacher[other + query][hidden][:, hidden])
    assert torch.equal(own[layer + up], teacher[other + up][inner][:, hidden])
    assert torch.equal(own[layer + down], teacher[other + down][hidden][:, inner])
    assert torch.equal(own["bert.encoder.layer.1.output.LayerNorm.weight"], teacher["bert.encoder.layer.1.output.LayerNorm.weight"][hidden])

    init_checkpoint_TA.main([*arguments, "--hidden_size", "12"])
    assert capsys.readouterr().out == f"{target}: up to date\n"
    init_checkpoint_TA.main([*arguments, "--hidden_size", "16"])
    assert "hidden_size 16" in capsys.readouterr().out
    assert torch.equal(
        load_masked_lm(target, "the student").cls.predictions.transform.dense.bias, teacher["cls.predictions.transform.dense.bias"][::2]
    )


def test_a_warm_start_has_the_sizes_of_the_student_and_trains(corpus, tmp_path):
    target = tmp_path / "init"
    arguments = ["--model_name_or_path", corpus.teacher, "--dump_checkpoint", target, "--student_config", corpus.calm_json]
    init_checkpoint_TA.main([*map(str, arguments), "--layers", "0", "2", "--hidden_size", "16"])
    run = corpus.arguments(tmp_path / "run", student_config=corpus.calm_json, student_pretrained_weights=target, num_train_steps=1)
    tiny.run_train(run)


@pytest.mark.parametrize(
    ("changes", "hidden_size", "says"),
    [
        ({"hidden_size": 16}, 8, "--hidden_size 8: .* has 16; give the same"),
        ({"hidden_size": 16}, None, "hidden_size is 16, but .* have 32; give the student the same, or narrow them with --hidden_size 16"),
        ({"hidden_size": 16, "intermediate_size": 65}, 16, "intermediate_size is 65, more than the 64"),
        (
            {"hidden_size": 16, "max_position_embeddings": 32},
            16,
            "max_position_embeddings is 32, but .* have 64; give the student the same$",
        ),
        (None, 33, "--hidden_size 33: the teacher has 32; give at most that"),
    ],
)
def test_a_shape_that_cannot_be_selected_is_refused(changes, hidden_size, says, corpus, tmp_path):
    config = json.loads((corpus.teacher / "config.json").read_text())
    student = tmp_path / "student.json"
    arguments = ["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(tmp_path / "init"), "--layers", "0", "1", "2", "3"]
    if changes is not None:
        student.write_text(json.dumps({**config, **changes}))
        arguments += ["--student_config", str(student)]
    with pytest.raises(UserError, match=says):
        init_checkpoint_TA.main([*arguments, *(["--hidden_size", str(hidden_size)] if hidden_size else [])])
    assert not (tmp_path / "init").exists()


def test_a_full_disk_is_one_line(corpus, tmp_path, monkeypatch):
    """safetensors has an exception of its own for it."""

    def full(*_, **__):
        raise RuntimeError("I/O error: No space left on device\nmore")

    monkeypatch.setattr(BertForMaskedLM, "save_pretrained", full)
    target = tmp_path / "init"
    with pytest.raises(UserError, match=f"{target}: could not be written; is the disk full?"):
        init_checkpoint_TA.main(["--model_name_or_path", str(corpus.teacher), "--dump_checkpoint", str(target), "--layers", "0"])
    assert [path.name for path in tmp_path.iterdir()] == [".init.lock"]
