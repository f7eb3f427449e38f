"""What a GPU makes of a training step: both stages of the recipe against stock TextBrewer, in one call of under eight minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --tiny     the same on a CPU or any GPU, with tiny shapes

For each pair of models, bf16 and --compile:
- the real training loop on ready batches, sequences a second and MFU by the count of needed floating-point operations;
- TextBrewer's own step under bf16 autocast, on the largest batch that fits up to ours; after our rounds, as both sides at once may not fit;
- the peak memory of both at that batch (CUDA's allocator; on a CPU there is none and the row is left out);
- the real training loop with its loader: workers, masking, pinned memory;
- where the time of a step goes.

Needs what train.py needs. The models have random weights, the text is the sample corpus with every second character continuing a word.
"""

import argparse
import gc
import json
import os
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median

from rows import PRETRAINING, Row, faster, print_table, rate, under, write_json
from utils import UserError, parse_one_line_errors, read_line_blocks, run_script

SEQUENCES = {"RBT6 -> H256": (3500, 5000), "RoBERTa -> RBT6": (1400, 1900)}  # a second: target, aim
VOCABULARY = 21128

# Which group a kernel (on a CPU: an operator) belongs to; the first that fits.
GROUPS = {
    "attention": r"flash|fmha|attention",
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|addmm|aten::mm|bmm|matmul",
    "optimizer and clipping": r"multi_tensor|adam|foreach|_norm_",
    "softmax and losses": r"softmax|nll|mse|cross_entropy|logsumexp",
    "layer norm, gelu, dropout and the like": r"layer_norm|gelu|dropout|bernoulli|philox|triton|elementwise|vectorized|reduce",
    "copies": r"memcpy|memset|copy|cat|fill|gather|index|embedding",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--batch_sizes", nargs=2, type=int, default=[256, 128], help="of the two pairs; halved until they fit the card")
    parser.add_argument("--steps", type=int, default=50, help="of a round of the training loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="as train.py --compile (default: on a GPU)")
    parser.add_argument("--tiny", action="store_true", help="an eighth as wide, length 64, batches of 4, 3 steps, one round")
    parser.add_argument("--output", default=Path(__file__).with_name("gpu.json"), help="where the results are written as JSON")
    args = parse_one_line_errors(parser)
    if min(*args.batch_sizes, args.rounds, args.steps - 1) < 1:
        raise UserError("--batch_sizes and --rounds must be at least 1, --steps at least 2")

    import torch

    if not (torch.cuda.is_available() or args.tiny):
        raise UserError("no GPU here; --tiny runs the same with tiny shapes on the CPU")
    if args.tiny:
        args.batch_sizes, args.steps, args.rounds = [4, 4], 3, 1
    args.length = 64 if args.tiny else 512
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.compile is None:
        args.compile = args.device.type == "cuda"
    machine = {
        "device": torch.cuda.get_device_name() if args.device.type == "cuda" else "CPU",
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "compiled": args.compile,
        "tiny": args.tiny,
    }
    print(json.dumps(machine))

    rows, pairs, begin = [], {}, time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="minirbt_gpu_") as work:
        data = load_data(Path(work), args)
        for name, size in zip(SEQUENCES, args.batch_sizes):
            pair_rows, pairs[name] = measure(Pair(name, data, Path(work), args), size)
            rows += pair_rows
            write_json(args.output, rows, machine=machine, pairs=pairs)  # after each pair: a call that is cut short leaves something
    for name, found in pairs.items():
        print(f"\n{name}: batch {found['batch_size']} (stock {found['stock_batch_size']}), MFU {percent(found['mfu'])}, one step:")
        for group, share in found["time_of_a_step"].items():
            print(f"  {percent(share):>6}  {group}")
        for kernel, share in found["longest_kernels"].items():
            print(f"          {percent(share):>6}  {kernel[:110]}")
    print(f"\n{time.perf_counter() - begin:.0f} s in all")
    print_table(rows)


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


def load_data(work: Path, args):
    """(tokenizer, dataset, masker) as train.py has them: the sample corpus, repeated, without its last row, which is a short one."""
    from make_demo_models import vocabulary
    from masking import WholeWordMasker
    from my_datasets import load_shards
    from utils import TextAndRefs, load_tokenizer

    texts = sorted((PRETRAINING / "dataset/train/train_files").glob("*.txt"))
    tokens = vocabulary(texts)
    tokens += [f"[unused{number}]" for number in range(0 if args.tiny else VOCABULARY - len(tokens))]
    (work / "bert").mkdir()
    (work / "bert/vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    tokenizer = load_tokenizer(work / "bert")
    lines = [line for text in texts for block in read_line_blocks(text) for line in block]
    references = [list(range(2, len(ids) + 1, 2)) for ids in tokenizer(lines, add_special_tokens=False)["input_ids"]]
    repeats = 1 if args.tiny else 60
    file = TextAndRefs(work / "sample.txt", work / "sample.refs")
    file.text.write_text("".join(f"{line}\n" for line in lines) * repeats, encoding="utf-8", newline="\n")
    file.refs.write_text("".join(f"{reference}\n" for reference in references) * repeats)
    dataset, _ = load_shards([file], work / "shards", args.length, tokenizer, os.cpu_count())
    return tokenizer, dataset.select(range(len(dataset) - 1)), WholeWordMasker(tokenizer, args.length, 0.15, seed=1)


# ---------------------------------------------------------------- one pair


class Pair:
    """One pair of models and what it is trained on."""

    def __init__(self, name: str, data, work: Path, args):
        self.name, self.args, self.output_dir = name, args, str(work / "out")
        self.tokenizer, self.dataset, self.masker = data

    def models(self):
        from sides import build_models

        return build_models(self.name, len(self.tokenizer), self.args.device, self.args.tiny)

    def ours(self, size: int):
        from sides import OurSide

        args = self.args
        settings = {"bf16": True, "compile": args.compile, "num_train_steps": args.steps, "ckpt_steps": args.steps}
        settings |= {"train_batch_size": size, "max_seq_length": args.length}
        return OurSide(self.models(), args.device, self.output_dir, **settings)

    def stock(self, size: int):
        import torch
        from sides import StockSide

        return StockSide(self.models(), self.args.device, self.output_dir, torch.bfloat16)

    def batches(self, size: int):
        from my_datasets import TrainingBatches

        return TrainingBatches(self.dataset, self.masker, 1, size)

    def batch(self, size: int) -> dict:
        """One batch as the loader hands it out."""
        batch = self.batches(size)[0]
        return {key: tensor.pin_memory() for key, tensor in batch.items()} if self.args.device.type == "cuda" else batch

    def stock_batch(self, size: int) -> dict:
        from sides import stock_batch

        return stock_batch(self.batch(size))


def measure(pair: Pair, size: int) -> tuple[list[Row], dict]:
    """The rows of a pair of models, and what they do not show."""
    ours = measure_ours(pair, size)
    free_memory()
    stock = measure_stock(pair, ours["batch_size"])
    free_memory()
    if stock["batch_size"] != ours["batch_size"]:
        ours["peak"] = measure_peak(*largest_that_fits(stock["batch_size"], pair.ours, pair.batch)[1:])
        free_memory()

    name, (target, aim) = pair.name, SEQUENCES[pair.name]
    seconds = [side["seconds"] for side in (ours, stock)]
    a_sequence = [[s / side["batch_size"] for s in side["seconds"]] for side in (ours, stock)]
    rows = [
        rate(f"{name}: training loop (aim {aim:,})", [1 / s for s in a_sequence[0]], target, unit="sequences/s"),
        faster(f"{name}: one sequence, against stock TextBrewer", *a_sequence, 3.0),
        under(f"{name}: a step with the loader / on a ready batch", "s", ours["with_loader"], seconds[0], below=1.05),
    ]
    if ours["peak"]:
        gigabytes = ([ours["peak"] / 1e9], [stock["peak"] / 1e9])
        rows.append(under(f"{name}: peak memory, batch {stock['batch_size']}", "GB", *gigabytes, below=1 / 3))
    found = {key: ours[key] for key in ("batch_size", "mfu", "gflop_a_sequence", "time_of_a_step", "longest_kernels")}
    return rows, {**found, "stock_batch_size": stock["batch_size"]}


def measure_ours(pair: Pair, size: int) -> dict:
    size, side, batch = largest_that_fits(size, pair.ours, pair.batch)
    args, batches, peak = pair.args, pair.batches(size), measure_peak(side, batch)
    train_loop(side, [batch] * 2)
    seconds, with_loader = [], []
    for _ in range(args.rounds):
        seconds.append(train_loop(side, [batch] * args.steps))
        with_loader.append(train_loop(side, real_loader(batches, args)))
    return {
        "batch_size": size,
        "seconds": seconds,
        "with_loader": with_loader,
        "peak": peak,
        "mfu": side.distiller.mfu(size / median(seconds)),
        "gflop_a_sequence": side.distiller.flops() / 1e9,
        **where_time_goes(lambda: side.step(dict(batch))),
    }


def measure_stock(pair: Pair, size: int) -> dict:
    size, side, batch = largest_that_fits(size, pair.stock, pair.stock_batch)
    peak, steps = measure_peak(side, batch), max(1, pair.args.steps // 4)
    seconds = [seconds_a_step(lambda: side.step(dict(batch)), steps) for _ in range(pair.args.rounds)]
    return {"batch_size": size, "seconds": seconds, "peak": peak}


def largest_that_fits(size: int, side_of, batch_of):
    """(batch size, side, batch) after two steps with the largest size that fits, halving ``size`` until it does."""
    import torch

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
        del side, batch  # only outside of the handler, whose traceback holds on to the step's tensors
        free_memory()
        size //= 2


def free_memory() -> None:
    import torch

    gc.collect()
    torch.compiler.reset()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_peak(side, batch: dict) -> int | None:
    """Bytes that CUDA's allocator holds at the highest of a step, models and optimizer state included; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    synchronize()
    torch.cuda.reset_peak_memory_stats()
    side.step(dict(batch))
    synchronize()
    return torch.cuda.max_memory_allocated()


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds_a_step(step, steps: int) -> float:
    synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - begin) / steps


# ---------------------------------------------------------------- the training loop


def real_loader(batches, args):
    """The loader of train.py."""
    from torch.utils.data import DataLoader

    cuda = args.device.type == "cuda"
    return DataLoader(
        batches,
        batch_size=None,
        sampler=range(args.steps),
        num_workers=2 if cuda else 0,
        pin_memory=cuda,
        prefetch_factor=8 if cuda else None,
    )


def train_loop(side, loader) -> float:
    """Seconds a step of the real training loop, from the second step on: the first starts the workers and makes the optimizer's state."""
    from transformers import get_constant_schedule_with_warmup

    starts = []

    def noting_the_second():
        for index, batch in enumerate(loader):
            if index == 1:
                synchronize()
                starts.append(time.perf_counter())
            yield batch

    steps = len(loader)
    side.distiller.train(
        side.new_optimizer(),
        noting_the_second(),
        num_steps=steps,
        max_grad_norm=1.0,
        scheduler_class=get_constant_schedule_with_warmup,
        scheduler_args={"num_warmup_steps": 1},
        callback=lambda *state: None,
    )
    synchronize()
    return (time.perf_counter() - starts[0]) / (steps - 1)


# ---------------------------------------------------------------- where the time goes


def where_time_goes(step, steps: int = 3) -> dict:
    """Shares of a step's time: of the groups of kernels, of the longest kernels, and of the device doing nothing."""
    import torch

    cuda = torch.cuda.is_available()
    activities = [torch.profiler.ProfilerActivity.CPU] + [torch.profiler.ProfilerActivity.CUDA] * cuda
    with torch.profiler.profile(activities=activities) as profiler:
        whole = seconds_a_step(step, steps) * steps * 1e6
    times = Counter()
    if cuda:
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "trace.json")
            profiler.export_chrome_trace(path)
            events = json.loads(Path(path).read_text())["traceEvents"]
        for event in events:
            if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset"):
                times[event["name"]] += event["dur"]
    else:
        times.update({event.key: event.self_cpu_time_total for event in profiler.key_averages()})
    whole = max(whole, sum(times.values()))
    groups = Counter({"the device waits": whole - sum(times.values())})
    for kernel, microseconds in times.items():
        groups[next((group for group, names in GROUPS.items() if re.search(names, kernel, re.IGNORECASE)), "other")] += microseconds
    return {
        "time_of_a_step": {group: microseconds / whole for group, microseconds in groups.most_common()},
        "longest_kernels": {kernel: microseconds / whole for kernel, microseconds in times.most_common(12)},
    }


if __name__ == "__main__":
    run_script(main)
