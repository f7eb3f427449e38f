"""One pair of models on a GPU, or with tiny shapes on a CPU: the time and the memory of a training step, ours and the stock one."""

import gc
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.inputs import VOCABULARY, Data, load_data, sample_corpus, write_corpus_with_references, write_vocabulary
from benchmarks.kernel_times import kernel_shares, synchronize
from benchmarks.models import PAIRS, Models, build_models, model_config
from benchmarks.ours import OurSide
from benchmarks.peers import StockSide, stock_batch
from benchmarks.rows import Row, faster, rate, under
from pretraining.corpus.batches import make_loader
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.memory import largest_forward_batch
from pretraining.matches import get_matches
from pretraining.reporting.timing import time_in_turn
from pretraining.utils import UserError

SEQUENCES = {"RBT6 -> H256": (3500, 5000), "RoBERTa -> RBT6": (1400, 1900)}  # a second: target, aim

Batch = dict[str, Tensor]
Side = TypeVar("Side", OurSide, StockSide)


@dataclass(frozen=True)
class PairSettings:
    """How all pairs are measured.

    Attributes:
        length: tokens of a sample.
        steps: optimizer steps of a round of the training loop.
        compiled: torch.compile runs over student, teacher and loss.
        tiny: models an eighth as wide, and the sample corpus once.
    """

    device: torch.device
    length: int
    steps: int
    rounds: int
    compiled: bool
    tiny: bool


def default_batch_size(name: str, settings: PairSettings) -> int:
    """Samples of a forward pass as train.py chooses them for this card, of the 512 that the published batch gives each of 8 GPUs."""
    memory = torch.cuda.get_device_properties(settings.device).total_memory
    configs = [model_config(model, VOCABULARY, tiny=False) for model in (PAIRS[name].student, PAIRS[name].teacher)]
    matches = get_matches([PAIRS[name].matches], *configs)
    return largest_forward_batch(memory, *configs, matches, settings.length, torch.bfloat16, train_batch_size=512)


def write_data(work: Path, settings: PairSettings) -> Data:
    """The sample corpus, repeated."""
    write_vocabulary(work / "bert", sample_corpus(), entries=0 if settings.tiny else VOCABULARY)
    tokenizer = load_tokenizer(work / "bert")
    file = write_corpus_with_references(work, tokenizer, repeats=1 if settings.tiny else 60)
    return load_data([file], work / "shards", tokenizer, settings.length, num_workers=os.cpu_count() or 1)


class GpuPair:
    """One pair of models and its data: builds either side, and a batch for it, at any batch size."""

    def __init__(self, name: str, data: Data, settings: PairSettings, output_dir: str):
        self.name, self.data, self.settings, self.output_dir = name, data, settings, output_dir

    def models(self) -> Models:
        return build_models(self.name, len(self.data.tokenizer), self.settings.device, self.settings.tiny)

    def ours(self, size: int) -> OurSide:
        return OurSide(
            self.models(),
            self.settings.device,
            self.output_dir,
            bf16=True,
            compiled=self.settings.compiled,
            num_train_steps=self.settings.steps,
            ckpt_steps=self.settings.steps,
            train_batch_size=size,
            max_seq_length=self.settings.length,
        )

    def stock(self, size: int) -> StockSide:
        return StockSide(self.models(), self.settings.device, self.output_dir, torch.bfloat16)

    def batch(self, size: int) -> Batch:
        """One batch as the loader hands it out."""
        batch = self.data.batches(size)[0]
        return {key: tensor.pin_memory() for key, tensor in batch.items()} if self.settings.device.type == "cuda" else batch

    def stock_batch(self, size: int) -> Batch:
        return stock_batch(self.batch(size))


# ---------------------------------------------------------------- both sides


def measure(pair: GpuPair, size: int) -> tuple[list[Row], dict[str, Any]]:
    """The rows of a pair of models, and what they do not show."""
    ours = measure_ours(pair, size)
    free_memory()
    stock = measure_stock(pair, ours["batch_size"])
    free_memory()
    if stock["batch_size"] != ours["batch_size"]:
        _, side, batch = largest_that_fits(stock["batch_size"], pair.ours, pair.batch)
        ours["peak"] = measure_peak(side, batch)
        del side, batch
        free_memory()

    name, (target, aim) = pair.name, SEQUENCES[pair.name]
    ours_per_sequence = [seconds / ours["batch_size"] for seconds in ours["seconds"]]
    stock_per_sequence = [seconds / stock["batch_size"] for seconds in stock["seconds"]]
    rows = [
        rate(f"{name}: training loop (aim {aim:,})", [1 / seconds for seconds in ours_per_sequence], target, unit="sequences/s"),
        faster(f"{name}: one sequence, against stock TextBrewer", ours_per_sequence, stock_per_sequence, 3.0),
        under(f"{name}: a step with the loader / on a ready batch", "s", ours["with_loader"], ours["seconds"], below=1.05),
    ]
    if ours["peak"]:
        our_peak, stock_peak = [ours["peak"] / 1e9], [stock["peak"] / 1e9]
        rows.append(under(f"{name}: peak memory, batch {stock['batch_size']}", "GB", our_peak, stock_peak, below=1 / 3))
    shown = {key: ours[key] for key in ("batch_size", "mfu", "gflop_a_sequence", "time_of_a_step", "longest_kernels")}
    return rows, {**shown, "stock_batch_size": stock["batch_size"]}


def measure_ours(pair: GpuPair, size: int) -> dict[str, Any]:
    """Our side at the largest batch that fits; seconds are those of one step in each round."""
    settings = pair.settings
    size, side, batch = largest_that_fits(size, pair.ours, pair.batch)
    peak = measure_peak(side, batch)
    seconds_per_step(side, [batch] * 2, 2)  # warms up
    batches, seconds, with_loader = pair.data.batches(size), [], []
    for _ in range(settings.rounds):
        seconds.append(seconds_per_step(side, [batch] * settings.steps, settings.steps))
        with_loader.append(seconds_per_step(side, make_loader(batches, range(settings.steps), settings.device), settings.steps))
    return {
        "batch_size": size,
        "seconds": seconds,
        "with_loader": with_loader,
        "peak": peak,
        "mfu": side.distiller.utilization(size / median(seconds)),
        "gflop_a_sequence": side.distiller.flops_per_sample() / 1e9,
        **kernel_shares(lambda: side.step(dict(batch))),
    }


def measure_stock(pair: GpuPair, size: int) -> dict[str, Any]:
    """The stock side at the largest batch that fits, up to ``size``; seconds are those of one step in each round."""
    size, side, batch = largest_that_fits(size, pair.stock, pair.stock_batch)
    peak, steps = measure_peak(side, batch), max(1, pair.settings.steps // 4)

    def run() -> None:
        for _ in range(steps):
            side.step(dict(batch))
        synchronize()

    rounds = time_in_turn({"stock": run}, pair.settings.rounds)["stock"]
    return {"batch_size": size, "seconds": [seconds / steps for seconds in rounds], "peak": peak}


def seconds_per_step(side: OurSide, loader: Iterable[Batch], steps: int) -> float:
    """Seconds per step of the training loop, from the second step on: the first starts the workers and makes the optimizer's state."""
    start = 0.0

    def note_second_step(step: int, distiller: Distiller) -> None:
        nonlocal start
        if step == 2:
            synchronize()
            start = time.perf_counter()

    side.train(loader, steps, step_callback=note_second_step)
    synchronize()
    return (time.perf_counter() - start) / (steps - 1)


# ---------------------------------------------------------------- memory


def largest_that_fits(size: int, side_of: Callable[[int], Side], batch_of: Callable[[int], Batch]) -> tuple[int, Side, Batch]:
    """Takes two steps with the largest batch that fits, halving ``size`` until it does.

    Returns:
        the batch size, what ``side_of`` returns for it, and the batch.
    """
    while True:
        side = side_of(size)
        batch = batch_of(size)
        try:
            for _ in range(2):
                side.step(dict(batch))
            return size, side, batch
        except torch.OutOfMemoryError:
            if size == 1:
                raise UserError("not even one sample fits into the GPU's memory") from None
        del side, batch  # outside the handler: its traceback holds the step's tensors
        free_memory()
        size //= 2


def free_memory() -> None:
    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_peak(side: OurSide | StockSide, batch: Batch) -> int | None:
    """The most bytes that CUDA's allocator holds during a step, models and optimizer state included; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    side.step(dict(batch))
    synchronize()
    return torch.cuda.max_memory_allocated()
