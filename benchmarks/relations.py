"""Time and memory of a training step on a CPU with relations, with hidden states, and with the soft labels alone.

    python benchmarks/relations.py

RBT6 -> MiniRBT-H256 with random weights and random tokens. The time is that of one step, the objectives in turn; the memory is what two
steps add to a process that has loaded both models.
"""

import os
import tempfile
from functools import partial
from statistics import median
from typing import Any

import torch

from benchmarks.models import PAIRS, Models, build_models
from benchmarks.ours import OurSide
from benchmarks.processes import in_fresh_process, own_peak_memory
from pretraining.matches import get_matches
from pretraining.reporting.timing import time_in_turn
from pretraining.utils import ArgumentParser, positive_int, run_script, sequence_length

PAIR, VOCABULARY = "RBT6 -> H256", 21128
OBJECTIVES: dict[str, list[str]] = {
    "soft labels alone": [],
    "hidden states": [PAIRS[PAIR].matches],
    "relations": ["L6h256_rbt6_relation"],
    "both": [PAIRS[PAIR].matches, "L6h256_rbt6_relation"],
}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--batch", type=positive_int, default=4, help="samples of a step")
    parser.add_argument("--length", type=sequence_length, default=512, help="tokens of a sample")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed rounds, after one that warms up")
    args = parser.parse_args(argv)
    seconds = in_fresh_process(step_seconds, args.batch, args.length, args.rounds)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, batch {args.batch}, length {args.length}, {args.rounds} rounds")
    for name in OBJECTIVES:
        megabytes = in_fresh_process(step_memory, name, args.batch, args.length)
        print(f"{name}: {median(seconds[name]):.2f} s ({min(seconds[name]):.2f}-{max(seconds[name]):.2f}), {megabytes:.0f} MB", flush=True)


def step_seconds(batch_size: int, length: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step in each round, by objective."""
    with tempfile.TemporaryDirectory() as out:
        sides = {name: make_side(name, out, batch_size, length) for name in OBJECTIVES}
        batch = make_batch(batch_size, length)
        return time_in_turn({name: partial(side.step, batch) for name, side in sides.items()}, rounds)


def step_memory(name: str, batch_size: int, length: int) -> float:
    """Megabytes that two steps add."""
    with tempfile.TemporaryDirectory() as out:
        side, batch = make_side(name, out, batch_size, length), make_batch(batch_size, length)
        before = own_peak_memory()
        for _ in range(2):
            side.step(batch)
        return own_peak_memory() - before


def make_side(name: str, out: str, batch_size: int, length: int) -> OurSide:
    student, teacher, _ = build_models(PAIR, VOCABULARY, torch.device("cpu"))
    models = Models(student, teacher, get_matches(OBJECTIVES[name], student.config, teacher.config))
    return OurSide(models, torch.device("cpu"), out, train_batch_size=batch_size, max_seq_length=length)


def make_batch(batch_size: int, length: int) -> dict[str, Any]:
    """Random tokens, of which 15 % are masked."""
    random, masked = torch.Generator().manual_seed(0), max(1, round(0.15 * length))
    ids, labels = (torch.randint(200, VOCABULARY, (batch_size, width), generator=random) for width in (length, masked))
    places = torch.stack([torch.randperm(length, generator=random)[:masked] for _ in range(batch_size)])
    return {"input_ids": ids, "labels": labels, "masked_positions": places}


if __name__ == "__main__":
    run_script(main)
