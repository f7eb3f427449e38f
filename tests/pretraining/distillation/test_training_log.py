"""When the values of steps are written."""

import torch
from tqdm import tqdm

from pretraining.config import TrainingArguments
from pretraining.distillation.training_log import Step, TrainingLog, summed_terms
from tests import tiny


def test_without_waiting_the_steps_of_the_call_before_are_written(tmp_path):
    log = TrainingLog(TrainingArguments(student_config="", output_dir=str(tmp_path)), 0, 0, 1, None, lambda rate: None)

    def write(step: int, wait: bool) -> list[tuple[int, float]]:
        log.add(Step(step, 0.1, torch.tensor([float(step)]), torch.tensor(1.0), torch.tensor(1.0)))
        log.write(["total_loss"], tqdm(disable=True), wait=wait)
        log.flush()
        return tiny.scalars(tmp_path).get("scalar/total_loss", [])

    assert write(1, wait=False) == []
    assert write(2, wait=False) == [(1, 1.0)]
    assert write(3, wait=True) == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_the_step_line_shows_where_the_loss_goes():
    hidden = {f"unweighted_hidden_hidden_mse_{layer}_{2 * layer}": 0.25 for layer in range(3)}
    relations = {f"unweighted_{name}_relation32_5_11": value for name, value in (("query", 0.5), ("key", 0.25), ("value", 1.0))}
    losses = {"total_loss": 8.0, "unweighted_kd_loss": 3.0, **hidden, **relations, "unweighted_hard_label_loss": 2.5}
    shown = {"loss": "8.0000", "kd": "3.0000", "hidden_mse": "0.7500", "relation": "1.7500", "hard_label": "2.5000"}
    assert summed_terms(losses) == shown
    assert summed_terms({"total_loss": 2.0, "unweighted_hard_label_loss": 2.0}) == {"loss": "2.0000"}
    assert summed_terms({"total_loss": 2.0, "unweighted_hidden_mmd_1-1_2-2": 2.0, "unweighted_kd_loss": 1.0})["mmd"] == "2.0000"
