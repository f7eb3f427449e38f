"""Compares models by shape, parameters and measured speed, beside the published figures; prints Markdown.

    python scripts/compare_models.py --output_dir ./saves/comparison
    python scripts/compare_models.py --models RoBERTa=./pretrained_model_path/RoBERTa MyStudent=./saves/my_run/gs100000

Without --models it compares the published RoBERTa and the five students of distill_configs. It reads only the configs and gives the
models random weights, because speed does not depend on the weights. With --output_dir it also writes the tables to
model_comparison.md and a bar chart to model_comparison.png.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.corpus.files import atomic_write, require_file
from pretraining.reporting.published_models import STUDENT_CONFIGS
from pretraining.reporting.tables import save_figure
from pretraining.utils import ArgumentParser, NamedPaths, UserError, output_directory, positive_int, run_script

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import BertConfig


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    config_files = {name: config_file(path) for name, path in (args.models or STUDENT_CONFIGS).items()}
    for name, file in config_files.items():
        require_file(file, f"the config of {name}")

    # torch, transformers and matplotlib take four seconds to import; --help and the refusals above do not wait for them.
    from transformers import BertModel

    from pretraining.reporting.model_sizes import published_configs, read_configs, size_table
    from pretraining.reporting.model_speed import batch_sizes, how_measured, measure_speeds, speed_table
    from pretraining.reporting.plots import bar_chart

    configs = read_configs(config_files) if args.models else published_configs()
    check_positions(configs, max(args.sequence_lengths))
    sizes = size_table(configs)
    print(f"{sizes}\n")

    models = {name: BertModel(config) for name, config in configs.items()}
    rows = batch_sizes(args.batch_size)
    speeds = measure_speeds(models, rows, args.sequence_lengths, args.rounds)
    speeds_text = f"{speed_table(speeds)}\n\n{how_measured(args.rounds, rows)}"
    print(f"\n{speeds_text}")
    if args.output_dir:
        write(args.output_dir, sizes, speeds_text, bar_chart(configs, speeds))


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument(
        "--models",
        action=NamedPaths,
        default={},
        metavar="NAME=PATH",
        help="model directories or config JSONs; the first is what the others are compared with",
    )
    parser.add_argument("--output_dir", type=output_directory, help="write model_comparison.md and model_comparison.png here")
    parser.add_argument("--sequence_lengths", type=positive_int, nargs="+", default=[128, 512], help="tokens per row of the timed input")
    parser.add_argument("--batch_size", type=positive_int, help="rows of the timed input; default: 4 on the CPU, 64 on a GPU")
    parser.add_argument("--rounds", type=positive_int, default=7, help="timed turns of each model")
    return parser.parse_args(argv)


def config_file(path: Path) -> Path:
    """The config JSON of a model directory; another path is the config JSON itself."""
    return path / "config.json" if path.is_dir() else path


def check_positions(configs: "dict[str, BertConfig]", length: int) -> None:
    """Refuses a sequence length that one of the models has no positions for."""
    for name, config in configs.items():
        if length > config.max_position_embeddings:
            raise UserError(
                f"--sequence_lengths {length}: {name} has only {config.max_position_embeddings} positions; give shorter lengths"
            )


def write(output_dir: Path, sizes: str, speeds: str, chart: "Figure") -> None:
    """Writes the tables and the chart."""
    page, image = output_dir / "model_comparison.md", output_dir / "model_comparison.png"
    save_figure(chart, image)
    with atomic_write(page) as file:
        file.write(f"# Model comparison\n\n{sizes}\n\n{speeds}\n\n![Parameters and speed-up]({image.name})\n")
    print(f"\nwritten: {page}, {image}")


if __name__ == "__main__":
    run_script(main)
