"""Reports on distilled models: sizes, masked-LM quality and speed, fills of [MASK], and the losses of their training; the demo ends with it.

    python scripts/report.py --models RoBERTa=./pretrained_model_path/RoBERTa MiniRBT=./saves/minirbt_h256/gs100000 \\
        --runs MiniRBT=./saves/minirbt_h256 --output_dir ./saves/report

The report compares the other models with the first one, and it is about the last one. Writes report.md and a figure for each run.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pretraining.corpus.files import TextAndRefs, atomic_write, read_data_json, require_file
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.reporting.tables import save_figure
from pretraining.utils import ArgumentParser, NamedPaths, UserError, output_directory, run_script, sequence_length

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from transformers import BertTokenizer

SENTENCES = ["今天的天[MASK]真好，我们出去走走。", "爸爸带我去图书[MASK]还书。", "客人坐下以后，她泡了一壶热[MASK]。"]
ROUNDS = 5


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_runs(args.runs)
    check_figure_names(list(args.runs))
    dev_files = read_dev_files(args.data_files_json)
    tokenizer = load_shared_tokenizer(list(args.models.values()))
    check_sentences(args.sentences, tokenizer, args.max_seq_length)

    # torch, transformers, datasets and matplotlib take four seconds to import; --help and the refusals above do not wait for them.
    from pretraining.corpus.shards import ShardSpec, load_shards
    from pretraining.reporting.model_quality import evaluate_models, fill_table, how_evaluated, load_for_evaluation, model_table
    from pretraining.reporting.model_speed import batch_sizes, how_measured, measure_speeds
    from pretraining.reporting.plots import read_curves, training_figure

    curves = {name: read_curves(run) for name, run in args.runs.items()}
    models = load_for_evaluation(args.models, args.max_seq_length)
    dataset = load_shards(dev_files, ShardSpec(args.data_cache_dir, args.max_seq_length, tokenizer), fill_last_row=False)

    rows = batch_sizes()
    speeds = measure_speeds({name: model.bert for name, model in models.items()}, rows, [args.max_seq_length], ROUNDS)
    quality = evaluate_models(models, dataset, tokenizer, args.max_seq_length, device=list(rows)[-1])  # the GPU where there is one
    results = f"{model_table(models, quality, speeds)}\n\n{how_evaluated(dev_files, quality)} {how_measured(ROUNDS, rows)}"
    fills = "\n\n".join(fill_table(models, tokenizer, sentence) for sentence in args.sentences)

    write(args, results, fills, {name: training_figure(name, curve) for name, curve in curves.items()})
    print(f"\n{results}\n\n{fills}\n")
    print(f"report: {args.output_dir / 'report.md'}")
    print(f"final model: {list(args.models.values())[-1]}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--models", action=NamedPaths, required=True, metavar="NAME=DIR", help="model directories with one vocabulary")
    parser.add_argument(
        "--runs", action=NamedPaths, default={}, metavar="NAME=DIR", help="output directories of train.py, for figures of their losses"
    )
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the models are evaluated on its dev files")
    parser.add_argument("--data_cache_dir", default="./dataset/shards", help="where the tokenised shards are kept")
    parser.add_argument("--max_seq_length", type=sequence_length, default=512, help="tokens per sample, [CLS] and [SEP] included")
    parser.add_argument("--sentences", nargs="+", default=SENTENCES, help="each with one [MASK] for the models to fill")
    parser.add_argument("--output_dir", type=output_directory, required=True)
    return parser.parse_args(argv)


# ---------------------------------------------------------------- checks


def check_runs(runs: dict[str, Path]) -> None:
    """Refuses a run directory without TensorBoard events."""
    for run in runs.values():
        if not any(run.glob("events.out.tfevents.*")):
            raise UserError(f"--runs {run}: no TensorBoard events in it; give the --output_dir of a train.py run")


def read_dev_files(data_files_json: str) -> list[TextAndRefs]:
    """The dev files, each with its reference file."""
    dev_files = read_data_json(data_files_json)["dev"]
    if not dev_files:
        raise UserError(f'{data_files_json}: the report needs text files under "dev"')
    for file in dev_files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    return dev_files


def load_shared_tokenizer(directories: list[Path]) -> "BertTokenizer":
    """Loads the tokenizer that all models share; refuses models with different vocabularies."""
    tokenizers = {directory: load_tokenizer(directory) for directory in directories}
    first = directories[0]
    for directory, tokenizer in tokenizers.items():
        if tokenizer.get_vocab() != tokenizers[first].get_vocab():
            raise UserError(f"{directory}: its vocabulary differs from that of {first}; only models with one vocabulary can be compared")
    return tokenizers[first]


def check_sentences(sentences: list[str], tokenizer: "BertTokenizer", max_seq_length: int) -> None:
    """Refuses a sentence that is too long, or that does not have exactly one [MASK]."""
    for sentence in sentences:
        input_ids = tokenizer(sentence)["input_ids"]
        if input_ids.count(tokenizer.mask_token_id) != 1:
            raise UserError(f"--sentences {sentence}: must hold [MASK] exactly once")
        if len(input_ids) > max_seq_length:
            raise UserError(f"--sentences {sentence[:20]}…: is longer than --max_seq_length {max_seq_length}")


# ---------------------------------------------------------------- the report


def plain_name(name: str) -> str:
    """A name for files and links: no spaces and brackets."""
    return re.sub(r"[^\w.+-]+", "_", name).strip("_")


def check_figure_names(names: list[str]) -> None:
    """Refuses two runs whose figures would be one file."""
    for name in names:
        same = [other for other in names if other != name and plain_name(other) == plain_name(name)]
        if same:
            raise UserError(f"--runs {name}=…: {same[0]} would have the same file, training_{plain_name(name)}.png; choose another name")


def write(args: argparse.Namespace, results: str, fills: str, figures: "dict[str, Figure]") -> None:
    """Writes report.md and the figure of each run to --output_dir."""
    training = ""
    for name, figure in figures.items():
        file_name = f"training_{plain_name(name)}.png"
        save_figure(figure, args.output_dir / file_name)
        training += f"\n{name} (`{args.runs[name]}`)\n\n![Losses and learning rate of {name}]({file_name})\n"
    directories = "".join(f"- {name}: `{directory}`\n" for name, directory in args.models.items())
    with atomic_write(args.output_dir / "report.md") as file:
        file.write(f"# {list(args.models)[-1]}: report\n\n## Models\n\n{results}\n\n## Fills\n\n{fills}\n")
        if training:
            file.write(f"\n## Training\n{training}")
        file.write(f"\n## Directories\n\n{directories}")


if __name__ == "__main__":
    run_script(main)
