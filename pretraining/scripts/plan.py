"""Prints what a recipe costs before it runs: memory of a GPU, floating-point operations, hours, GPU-hours, disk.

    python scripts/plan.py --recipe h256 --gpu H100 --ngpu 8
    python scripts/plan.py --recipe h288 --gpu 4090 --ngpu 2 train_steps=20000 length=256

Words behind the options are variables of distill.sh. Memory and operations are counted on the recipe's real models, without a GPU and
without their memory. Hours are estimated: see --mfu.
"""

import argparse
from dataclasses import fields
from typing import TYPE_CHECKING

from pretraining.distillation.gpus import BANDWIDTH_SHARE, CARDS, COMPILED_SHARE, Card
from pretraining.distillation.memory import card_bytes
from pretraining.launching.variables import listing, read_words
from pretraining.recipes import RECIPES, Settings, build_stages, read_settings
from pretraining.reporting.tables import markdown_table
from pretraining.utils import ArgumentParser, UserError, positive_float, positive_int, run_script

if TYPE_CHECKING:  # imports torch and transformers, which --help does not need
    from pretraining.reporting.costs import Training


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    settings = read_plan_settings(args)

    from pretraining.reporting.costs import read_training  # takes seconds to import; the checks above need none of it

    trainings = [read_training(stage) for stage in build_stages(settings)]
    print_plan(args, settings, trainings)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--recipe", default="h256", help=listing([recipe.name for recipe in RECIPES]))
    parser.add_argument("--gpu", required=True, type=card_name, help=listing(list(CARDS)))
    parser.add_argument("--ngpu", default=1, type=positive_int, help="GPUs on all machines together")
    parser.add_argument(
        "--mfu",
        type=model_flops_utilization,
        help="share of the GPU's peak that training reaches, for example 0.35; train.py prints it while it trains. Default: estimated by the "
        "roofline of the traced step",
    )
    parser.add_argument("--text_gb", default=1.0, type=positive_float, help="gigabytes of UTF-8 text, for the size of the shards")
    parser.add_argument("variables", nargs="*", metavar="name=value", help="variables of distill.sh")
    return parser.parse_args(argv)


def card_name(text: str) -> str:
    """A name of CARDS, in capitals or not."""
    for name in CARDS:
        if name.lower() == text.lower():
            return name
    raise argparse.ArgumentTypeError(f"{text}: no such GPU here; choose {listing(list(CARDS))}")


def model_flops_utilization(text: str) -> float:
    """A number above 0, up to 1."""
    value = positive_float(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a number above 0, up to 1")
    return value


def read_plan_settings(args: argparse.Namespace) -> Settings:
    """The variables of distill.sh: the published values, replaced by the words of the command line."""
    entries = fields(Settings)
    words = read_words([args.recipe, *args.variables], [entry.name for entry in entries])
    for name in ("ngpu", "nnodes"):
        if name in words:
            raise UserError(f"{name}={words[name]}: give all GPUs of all machines as --ngpu")
    published = {entry.name: entry.metadata["default"] for entry in entries}
    return read_settings({**published, "ngpu": str(args.ngpu), **words})


# ---------------------------------------------------------------- printed


def print_plan(args: argparse.Namespace, settings: Settings, trainings: "list[Training]") -> None:
    from pretraining.reporting.costs import trace_batches

    card, first = CARDS[args.gpu], trainings[0].args
    compiled = settings.compile != ["--compile", "no"]
    precision = "bf16" if first.bf16 else "fp16" if first.fp16 else "fp32"
    print(
        f"# {settings.recipe.name} on {args.ngpu} x {args.gpu}\n\n"
        f"{precision}, {'compiled' if compiled else 'not compiled'}; {settings.global_batch:,} samples of {settings.length} tokens per step; "
        f"{settings.train_steps:,} steps a stage.\nNothing here was measured on this GPU. counted: from the recipe's models, whose step was "
        "traced. data sheet: the maker's figure. estimated: by a model of the GPU.\n",
        flush=True,
    )
    batches = [min(settings.forward_batch, settings.process_batch) or training.largest_forward_batch(card) for training in trainings]
    traces = [trace_batches(training, batch) for training, batch in zip(trainings, batches)]
    print(time_table(args, trainings, batches, traces, compiled))
    if not args.mfu:
        between = f", and {COMPILED_SHARE:.0%} of the time between matrix products, since it is compiled" if compiled else ""
        print(
            f"\nMFU: the roofline of the traced step, at {card.products_share:.0%} of the GPU's peak and {BANDWIDTH_SHARE:.0%} of its "
            f"bandwidth{between}.\nLeft out: reading data, communication, evaluation, checkpoints. Better: the MFU that train.py prints, as --mfu."
        )
    print(
        f"\nMemory of a process; the card has {card.memory / 1e9:.0f} GB (data sheet). step: all tensors at the peak of an eager step; a compiled "
        "step needs less.\ncard: with the allocator's gaps, CUDA, NCCL and a second copy of the gradients.\n"
    )
    print(memory_table(trainings, batches, traces, card))
    print(f"\n{disk_table(args, settings, trainings)}")


def time_table(args: argparse.Namespace, trainings: "list[Training]", batches: list[int], traces: list, compiled: bool) -> str:
    from pretraining.reporting.costs import roofline_mfu, time_row

    card, hours = CARDS[args.gpu], 0.0
    columns = ["samples/s (estimated)", "hours (estimated)", "GPU-hours (estimated)"]
    rows = [["stage", "forward_batch", "FLOPs (counted)", f"MFU ({'given' if args.mfu else 'estimated'})", *columns]]
    for training, batch, trace in zip(trainings, batches, traces):
        row = time_row(training, card, args.ngpu, args.mfu or roofline_mfu(training, card, batch, trace[batch], compiled))
        hours += row.hours
        figures = [f"{row.samples_per_second:,.0f}", f"{row.hours:,.1f}", f"{row.hours * args.ngpu:,.1f}"]
        rows.append([training.name, str(batch), f"{row.flops:.2e}", f"{row.mfu:.0%}", *figures])
    rows.append(["all", *[""] * 4, f"{hours:,.1f}", f"{hours * args.ngpu:,.1f}"])
    return markdown_table(rows)


def memory_table(trainings: "list[Training]", batches: list[int], traces: list, card: Card) -> str:
    """One row for each forward_batch; two columns for each stage."""
    rows = [["forward_batch"]]
    for training in trainings:
        rows[0] += [f"{training.name}: step (counted)", "card (estimated)"]
    for size in sorted(set().union(*traces)):
        rows.append([str(size)])
        for training, batch, trace in zip(trainings, batches, traces):
            if size not in trace:
                rows[-1] += ["", ""]
                continue
            needed = card_bytes(trace[size].peak, training.student)
            note = ", too large" if needed > card.memory else ", chosen" if size == batch else ""
            rows[-1] += [f"{trace[size].peak / 1e9:.1f} GB", f"{needed / 1e9:.1f} GB{note}"]
    return markdown_table(rows)


def disk_table(args: argparse.Namespace, settings: Settings, trainings: "list[Training]") -> str:
    from pretraining.reporting.costs import TEXT_BYTES_PER_TOKEN, checkpoint_bytes, run_bytes, shard_bytes

    tokens = int(args.text_gb * 1e9 / TEXT_BYTES_PER_TOKEN)
    shards = shard_bytes(tokens, trainings[-1].student.vocab_size, settings.length)
    rows = [["disk", "size"]]
    rows.append([f"shards of {args.text_gb:g} GB of text, {tokens / 1e6:,.0f} million tokens (estimated)", f"{shards / 1e9:.2f} GB"])
    for training in trainings:
        one = checkpoint_bytes(training.student, training.matches)
        first = ", first weights" if training.has_first_weights else ""
        name = f"{training.name}: checkpoints of {one / 1e6:,.0f} MB, one more than are kept{first} (counted)"
        rows.append([name, f"{run_bytes(training) / 1e9:.2f} GB"])
    return markdown_table(rows)


if __name__ == "__main__":
    run_script(main)
