"""Stages of bench.py that train: a step, its memory, the loader. Each returns rows."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import load_sample
from benchmarks.models import build_models
from benchmarks.ours import OurSide, losses_without_dropout
from benchmarks.peers import StockSide, stock_batch
from benchmarks.processes import in_fresh_process, own_peak_memory
from benchmarks.rows import Row, faster, under
from pretraining.corpus.batches import make_loader
from pretraining.reporting.timing import time_in_turn
from pretraining.utils import UserError

CPU = torch.device("cpu")


def step_stage(work: Path, args: Namespace) -> list[Row]:
    small = step_seconds(work, args.rounds, "RBT6 -> H256", {"float32": {}, "bf16": {"bf16": True}})
    large = step_seconds(work, args.rounds, "RoBERTa -> RBT6", {"float32": {}})
    return [
        faster("step RBT6 -> H256, float32", small["float32"], small["stock"], 2.0),
        faster("step RBT6 -> H256, --bf16 against float32", small["bf16"], small["stock"], 4.0),
        faster("step RoBERTa -> RBT6, float32", large["float32"], large["stock"], 1.4),
    ]


def step_seconds(work: Path, rounds: int, pair: str, settings: dict[str, dict[str, Any]], size: int = 2) -> dict[str, list[float]]:
    """Seconds per step in each round: ours with each of the settings, and "stock" TextBrewer's.

    Raises:
        UserError: the losses of both sides differ.
    """
    data, out = load_sample(work), str(work / "out")
    batch = data.batches(size)[0]
    models = build_models(pair, len(data.tokenizer), CPU)
    ours = {name: OurSide(models.copy(), CPU, out, train_batch_size=size, **setting) for name, setting in settings.items()}
    stock = StockSide(models, CPU, out)
    our_loss, stock_loss = losses_without_dropout(ours["float32"], stock, batch)
    if abs(our_loss - stock_loss) > 2e-6 * stock_loss:
        raise UserError(f"{pair}: the losses differ, ours {our_loss}, TextBrewer's {stock_loss}")
    runners = {name: partial(side.step, batch) for name, side in ours.items()}
    return time_in_turn({**runners, "stock": partial(stock.step, stock_batch(batch))}, rounds)


def memory_stage(work: Path, args: Namespace) -> list[Row]:
    """The peak memory of two steps of eight samples, less that of the process before them, with both models loaded."""
    ours = in_fresh_process(step_memory, work, "ours")
    stock = in_fresh_process(step_memory, work, "stock")
    return [under("peak memory of a step RBT6 -> H256, batch 8", "MB", [ours], [stock], below=0.4)]


def step_memory(work: Path, name: str) -> float:
    """Megabytes that the steps of one side add."""
    size, out = 8, str(work / "out")
    data = load_sample(work)
    batch = data.batches(size)[0]
    models = build_models("RBT6 -> H256", len(data.tokenizer), CPU)
    side: OurSide | StockSide
    if name == "ours":
        side = OurSide(models, CPU, out, train_batch_size=size)
    else:
        side, batch = StockSide(models, CPU, out), stock_batch(batch)
    before = own_peak_memory()
    for _ in range(2):
        side.step(batch)
    return own_peak_memory() - before


def loader_stage(work: Path, args: Namespace) -> list[Row]:
    """The training loop with its loader, and with one batch again and again; in bf16, where steps are short."""
    data, steps, size = load_sample(work), 6, 4
    models = build_models("RBT6 -> H256", len(data.tokenizer), CPU)
    side = OurSide(models, CPU, str(work / "out"), train_batch_size=size, bf16=True, num_train_steps=steps, ckpt_steps=steps)
    batches = data.batches(size)
    ready = [batches[0]] * steps
    seconds = time_in_turn(
        {
            "loader": lambda: side.train(make_loader(batches, range(steps), CPU), steps),
            "ready": lambda: side.train(ready, steps),
        },
        args.rounds,
    )
    return [under("loader: training loop with it / with one ready batch", "s", seconds["loader"], seconds["ready"], below=1.03)]
