"""Steps of train.py are those of a plain loop: stock TextBrewer's loss, AdamW as published, clipping, warm-up and decay."""

import copy

import pytest
import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertForMaskedLM

from pretraining.distillation import checkpoint
from pretraining.distillation.distiller import Distiller
from tests import tiny

STEPS, WARM_UP, RATE, DECAY = 10, 2, 1e-3, 1.0


def published_rate(step: int, schedule: str) -> float:
    """Learning rate of optimizer step ``step``, counted from 1: up from 0 over the warm-up, then down to 0 or flat."""
    done = step - 1
    if done < WARM_UP:
        return RATE * done / WARM_UP
    return RATE * (STEPS - done) / (STEPS - WARM_UP) if schedule == "linear" else RATE


@pytest.mark.parametrize(("schedule", "teacher"), [("linear", True), ("const", True), ("linear", False)])
def test_steps_are_those_of_a_plain_loop(schedule, teacher, corpus, tmp_path):
    start = {}

    def keep_the_start(step: int, distiller: Distiller) -> None:
        if step == 1:
            start["student"], start["projections"] = copy.deepcopy((distiller.module.student, [*distiller.module.projections]))
            start["batches"] = distiller.batches

    plain = {} if teacher else {"teacher_name_or_path": None, "matches": None, "tokenizer": corpus.vocabulary}
    changes = {"num_train_steps": STEPS, "warmup_proportion": WARM_UP / STEPS, "learning_rate": RATE, "weight_decay_rate": DECAY, **plain}
    arguments = corpus.arguments(tmp_path / "run", student_config=corpus.calm_json, official_schedule=schedule, **changes)
    tiny.run_train(arguments, step_callback=keep_the_start)
    state = checkpoint.load_state(tmp_path / "run" / f"gs{STEPS}")
    decays = [group["weight_decay"] for group in state["optimizer"]["param_groups"]]

    student, projections = start["student"], start["projections"]
    stock = GeneralDistiller(
        TrainingConfig(output_dir=str(tmp_path / "stock"), device=torch.device("cpu")),
        DistillationConfig(
            temperature=8,
            intermediate_matches=[
                {"layer_S": i, "layer_T": 2 * i, "feature": "hidden", "loss": "hidden_mse", "weight": 1, "proj": ["linear", 16, 32]}
                for i in range(3)
            ],
        ),
        BertForMaskedLM.from_pretrained(str(corpus.teacher)) if teacher else None,
        student,
        tiny.stock_adaptor,
        tiny.stock_adaptor,
    )
    stock.projs = projections
    assert len(projections) == (3 if teacher else 0) and decays == [DECAY, 0, 0]  # weights; biases and LayerNorm; projections
    for projection in projections:
        assert projection.weight.std().item() == pytest.approx(0.02, rel=0.2) and not projection.bias.any()
    decayed = [value for name, value in student.named_parameters() if name.endswith("weight") and "LayerNorm" not in name]
    others = [value for name, value in student.named_parameters() if not name.endswith("weight") or "LayerNorm" in name]
    trained = [*student.parameters(), *(value for projection in projections for value in projection.parameters())]
    groups = [{"params": decayed, "weight_decay": DECAY}, {"params": others + trained[len(decayed) + len(others) :], "weight_decay": 0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-6)
    for step in range(1, STEPS + 1):
        batch = tiny.full_batch(start["batches"][step - 1])
        loss = stock.train_on_batch(batch, {"output_hidden_states": True})[0] if teacher else student(**batch).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = published_rate(step, schedule)
        optimizer.step()
        optimizer.zero_grad()

    shown = tiny.scalars(tmp_path / "run")
    expected = [published_rate(step, schedule) for step in range(1, STEPS + 1)]
    assert [value for _, value in shown["scalar/learning_rate"]] == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert shown["scalar/total_loss"][-1][1] == pytest.approx(loss.item(), rel=1e-5)
    assert shown["scalar/grad_norm"][-1][1] == pytest.approx(norm.item(), rel=1e-4) and norm > 1  # so the clipping counts
    trained_student = tiny.weights(tmp_path / "run" / f"gs{STEPS}")
    for name, value in student.state_dict().items():
        assert torch.allclose(trained_student[name], value, atol=2e-5, rtol=0), name
    for name, value in state["projections"].items():
        number, kind = name.split(".")
        assert torch.allclose(value, projections[int(number)].state_dict()[kind], atol=2e-5, rtol=0), name
