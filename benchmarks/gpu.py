"""Measures a training step on a GPU: both stages of the recipe against stock TextBrewer, in under eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --tiny     the same on a CPU or any GPU, with tiny shapes

For each pair of models, in bf16 with torch.compile:
- the real training loop on ready batches: sequences a second, and MFU by the count of needed floating-point operations;
- TextBrewer's own step under bf16 autocast, on the largest batch that fits, up to ours;
- the peak memory of both at that batch, by CUDA's allocator; a CPU has none, and the row is left out;
- the real training loop with its loader: workers, masking, pinned memory;
- the shares of the kernels in the time of a step.

TextBrewer's rounds come after ours, since both sides at once may not fit. The models have random weights. The text is the sample
corpus, in which every second token continues a word.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, print_table, write_json
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)

    # torch, transformers and TextBrewer take seconds to import; --help and a wrong argument need none of them
    import torch

    from benchmarks.gpu_pair import SEQUENCES, GpuPair, PairSettings, default_batch_size, measure, write_data

    cuda = torch.cuda.is_available()
    if not (cuda or args.tiny):
        raise UserError("no GPU here; --tiny runs the same with tiny shapes on the CPU")
    if args.tiny:
        args.batch_sizes, args.steps, args.rounds = [4, 4], 3, 1
    settings = PairSettings(
        device=torch.device("cuda" if cuda else "cpu"),
        length=64 if args.tiny else 512,
        steps=args.steps,
        rounds=args.rounds,
        compiled=cuda if args.compile is None else args.compile,
        tiny=args.tiny,
    )
    machine = {
        "device": torch.cuda.get_device_name() if cuda else "CPU",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "compiled": settings.compiled,
        "tiny": settings.tiny,
    }
    print(json.dumps(machine))

    rows: list[Row] = []
    pairs: dict[str, dict[str, Any]] = {}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="minirbt_gpu_") as work:
        data = write_data(Path(work), settings)
        sizes = args.batch_sizes or [default_batch_size(name, settings) for name in SEQUENCES]
        for name, size in zip(SEQUENCES, sizes):
            pair_rows, pairs[name] = measure(GpuPair(name, data, settings, output_dir=f"{work}/out"), size)
            rows += pair_rows
            write_json(args.output, rows, machine=machine, pairs=pairs)  # after each pair: a call that is stopped leaves its first results
    for name, found in pairs.items():
        print_pair(name, found)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    print_table(rows)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--batch_sizes", nargs=2, type=positive_int, help="of the two pairs; halved until they fit the card (default: as train.py chooses)"
    )
    parser.add_argument("--steps", type=positive_int, default=50, help="of a round of the training loop, at least 2")
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="torch.compile (default: on a GPU)")
    parser.add_argument("--tiny", action="store_true", help="an eighth as wide, length 64, batches of 4, 3 steps, one round")
    parser.add_argument("--output", default=Path(__file__).with_name("gpu.json"), help="where the results are written as JSON")
    args = parser.parse_args(argv)
    if args.steps < 2:
        raise UserError(f"--steps {args.steps}: must be at least 2; the first step of a round does not count")
    return args


def print_pair(name: str, found: dict[str, Any]) -> None:
    print(f"\n{name}: batch {found['batch_size']} (stock {found['stock_batch_size']}), MFU {percent(found['mfu'])}, one step:")
    for group, share in found["time_of_a_step"].items():
        print(f"  {percent(share):>6}  {group}")
    for kernel, share in found["longest_kernels"].items():
        print(f"          {percent(share):>6}  {kernel[:110]}")


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    run_script(main)
