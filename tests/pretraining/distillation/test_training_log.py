"""When the values of steps are written."""

import torch
from tqdm import tqdm

from pretraining.config import TrainingArguments
from pretraining.distillation.training_log import Step, TrainingLog
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
