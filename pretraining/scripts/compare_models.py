"""Compares models by shape, parameters and measured speed, beside the published figures; prints Markdown.

    python scripts/compare_models.py --output_dir ./saves/comparison
    python scripts/compare_models.py --models RoBERTa=./pretrained_model_path/RoBERTa MyStudent=./saves/my_run/gs100000

Without --models: the published RoBERTa and the five students of distill_configs. Only configs are read: speed does not depend on the
weights, so they are random. With --output_dir the same goes into model_comparison.md, with a bar chart as PNG.
"""

import argparse
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils import UserError, parse_one_line_errors, progress_bar, require_file, run_script, whole_file

CONFIGS = Path(__file__).resolve().parents[1] / "distill_configs"
STUDENTS = {
    "RBT6 (KD)": CONFIGS / "distill_rbt6.json",
    "RBT3": CONFIGS / "distill_rbt3.json",
    "RBT4-H312": CONFIGS / "distill_rbt4_312.json",
    "MiniRBT-H256": CONFIGS / "MiniRBT-h256.json",
    "MiniRBT-H288": CONFIGS / "MiniRBT-h288.json",
}
BATCH_SIZES = {"cpu": 4, "cuda": 64}
TURN_SECONDS = 0.2  # a turn repeats its forward for so long, so that the clock's grain and a short disturbance do not matter


class Published(NamedTuple):
    """A row of the published table, as published."""

    shape: str  # layers/hidden/FFN/heads
    parameters: str
    without_embeddings: str
    speedup: str


PUBLISHED = {
    "RoBERTa": Published("12/768/3072/12", "102.3M", "85.7M", "1×"),
    "RBT6 (KD)": Published("6/768/3072/12", "59.76M", "43.14M", "1.7×"),
    "RBT3": Published("3/768/3072/12", "38.5M", "21.9M", "2.8×"),
    "RBT4-H312": Published("4/312/1200/12", "11.4M", "4.7M", "6.8×"),
    "MiniRBT-H256": Published("6/256/1024/8", "10.4M", "4.8M", "6.8×"),
    "MiniRBT-H288": Published("6/288/1152/8", "12.3M", "6.1M", "5.7×"),
}
UNPUBLISHED = Published("–", "–", "–", "–")


# ---------------------------------------------------------------- arguments


def named_paths(values: list[str], option: str) -> dict[str, Path]:
    """``["NAME=PATH", ...]`` as a dict in the same order; names are unique and safe in Markdown and file names."""
    paths: dict[str, Path] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not (equals and path and re.fullmatch(r"[\w.+-]([\w .()+-]*[\w.()+-])?", name)):
            raise UserError(f"--{option} {value}: write NAME=PATH, the name of letters, digits, spaces and . _ - + ( ) alone")
        if name in paths:
            raise UserError(f"--{option} {value}: the name {name} stands there twice")
        paths[name] = Path(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument(
        "--models", nargs="+", metavar="NAME=PATH", help="model directories or config JSONs; the first is what the others are compared with"
    )
    parser.add_argument("--output_dir", help="write model_comparison.md and model_comparison.png here")
    parser.add_argument("--sequence_lengths", type=int, nargs="+", default=[128, 512], help="tokens a row of the timed input")
    parser.add_argument("--batch_size", type=int, help="rows of the timed input; default: 4 on the CPU, 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns of each model")
    args = parse_one_line_errors(parser)
    for option in ("sequence_lengths", "batch_size", "rounds"):
        value = getattr(args, option)
        if value is not None and min(value if isinstance(value, list) else [value]) < 1:
            raise UserError(f"--{option} {value}: must be at least 1")
    if args.output_dir and Path(args.output_dir).exists() and not Path(args.output_dir).is_dir():
        raise UserError(f"--output_dir {args.output_dir}: is a file, not a directory")
    paths = {
        name: path / "config.json" if path.is_dir() else path
        for name, path in (named_paths(args.models, "models") if args.models else STUDENTS).items()
    }
    for name, path in paths.items():
        require_file(path, f"the config of {name}")

    from modeling import read_config
    from transformers import BertConfig, BertModel

    configs = {} if args.models else {"RoBERTa": BertConfig(vocab_size=21128)}  # the library's defaults are BERT-base
    configs |= {name: read_config(path, f"the config of {name}") for name, path in paths.items()}
    for name, config in configs.items():
        if max(args.sequence_lengths) > config.max_position_embeddings:
            raise UserError(
                f"--sequence_lengths {max(args.sequence_lengths)}: {name} has only {config.max_position_embeddings} positions; give shorter ones"
            )
    sizes = size_table(configs)
    print(f"{sizes}\n")

    models = {name: BertModel(config).eval() for name, config in configs.items()}
    batch_sizes = {device: args.batch_size or BATCH_SIZES[device] for device in devices()}
    seconds = {
        (device, length): time_encoders(models, device, batch_size, length, args.rounds)
        for device, batch_size in batch_sizes.items()
        for length in args.sequence_lengths
    }
    speeds = f"{speed_table(seconds)}\n\n{how_measured(args.rounds, batch_sizes)}"
    print(f"\n{speeds}")
    if args.output_dir:
        output_dir = Path(args.output_dir)
        chart = output_dir / "model_comparison.png"
        save_figure(bar_chart(configs, seconds), chart)
        with whole_file(output_dir / "model_comparison.md") as file:
            file.write(f"# Model comparison\n\n{sizes}\n\n{speeds}\n\n![Parameters and speed-up]({chart.name})\n")
        print(f"\nwritten: {output_dir / 'model_comparison.md'}, {chart}")


# ---------------------------------------------------------------- sizes


def parameter_counts(config) -> tuple[int, int]:
    """Parameters of BertModel, embeddings and pooler included, and those without the embeddings."""
    import torch
    from transformers import BertModel

    with torch.device("meta"):  # shapes alone, no memory
        model = BertModel(config)
    total = model.num_parameters()
    return total, total - sum(parameter.numel() for parameter in model.embeddings.parameters())


def size_cells(config, first) -> list[str]:
    """Parameters and parameters without embeddings as table cells: millions, and percent of the ``first`` config's."""
    return [f"{count / 1e6:.2f}M ({count / whole:.1%})" for count, whole in zip(parameter_counts(config), parameter_counts(first))]


def size_table(configs: dict) -> str:
    """Shape and parameters of each model (name to BertConfig) as Markdown, with the published values."""
    first = next(iter(configs.values()))
    rows = [
        "Model | Layers | Hidden | FFN | Heads | Parameters | Without embeddings "
        "| Published: shape | Published: parameters | Published: without embeddings".split(" | ")
    ]
    for name, config in configs.items():
        published = PUBLISHED.get(name, UNPUBLISHED)
        shape = [config.num_hidden_layers, config.hidden_size, config.intermediate_size, config.num_attention_heads]
        rows.append([name, *map(str, shape), *size_cells(config, first), *published[:3]])
    return markdown_table(rows)


def markdown_table(rows: list[list[str]]) -> str:
    """A Markdown table, header first; the first column is left-aligned, the others are right-aligned."""
    rule = [":--", *["--:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


# ---------------------------------------------------------------- speed


def time_in_turn(runners: dict[str, Callable[[], object]], rounds: int, description: str) -> dict[str, float]:
    """Seconds a call of each runner: median over ``rounds`` of turns, one runner after the other, after a warm-up turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    with progress_bar(total=(rounds + 1) * len(runners), desc=description, unit="turn") as bar:
        for turn in range(rounds + 1):
            for name, run in runners.items():
                value = seconds_a_call(run)
                if turn:
                    seconds[name].append(value)
                bar.update()
    return {name: statistics.median(values) for name, values in seconds.items()}


def seconds_a_call(run: Callable[[], object]) -> float:
    """The mean over as many calls as fit into a turn, at least one."""
    start, elapsed, calls = time.perf_counter(), 0.0, 0
    while elapsed < TURN_SECONDS:
        run()
        calls += 1
        elapsed = time.perf_counter() - start
    return elapsed / calls


def time_encoders(models: dict, device: str, batch_size: int, length: int, rounds: int) -> dict[str, float]:
    """Seconds a forward of each BertModel in float32, all on the same random tokens without padding."""
    import torch

    vocabulary = min(model.config.vocab_size for model in models.values())
    input_ids = torch.randint(vocabulary, (batch_size, length), generator=torch.Generator().manual_seed(0)).to(device)

    def runner(model):
        def run():
            model(input_ids)
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    with torch.inference_mode():
        runners = {name: runner(model.to(device).eval()) for name, model in models.items()}
        return time_in_turn(runners, rounds, f"{device.upper()} {batch_size} × {length}")


def speedups(seconds: dict[str, float]) -> dict[str, float]:
    """How many times as fast as the first each is."""
    first = next(iter(seconds.values()))
    return {name: first / value for name, value in seconds.items()}


def speed_table(seconds: dict[tuple[str, int], dict[str, float]]) -> str:
    """Milliseconds a batch and speed-up of each model as Markdown.

    Args:
        seconds: for each (device, length) what :func:`time_encoders` returns.
    """
    names = next(iter(seconds.values()))
    rows = [["Model", *(f"{device.upper()}, {length} tokens" for device, length in seconds), "Published"]]
    for name in names:
        cells = [f"{speedups(values)[name]:.1f}× ({values[name] * 1e3:.1f} ms)" for values in seconds.values()]
        rows.append([name, *cells, PUBLISHED.get(name, UNPUBLISHED).speedup])
    return markdown_table(rows)


def how_measured(rounds: int, batch_sizes: dict[str, int]) -> str:
    """The sentence that belongs beside every speed-up; ``batch_sizes`` by device."""
    import torch

    where = "; ".join(f"{device.upper()}: {device_name(device)}, {size} rows a batch" for device, size in batch_sizes.items())
    return (
        f"Speed-up: one forward of the encoder in float32 on the same random tokens, median of {rounds} rounds with the models in turn "
        f"after a warm-up. {where}; torch {torch.__version__}, {torch.get_num_threads()} CPU threads."
    )


def devices() -> list[str]:
    """The CPU, and the GPU where there is one."""
    import torch

    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def device_name(device: str) -> str:
    """The GPU's or CPU's name, as far as the system tells."""
    import platform

    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


# ---------------------------------------------------------------- chart


def bar_chart(configs: dict, seconds: dict[tuple[str, int], dict[str, float]]):
    """Two panels of horizontal bars, parameters and speed-up; returns a matplotlib Figure."""
    from matplotlib.figure import Figure

    counts = [parameter_counts(config) for config in configs.values()]
    sizes = {title: [pair[index] / 1e6 for pair in counts] for index, title in enumerate(("with embeddings", "without embeddings"))}
    speeds = {f"{device.upper()}, {length} tokens": list(speedups(values).values()) for (device, length), values in seconds.items()}
    if set(configs) <= set(PUBLISHED):
        speeds["published"] = [float(PUBLISHED[name].speedup.rstrip("×")) for name in configs]

    bars = len(configs) * max(len(sizes), len(speeds))
    figure = Figure(figsize=(12, 1.5 + 0.24 * bars), layout="constrained")
    left, right = figure.subplots(1, 2)
    _bars(left, list(configs), sizes, "Parameters", "millions", "{:.1f}M")
    _bars(right, list(configs), speeds, f"Speed-up over {next(iter(configs))}", "times as fast", "{:.1f}×")
    return figure


def _bars(axes, names: list[str], series: dict[str, list[float]], title: str, unit: str, value_format: str) -> None:
    height = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(names))]
        color = "0.7" if label == "published" else None
        axes.bar_label(axes.barh(places, values, height * 0.9, label=label, color=color), fmt=value_format, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title=title, xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def save_figure(figure, path: Path) -> None:
    """Writes a matplotlib Figure as PNG."""
    with whole_file(path, "wb") as file:
        figure.savefig(file, format="png", dpi=120)


if __name__ == "__main__":
    run_script(main)
