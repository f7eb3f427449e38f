"""Reports on distilled models: sizes, masked-LM quality and speed, fills of [MASK], and how the losses went; the end of the demo.

    python scripts/report.py --models RoBERTa=./pretrained_model_path/RoBERTa MiniRBT=./saves/minirbt_h256/gs100000 \
        --runs MiniRBT=./saves/minirbt_h256 --output_dir ./saves/report

The first model is what the others are compared with, the last is the one the report is about. Writes report.md and a figure a run.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compare_models import (
    BATCH_SIZES,
    devices,
    how_measured,
    markdown_table,
    named_paths,
    save_figure,
    size_cells,
    speedups,
    time_encoders,
)
from utils import UserError, load_tokenizer, parse_one_line_errors, read_data_json, require_file, run_script, whole_file

SENTENCES = ["今天的天[MASK]真好，我们出去走走。", "爸爸带我去图书[MASK]还书。", "客人坐下以后，她泡了一壶热[MASK]。"]
MLM_PROBABILITY = 0.15
EVAL_BATCH_SIZE = 16
ROUNDS = 5
FILLS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=DIR", help="model directories with one vocabulary")
    parser.add_argument("--runs", nargs="+", default=[], metavar="NAME=DIR", help="output directories of train.py, for the loss figures")
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="its dev files are what the models are evaluated on")
    parser.add_argument("--data_cache_dir", default="./dataset/shards", help="where the tokenised shards are kept")
    parser.add_argument("--max_seq_length", type=int, default=512, help="tokens a sample, [CLS] and [SEP] included")
    parser.add_argument("--sentences", nargs="+", default=SENTENCES, help="each with one [MASK] for the models to fill")
    parser.add_argument("--output_dir", required=True)
    args = parse_one_line_errors(parser)
    output_dir = Path(args.output_dir)
    directories, runs = named_paths(args.models, "models"), named_paths(args.runs, "runs")
    if args.max_seq_length < 4:
        raise UserError(f"--max_seq_length {args.max_seq_length}: must be at least 4")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"--output_dir {output_dir}: is a file, not a directory")
    for run in runs.values():
        if not any(run.glob("events.out.tfevents.*")):
            raise UserError(f"--runs {run}: no TensorBoard events in it; give the --output_dir of a train.py run")
    dev_files = read_data_json(args.data_files_json)["dev"]
    if not dev_files:
        raise UserError(f'{args.data_files_json}: the report needs text files under "dev"')
    for file in dev_files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    tokenizer = check_vocabularies(directories)
    for sentence in args.sentences:
        if tokenizer(sentence)["input_ids"].count(tokenizer.mask_token_id) != 1:
            raise UserError(f"--sentences {sentence}: must hold [MASK] exactly once")
        if len(tokenizer(sentence)["input_ids"]) > args.max_seq_length:
            raise UserError(f"--sentences {sentence[:20]}…: is longer than --max_seq_length {args.max_seq_length}")

    from masking import WholeWordMasker
    from modeling import load_masked_lm, require_model_directory
    from my_datasets import load_shards
    from train import evaluate
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    for name, directory in directories.items():
        positions = require_model_directory(directory, name).max_position_embeddings
        if args.max_seq_length > positions:
            raise UserError(f"--max_seq_length {args.max_seq_length}: {directory} has only {positions} positions")
    models = {name: load_masked_lm(directory, name).eval() for name, directory in directories.items()}
    dataset, _ = load_shards(dev_files, args.data_cache_dir, args.max_seq_length, tokenizer)

    seconds, batch_sizes = {}, {device: BATCH_SIZES[device] for device in devices()}
    for device in batch_sizes:  # the CPU first: evaluation and fills then run on the last one
        models = {name: model.to(device) for name, model in models.items()}
        encoders = {name: model.bert for name, model in models.items()}
        seconds[device, args.max_seq_length] = time_encoders(encoders, device, batch_sizes[device], args.max_seq_length, ROUNDS)
    masker = WholeWordMasker(tokenizer, args.max_seq_length, MLM_PROBABILITY, seed=0)  # the masks of train.py --do_eval
    quality = evaluate(models, dataset, masker, EVAL_BATCH_SIZE, device, rank=0, processes=1)
    results = f"{model_table(models, quality, seconds)}\n\n{how_evaluated(dev_files, quality)} {how_measured(ROUNDS, batch_sizes)}"
    fills = "\n\n".join(fill_table(models, tokenizer, sentence) for sentence in args.sentences)

    figures = {}
    for name, run in runs.items():
        figures[name] = f"training_{name}.png"
        save_figure(training_figure(name, read_scalars(run)), output_dir / figures[name])
    with whole_file(output_dir / "report.md") as file:
        file.write(f"# {list(models)[-1]}: report\n\n## Models\n\n{results}\n\n## Fills\n\n{fills}\n")
        if figures:
            file.write("\n## Training\n")
        for name, figure in figures.items():
            file.write(f"\n{name} (`{runs[name]}`)\n\n![Losses and learning rate of {name}](<{figure}>)\n")
        file.write("\n## Directories\n\n" + "".join(f"- {name}: `{directory}`\n" for name, directory in directories.items()))
    print(f"\n{results}\n\n{fills}\n")
    print(f"report: {output_dir / 'report.md'}")
    print(f"final model: {list(directories.values())[-1]}")


def check_vocabularies(directories: dict[str, Path]):
    """The tokenizer that all models share; transformers.BertTokenizer."""
    tokenizers = {directory: load_tokenizer(directory) for directory in directories.values()}
    first = next(iter(tokenizers))
    for directory, tokenizer in tokenizers.items():
        if tokenizer.get_vocab() != tokenizers[first].get_vocab():
            raise UserError(f"{directory}: its vocabulary differs from that of {first}; only models of one vocabulary can be compared")
    return tokenizers[first]


# ---------------------------------------------------------------- tables


def model_table(models: dict, quality: dict[str, dict], seconds: dict[tuple[str, int], dict[str, float]]) -> str:
    """One row a model (name to BertForMaskedLM): shape, parameters, masked-LM loss and accuracy, speed-up for each (device, length)."""
    header = ["Model", "Layers", "Hidden", "Heads", "Parameters", "Without embeddings", "Masked-LM loss", "Accuracy"]
    rows = [header + [f"Speed-up, {device.upper()}, {length} tokens" for device, length in seconds]]
    first = next(iter(models.values())).config
    for name, model in models.items():
        config = model.config
        rows.append(
            [
                name,
                *map(str, (config.num_hidden_layers, config.hidden_size, config.num_attention_heads)),
                *size_cells(config, first),
                f"{quality[name]['loss']:.4f}",
                f"{quality[name]['accuracy']:.2%}",
                *(f"{speedups(values)[name]:.1f}× ({values[name] * 1e3:.1f} ms)" for values in seconds.values()),
            ]
        )
    return markdown_table(rows)


def how_evaluated(dev_files: list, quality: dict[str, dict]) -> str:
    """The sentence that belongs beside the masked-LM columns."""
    tokens = next(iter(quality.values()))["masked_tokens"]
    names = ", ".join(file.text.name for file in dev_files)
    return (
        f"Masked-LM: mean cross-entropy in nats and accuracy on {tokens:,} masked tokens of {names}, "
        f"whole words, {MLM_PROBABILITY:.0%}, the same masks for all."
    )


def top_fills(model, tokenizer, sentence: str) -> list[tuple[str, float]]:
    """The most probable tokens at the sentence's [MASK], best first, with their probabilities."""
    import torch
    from modeling import masked_lm_outputs

    input_ids = tokenizer(sentence, return_tensors="pt")["input_ids"].to(model.device)
    masked_positions = (input_ids == tokenizer.mask_token_id).nonzero()[:, 1:]
    with torch.inference_mode():
        logits = masked_lm_outputs(model, {"input_ids": input_ids, "masked_positions": masked_positions}).logits
    probabilities, ids = logits[0].float().softmax(-1).topk(FILLS)
    return list(zip(tokenizer.convert_ids_to_tokens(ids.tolist()), probabilities.tolist()))


def fill_table(models: dict, tokenizer, sentence: str) -> str:
    """The fills of all models for one sentence as Markdown."""
    rows = [[markdown_text(sentence), *map(str, range(1, FILLS + 1))]]
    for name, model in models.items():
        rows.append([name, *(f"{markdown_text(token)} {share:.1%}" for token, share in top_fills(model, tokenizer, sentence))])
    return markdown_table(rows)


def markdown_text(text: str) -> str:
    """Text with the signs escaped that Markdown would read."""
    return re.sub(r"([\\`*_<>|~])", r"\\\1", text)


# ---------------------------------------------------------------- figures


def read_scalars(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """What train.py wrote for TensorBoard: name to (steps, values); of a long run 10,000 steps at random."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run)).Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        points = events.Scalars(tag)
        scalars[tag.removeprefix("scalar/").removeprefix("unweighted_")] = ([p.step for p in points], [p.value for p in points])
    if "total_loss" not in scalars:
        raise UserError(f"--runs {run}: its TensorBoard events hold no losses of train.py; give the --output_dir of a run")
    return scalars


def training_figure(name: str, scalars: dict[str, tuple[list[int], list[float]]]):
    """The losses of a run and its learning rate over the steps, side by side; returns a matplotlib Figure.

    Args:
        scalars: from :func:`read_scalars`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    matches = {tag: found for tag in scalars if (found := re.fullmatch(r"(?:hidden|attention)_(.+)_([\d-]+)_([\d-]+)", tag))}
    figure = Figure(figsize=(13, 8) if matches else (14, 4.2), layout="constrained")
    panels = list(figure.subplots(*((2, 2) if matches else (1, 3))).T.flat)  # .T: the long legend goes to the right edge
    window = max(1, len(scalars["total_loss"][0]) // 40)
    figure.suptitle(f"Training of {name} (losses: faint the single steps, strong their mean over {window})")

    plot_smoothed(panels[0], *scalars["total_loss"], window, color="C3")
    panels[0].set(title="Total loss", ylabel="loss")
    for tag in scalars:
        if tag.endswith("_loss") and tag != "total_loss":
            plot_smoothed(panels[1], *scalars[tag], window, label=tag)
    panels[1].set(title="Loss on the predictions", ylabel="cross-entropy (nats), unweighted")
    panels[1].legend(frameon=False)
    if matches:
        for index, (tag, found) in enumerate(matches.items()):
            color = colormaps["viridis"](0.9 * index / max(1, len(matches) - 1))
            plot_smoothed(panels[2], *scalars[tag], window, label=f"{found[1]} {found[2]} ← {found[3]}", color=color)
        panels[2].set(title="Loss on the matched layers", ylabel="loss, unweighted (log scale)", yscale="log")
        panels[2].legend(fontsize=8, title="student layer ← teacher layer", title_fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")
    panels[-1].plot(*scalars["learning_rate"], color="C2")
    panels[-1].set(title="Learning rate", ylabel="learning rate")
    panels[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in panels:
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure


def plot_smoothed(axes, steps: list[int], values: list[float], window: int, label: str | None = None, color=None) -> None:
    """Draws every value faintly, and over them the mean of each ``window`` neighbours."""
    import numpy as np

    means = np.convolve(values, np.full(window, 1 / window), "valid")
    first = window // 2
    (line,) = axes.plot(steps[first : first + len(means)], means, label=label, color=color, linewidth=1.2)
    axes.plot(steps, values, color=line.get_color(), alpha=0.25, linewidth=0.8)


if __name__ == "__main__":
    run_script(main)
