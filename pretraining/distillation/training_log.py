"""What a run reports of its steps: TensorBoard scalars, the progress bar, and the error of a loss that is not finite."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from pretraining.config import TrainingArguments
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import write_json
from pretraining.matches import LOSS_NAME, RELATED_FEATURES
from pretraining.utils import UserError


class Step(NamedTuple):
    """The values of one optimizer step, still on the device.

    Attributes:
        losses: (terms,) float; total loss and its terms, the mean over this process's micro-batches.
        grad_norm, loss_scale: scalars.
    """

    number: int
    learning_rate: float
    losses: torch.Tensor
    grad_norm: torch.Tensor
    loss_scale: torch.Tensor


class Window:
    """The values of a few steps on their way from the device to pinned memory.

    Args:
        names: of the losses.
        values: (steps, losses + 2) float; then grad_norm and loss_scale.
    """

    def __init__(self, steps: list[Step], names: list[str], values: torch.Tensor):
        self.steps, self.names = steps, names
        self.values = values.to("cpu", non_blocking=True)
        self.copied = torch.cuda.Event() if values.is_cuda else None
        if self.copied is not None:
            self.copied.record()

    def rows(self) -> list[list[float]]:
        """The values as numbers; waits until they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.values.tolist()


class TrainingLog:
    """Collects steps and writes them together: to read a loss makes the host wait for the device.

    Args:
        start_step: the step that the run resumes from; TensorBoard hides what an earlier process wrote after it.
        batches: names the examples of a step whose loss is not finite.
        utilization: MFU from samples per second over all processes, or None where it is not known.
    """

    def __init__(
        self,
        args: TrainingArguments,
        start_step: int,
        rank: int,
        world_size: int,
        batches: TrainingBatches | None,
        utilization: Callable[[float], float | None],
    ):
        self.args, self.rank, self.world_size = args, rank, world_size
        self.output_dir = Path(args.output_dir)
        self.batches, self.utilization = batches, utilization
        self.steps: list[Step] = []
        self.windows: list[Window] = []
        self.last_time, self.last_step = time.perf_counter(), start_step
        if rank == 0:
            if start_step == 0:
                for stale in self.output_dir.glob("events.out.tfevents.*"):
                    stale.unlink()
            threading.excepthook = _ignore_failed_tensorboard_write
            with self.failed_write_as_user_error():
                _put_earlier_files_first(self.output_dir)
                self.writer = SummaryWriter(args.output_dir, purge_step=start_step + 1 if start_step else None)

    def add(self, step: Step) -> None:
        self.steps.append(step)

    def write(self, names: list[str], bar: tqdm, *, wait: bool = True) -> None:
        """Averages the collected steps over the processes, checks that they are finite, and writes them.

        Args:
            names: of ``Step.losses``.
            wait: False writes the steps of the call before; the device sends the new ones while it computes.

        Raises:
            UserError: a loss is not finite. In float16 a step may overflow until its scale is below 1.
        """
        losses = torch.stack([step.losses for step in self.steps])
        if self.world_size > 1:
            dist.all_reduce(losses)
            losses /= self.world_size
        others = torch.stack([torch.stack([step.grad_norm, step.loss_scale]) for step in self.steps])
        self.windows.append(Window(self.steps, names, torch.cat([losses, others], dim=1)))
        newest, self.steps = self.steps[-1], []
        losses_shown: dict[str, float] = {}
        while len(self.windows) > (0 if wait else 1):
            losses_shown = self._write_window(self.windows.pop(0), bar)
        if losses_shown:
            self._show_speed(newest, bar, losses_shown)

    def _write_window(self, window: "Window", bar: tqdm) -> dict[str, float]:
        """Returns the losses of the last step."""
        rows = window.rows()
        for step, (*values, grad_norm, loss_scale) in zip(window.steps, rows):
            self._write_step(step, dict(zip(window.names, values)), grad_norm, loss_scale, bar)
        return dict(zip(window.names, rows[-1]))

    def _write_step(self, step: Step, losses: dict[str, float], grad_norm: float, loss_scale: float, bar: tqdm) -> None:
        scalars = {**losses, "grad_norm": grad_norm}
        if np.isfinite(list(scalars.values())).all():
            if self.rank == 0:
                with self.failed_write_as_user_error():
                    for name, value in {**scalars, "learning_rate": step.learning_rate}.items():
                        self.writer.add_scalar(f"scalar/{name}", value, step.number)
        elif self.args.fp16 and loss_scale >= 1:  # below 1 no scale is small enough, so the scale is not the cause
            if self.rank == 0:
                bar.write(
                    f"step {step.number}: a gradient overflowed float16; skipped the step, the loss scale is now {loss_scale:g}",
                    file=sys.stderr,
                )
        else:
            raise self._not_finite(step.number, scalars)

    def _show_speed(self, last: Step, bar: tqdm, losses: dict[str, float]) -> None:
        now = time.perf_counter()
        samples = (last.number - self.last_step) * self.args.train_batch_size * self.world_size
        samples_per_second = samples / (now - self.last_time)
        self.last_time, self.last_step = now, last.number
        shown = {
            **summed_terms(losses),
            "lr": f"{last.learning_rate:.2e}",
            "samples/s": f"{samples_per_second:.1f}",
            "tokens/s": f"{samples_per_second * self.args.max_seq_length:.0f}",
        }
        if utilization := self.utilization(samples_per_second):
            shown["MFU"] = f"{utilization:.0%}"
        bar.set_postfix(shown, refresh=False)
        bar.update(last.number - bar.n)

    def _not_finite(self, step: int, values: dict[str, float]) -> UserError:
        assert self.batches is not None
        indices = self.batches.examples_of_step(step)
        path = self.output_dir / f"nonfinite_step{step}.json"
        if self.rank == 0:
            self.flush()
            losses = {name: str(value) for name, value in values.items()}
            examples = {"examples": indices.tolist(), "begin_with": self.batches.beginnings(indices)}
            write_json(path, {"step": step, "losses": losses, **examples})
        bad = [f"{name} {value:g}" for name, value in values.items() if not np.isfinite(value)]
        terms = ", ".join(bad[:3]) + (f", {len(bad) - 3} more" if len(bad) > 3 else "")
        first = ", ".join(map(str, indices[:8])) + (", …" if len(indices) > 8 else "")
        return UserError(
            f"step {step}: the loss is no longer finite ({terms}); examples {first} (all in {path}, with their first words); "
            "the checkpoints are good: fix the data and resume with --ignore_data_fingerprint, or start another --output_dir "
            "from the last one (--student_pretrained_weights) with a lower --learning_rate"
        )

    def flush(self) -> None:
        """Writes the scalars to the disk; for rank 0."""
        with self.failed_write_as_user_error():
            self.writer.flush()

    @contextmanager
    def failed_write_as_user_error(self) -> Iterator[None]:
        """Turns a full disk into one line; TensorBoard raises an OSError that names no file."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"{self.output_dir}: the TensorBoard scalars could not be written ({error.strerror}); free some space and resume"
            ) from None


def _put_earlier_files_first(output_dir: Path) -> None:
    """Renames the event files of earlier processes that TensorBoard would read after a new one, because the clock was ahead then.

    TensorBoard reads event files in the order of their names: whole seconds, host, process. They keep their order, also after a kill.
    """
    files = sorted(path for path in output_dir.glob("events.out.tfevents.*") if path.name.split(".")[3].isdigit())
    now = int(time.time())
    if any(int(path.name.split(".")[3]) >= now for path in files):
        for second, path in enumerate(files, now - len(files)):
            path.rename(path.with_name(".".join([*path.name.split(".")[:3], str(second), *path.name.split(".")[4:]])))


def summed_terms(losses: dict[str, float]) -> dict[str, str]:
    """The total loss and, if it has several, its unweighted terms, for one line: those of a match are summed over the layers."""
    terms: dict[str, float] = {}
    for name, value in losses.items():
        short = name.removeprefix("unweighted_").removesuffix("_loss")
        if found := LOSS_NAME.fullmatch(short):
            short = "relation" if found[1] in RELATED_FEATURES else found[2]
        terms[short] = terms.get(short, 0.0) + value
    total = terms.pop("total")
    return {"loss": f"{total:.4f}", **({name: f"{value:.4f}" for name, value in terms.items()} if len(terms) > 1 else {})}


def _ignore_failed_tensorboard_write(failed: Any) -> None:
    """A failed write in TensorBoard's thread is raised again by the next write or flush; its own traceback adds nothing."""
    if not (issubclass(failed.exc_type, OSError) and type(failed.thread).__module__.startswith("tensorboard")):
        threading.__excepthook__(failed)
