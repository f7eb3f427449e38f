"""Our side of a training step: everything is set up by the functions that train.py calls."""

from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.models import Models
from benchmarks.peers import StockSide, stock_batch, update
from pretraining.config import TrainingArguments
from pretraining.distillation.distiller import Distiller, StepCallback
from pretraining.distillation.modeling import half_dtype, prepare_models
from pretraining.distillation.optimizer import make_optimizer, make_scheduler
from pretraining.distillation.upcoming import UpcomingStep


class OurSide:
    """The Distiller as train.py sets it up.

    Args:
        models: prepared here: the teacher is frozen and, with bf16, halved.
        compiled: torch.compile runs over student, teacher and loss.
        arguments: those of train.py.
    """

    def __init__(self, models: Models, device: torch.device, output_dir: str, compiled: bool = False, **arguments: Any):
        required = {"student_config": "", "teacher_name_or_path": "", "num_train_steps": 10_000}
        self.args = TrainingArguments(output_dir=output_dir, do_train=True, **{**required, **arguments})
        prepare_models(
            models.student,
            models.teacher,
            device=device,
            half=half_dtype(self.args),
            compiled=compiled,
            cpu_kernels=self.args.cpu_kernels,
        )
        self.models = models
        self.distiller = Distiller(self.args, models.student, models.teacher, models.matches, device, compiled=compiled)
        self.optimizer = make_optimizer(self.models.student, self.distiller.module.projections, self.args)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        UpcomingStep([batch]).wait()
        return self.distiller.loss(batch)[0]

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """What the training loop does with one micro-batch a step."""
        with self.distiller.float32_products():
            update(self.loss(batch), self.optimizer)

    def train(self, loader: Iterable[dict[str, torch.Tensor]], steps: int, step_callback: StepCallback | None = None) -> None:
        """The training loop of train.py with a new optimizer; checkpoints are not written."""
        optimizer = make_optimizer(self.models.student, self.distiller.module.projections, self.args)
        self.distiller.train(
            optimizer,
            loader,
            scheduler=make_scheduler(optimizer, self.args),
            num_steps=steps,
            max_grad_norm=1.0,
            callback=lambda *state: None,
            step_callback=step_callback,
        )


def losses_without_dropout(ours: OurSide, stock: StockSide, batch: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Both sides' losses for one batch. Both students must have the same weights; stock gets the weights of our projections."""
    for projection, other in zip(ours.distiller.projs, stock.distiller.projs):
        if projection is not None:
            other.load_state_dict(projection.state_dict())
    students = (ours.models.student.eval(), stock.student.eval())
    with torch.no_grad():
        losses = float(ours.loss(dict(batch))), float(stock.loss(stock_batch(batch)))
    for student in students:
        student.train()
    return losses
