"""Distillation while fine-tuning: the loss, the runs, teachers that do not fit."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import BertConfig

from finetuning import training
from finetuning.features import collate
from finetuning.heads import MODEL_CLASSES
from finetuning.task_definitions import TASKS, Task
from finetuning.training import DistillingTrainer
from pretraining.matches import get_matches
from pretraining.utils import UserError
from tests import tiny
from tests.finetuning.helpers import arguments, assert_same_outcome, results_of, run_and_kill, run_main


def head(task: str, teacher: bool):
    """A model with the task's head, its weights random but for the seed."""
    torch.manual_seed(7 if teacher else 8)
    config = BertConfig(**tiny.config(60, *((4, 32, 4) if teacher else (2, 16, 2)), dropout=0.0))
    return MODEL_CLASSES["labelling" if task == "entities" else TASKS[task].kind](config)


ENTITIES = Task("entities", "labelling", "conll", {}, metric="entity_f1")


@pytest.mark.parametrize("task", ["chnsenticorp", "cmrc2018", "entities"])
def test_the_distillation_loss_is_textbrewers_terms(tmp_path, task):
    student, teacher = head(task, teacher=False), head(task, teacher=True)
    matches = get_matches(["L2h16_L4h32_hidden_mse"], student.config, teacher.config)
    recipe = training.Recipe(TASKS.get(task, ENTITIES), ("0", "1"), [], [], [], [], "", 1e-3, 8, False)
    settings = training.trainer_arguments(recipe, tmp_path / "unit", 1, 0)
    trainer = DistillingTrainer(student, teacher, 2.0, matches, settings, data_collator=collate)
    features = [{"input_ids": np.arange(5, 5 + n, dtype=np.int32), "second": 3} for n in (9, 6)]
    goal = {"start_positions": 3, "end_positions": 4} if task == "cmrc2018" else {"labels": 1}
    rows = [{**feature, **goal} for feature in features]
    if task == "entities":
        for row, tags in zip(rows, ([-100, 0, 1, 1, -100, 0, 0, 1, -100], [-100, 1, 0, 0, 1, -100])):
            row["labels"] = np.array(tags)
    batch = collate(rows)
    loss = trainer.compute_loss(student.eval(), dict(batch)).item()

    with torch.no_grad():
        S, T = student(**batch, output_hidden_states=True), teacher(**batch, output_hidden_states=True)
        real = batch["attention_mask"].bool()
        soft = 0.0
        for name in ("start_logits", "end_logits") if task == "cmrc2018" else ("logits",):
            rows = []
            for row in range(2):
                places = real[row] if task == "cmrc2018" else slice(None) if task == "chnsenticorp" else batch["labels"][row] != -100
                rows.append(-(F.softmax(T[name][row][places] / 2, -1) * F.log_softmax(S[name][row][places] / 2, -1)).sum())
            soft += sum(rows) / (10 if task == "entities" else 2)  # ten tokens have a tag
        projections = student.get_submodule("distillation_projections")
        assert len(projections) == 3
        hidden = sum(
            F.mse_loss(projection(S.hidden_states[layer])[real], T.hidden_states[2 * layer][real])
            for layer, projection in enumerate(projections)
        )
    assert loss == pytest.approx(float(4 * soft + S.loss + hidden), rel=1e-5)
    assert not any(name.startswith("distillation_projections") for name in trainer.get_decay_parameter_names(student))
    trainer.drop_projections()
    assert not any("projections" in name for name in student.state_dict())


@pytest.mark.parametrize("task", ["chnsenticorp", "cmrc2018"])
def test_distilling_from_a_fine_tuned_teacher(world, undisturbed, tmp_path, monkeypatch, capsys, task):
    before = []
    drop = DistillingTrainer.drop_projections
    monkeypatch.setattr(DistillingTrainer, "drop_projections", lambda self: (before.append(self), drop(self))[1])
    teacher = ["--num_train_epochs", 3, "--seeds", 5, "--teacher", undisturbed[task] / "model", "--temperature", 2]
    given = arguments(world, task, tmp_path / "out", *teacher, "--matches", "L4h32_L2h16_relation", model="teacher")
    with pytest.raises(UserError, match="relations are for pretraining"):
        run_main(*given)

    given = arguments(world, task, tmp_path / "out", *teacher, "--matches", "L2h16_L2h16_hidden_mse", "--bf16")
    run_main(*given)
    losses = [entry["loss"] for entry in before[0].state.log_history if "loss" in entry]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert "teacher: f1" in (printed := capsys.readouterr().out) or "teacher: accuracy" in printed
    settings = results_of(tmp_path / "out")[0]["settings"]
    assert (settings["temperature"], settings["matches"]) == (2.0, ["L2h16_L2h16_hidden_mse"])
    assert not any("projections" in name for name in load_file(tmp_path / "out" / "model" / "model.safetensors"))


def test_a_killed_distillation_resumes_with_its_projections(world, undisturbed, tmp_path):
    teacher = ["--teacher", undisturbed["chnsenticorp"] / "model", "--matches", "L2h16_L2h16_hidden_mse"]
    teacher += ["--num_train_epochs", 2, "--seeds", 5]
    run_main(*arguments(world, "chnsenticorp", tmp_path / "whole", *teacher))
    run_and_kill(*arguments(world, "chnsenticorp", tmp_path / "killed", *teacher), steps=7)
    assert (tmp_path / "killed" / "unfinished" / "epochs2-seed5" / "checkpoint-7").is_dir()
    run_main(*arguments(world, "chnsenticorp", tmp_path / "killed", *teacher))
    assert_same_outcome(tmp_path / "killed", tmp_path / "whole")


def test_an_unfit_teacher_is_refused(world, undisturbed, tmp_path, no_tokenising):
    out = tmp_path / "out"
    given = arguments(world, "chnsenticorp", out, "--num_train_epochs", 1, "--seeds", 1, "--teacher")
    with pytest.raises(UserError, match="the weights of the teacher lack .*; give a model fine-tuned on chnsenticorp"):
        run_main(*given, str(world / "teacher"))
    with pytest.raises(UserError, match="the weights of the teacher lack .*; give a model fine-tuned on chnsenticorp"):
        run_main(*given, str(undisturbed["cmrc2018"] / "model"))
    other = tmp_path / "other"
    tokenizer = tiny.write_vocabulary(other, extra=["新"])
    tiny.model(tiny.config(len(tokenizer), 2, 16, 2), seed=1).save_pretrained(str(other))
    with pytest.raises(UserError, match="both must have the same vocabulary"):
        run_main(*given, str(other))
    config = json.loads((world / "teacher" / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**config, "id2label": {"0": "a", "1": "b", "2": "c"}, "label2id": {"a": 0, "b": 1, "c": 2}})
    )
    with pytest.raises(UserError, match="has 3 labels, chnsenticorp 2"):
        run_main(*given, str(other))
