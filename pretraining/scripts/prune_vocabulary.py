"""Removes tokens from a model that your texts do not need; more than half of a small model is the embeddings of its 21,128 tokens.

    python scripts/prune_vocabulary.py ./saves/minirbt_h256/gs100000 --texts a.txt b.txt --keep 8000
    python scripts/prune_vocabulary.py ./pretrained_model_path/RoBERTa distill_configs/MiniRBT-h256.json --texts a.txt --min_count 5

The first line prunes a finished model, the second a teacher and the config of a student before distillation. All models must have the
same vocabulary. Each result is a model directory that loads as before. On a text whose tokens were all kept, it computes the same numbers.
A word whose token was removed becomes smaller pieces or [UNK]: the table at the end says how many. --task scores fine-tuned models on the
dev set before and after.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretraining.corpus.files import opened, read_json, require_file, require_writable_place, write_json
from pretraining.corpus.formats import require_plain_text
from pretraining.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from pretraining.reporting.tables import markdown_table
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script

if TYPE_CHECKING:
    import numpy as np

    from finetuning.deployment import DevSet
    from pretraining.exporting.pruning import Model


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    for text in args.texts:
        require_file(text, "a text that shows which tokens are needed")
        with opened(text) as file:
            require_plain_text(text, file)
    targets = dict(zip(args.models, output_paths(args.models, args.output_dir)))
    directories = [path for path in args.models if path.suffix != ".json"]
    if not directories:
        raise UserError(f"{args.models[0]}: is a config; name a model directory too, whose vocabulary is pruned")
    tokenizer = shared_tokenizer(directories)

    # torch and transformers take four seconds to import; --help and the refusals above do not wait for them.
    from pretraining.corpus.vocabulary import choose_tokens, count_tokens, needed_tokens
    from pretraining.exporting.pruning import prune_config, read_model, save_pruned

    models = [read_model(directory) for directory in directories]
    configs = {path: read_student(path, models[0]) for path in args.models if path not in directories}
    check_targets(targets, configs)
    needed = needed_tokens(tokenizer).union(*(model.token_ids for model in models))
    check_sizes(args.keep, models, len(tokenizer), len(needed))

    dev_sets = load_dev_sets(args, directories, tokenizer)

    before = count_tokens(tokenizer, args.texts, "counting tokens")
    if not before.any():
        raise UserError(f"{args.texts[0]}: has no text; give texts like those the model will read")
    kept = choose_tokens(before.sum(0), needed, args.keep, args.min_count or 1)
    if len(kept) == len(tokenizer):
        raise UserError(f"all {len(kept):,} tokens occur {args.min_count} times or more; give a higher --min_count, or --keep")
    parameters = {model.directory: save_pruned(model, tokenizer, kept, targets[model.directory]) for model in models}
    for path, config in configs.items():
        write_json(targets[path], prune_config(config, kept), indent=2)

    pruned = load_tokenizer(targets[directories[0]])
    after = count_tokens(pruned, args.texts, "counting [UNK]")
    print(f"\n{model_table(models, targets, parameters)}\n")
    unknown = before[:, tokenizer.unk_token_id], after[:, pruned.unk_token_id]
    print(text_table([text.name for text in args.texts], (before.sum(1), after.sum(1)), unknown))
    if dev_sets:
        print(f"\n{task_table(args, dev_sets, targets, pruned)}")
    print(f"\nkept: {len(kept):,} of {len(tokenizer):,} tokens, {len(needed)} of them needed at any count")
    for target in targets.values():
        print(f"written: {target}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL", help="model directories; configs of students, as .json files")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, metavar="FILE", help="UTF-8 texts like those the model will read")
    how_many = parser.add_mutually_exclusive_group(required=True)
    how_many.add_argument("--keep", type=positive_int, help="keep this many tokens, the most frequent ones; fewer if fewer occur")
    how_many.add_argument("--min_count", type=positive_int, help="keep the tokens that occur this often or more")
    parser.add_argument("--output_dir", type=Path, nargs="+", metavar="PATH", help="a place for each MODEL; default: MODEL-pruned")
    parser.add_argument("--task", help="score all models on the dev set of this task before and after: they were fine-tuned on it")
    parser.add_argument("--data_dir", help="the directory with the files of --task; default for a JSON file of your own: its directory")
    args = parser.parse_args(argv)
    if args.data_dir and not args.task:
        raise UserError("--data_dir: is for --task; name the task too")
    return args


def output_paths(models: list[Path], given: list[Path] | None) -> list[Path]:
    """Where each result goes; refuses a place that is named twice, or is a model that is read."""
    paths = given or [default_output(path.resolve()) for path in models]
    if len(paths) != len(models):
        raise UserError(f"--output_dir: {len(paths)} places for {len(models)} models; give one for each")
    resolved = [path.resolve() for path in (*models, *paths)]
    for place, path in enumerate(resolved):
        if path in resolved[:place]:
            raise UserError(f"{path}: is named twice; give each model a place of its own")
    return paths


def default_output(path: Path) -> Path:
    """Beside the model: ``gs100-pruned`` for ``gs100``, ``small-pruned.json`` for ``small.json``."""
    return path.with_name(f"{path.stem}-pruned.json" if path.suffix == ".json" else f"{path.name}-pruned")


def shared_tokenizer(directories: list[Path]) -> Any:
    """The tokenizer of all models; refuses models that split text into different tokens."""
    first, *others = map(load_tokenizer, directories)
    for directory, tokenizer in zip(directories[1:], others):
        if tokenizer_sha256(tokenizer) != tokenizer_sha256(first):
            raise UserError(f"{directory}: splits text into other tokens than {directories[0]}; prune models with one vocabulary together")
    return first


def read_student(path: Path, model: "Model") -> dict[str, Any]:
    """The JSON object of a student's config; it must be for the vocabulary that is pruned."""
    from pretraining.distillation.modeling import read_config

    if read_config(path, "the student's config").vocab_size != model.vocab_size:
        raise UserError(f"{path}: vocab_size is not {model.vocab_size:,}, that of {model.directory}")
    return read_json(path, "the student's config")


def check_targets(targets: dict[Path, Path], configs: dict[Path, dict[str, Any]]) -> None:
    """Refuses to replace what this command did not write."""
    from pretraining.exporting.pruning import MADE_FROM

    for path, target in targets.items():
        require_writable_place(target.parent, "--output_dir")
        if not target.exists():
            continue
        if path in configs:
            is_own = target.is_file() and {**read_json(target, "a student's config"), "vocab_size": 0} == {**configs[path], "vocab_size": 0}
        else:
            is_own = (target / MADE_FROM).is_file()
        if not is_own:
            raise UserError(f"--output_dir {target}: exists already and is no result of this command for {path}; choose another place")


def check_sizes(keep: int | None, models: "list[Model]", tokens: int, needed: int) -> None:
    """Refuses a model with fewer rows than the vocabulary has tokens, and numbers of tokens that leave no choice."""
    for model in models:
        if model.vocab_size < tokens:
            raise UserError(f"{model.directory}: vocab.txt has {tokens} tokens, the model {model.vocab_size}")
    if keep is not None and not needed < keep < tokens:
        raise UserError(f"--keep {keep}: must be more than the {needed} tokens that are always kept, and fewer than all {tokens:,}")


def load_dev_sets(args: argparse.Namespace, directories: list[Path], tokenizer: Any) -> "dict[Path, DevSet]":
    """The dev set of ``--task`` for each model; none without a task."""
    if not args.task:
        return {}
    from finetuning.deployment import load_dev_set

    return {directory: load_dev_set(args.task, args.data_dir, directory, tokenizer) for directory in directories}


def task_table(args: argparse.Namespace, dev_sets: "dict[Path, DevSet]", targets: dict[Path, Path], pruned: Any) -> str:
    """The metrics of each model before and after, in percent, as Markdown.

    Args:
        pruned: the new tokenizer.
    """
    from finetuning.deployment import dev_metrics, load_dev_set

    rows = []
    for directory, dev in dev_sets.items():
        before = dev_metrics(dev, directory)
        after = dev_metrics(load_dev_set(args.task, args.data_dir, targets[directory], pruned), targets[directory])
        rows.append([str(directory), *(f"{value[name]:.2f}" for name in before for value in (before, after))])
    header = [f"{dev.task.name} dev", *(f"{name} {when}" for name in before for when in ("before", "after"))]
    return markdown_table([header, *rows])


def model_table(models: "list[Model]", targets: dict[Path, Path], parameters: dict[Path, int]) -> str:
    """Tokens, parameters and bytes of each model before and after, as Markdown."""
    from pretraining.exporting.pruning import count_parameters

    rows = [["Model", "Parameters before", "Parameters after", "Weights before", "Weights after"]]
    for model in models:
        before, after = count_parameters(model.state), parameters[model.directory]
        sizes = [sum(tensor.nbytes for tensor in model.state.values()), (targets[model.directory] / "model.safetensors").stat().st_size]
        cells = [f"{before / 1e6:.2f}M", f"{after / 1e6:.2f}M ({after / before:.1%})", *(f"{size / 1e6:.1f} MB" for size in sizes)]
        rows.append([str(model.directory), *cells])
    return markdown_table(rows)


def text_table(names: list[str], tokens: "tuple[np.ndarray, np.ndarray]", unknown: "tuple[np.ndarray, np.ndarray]") -> str:
    """Tokens of each text and the share of [UNK] among them, before and after, as Markdown; the last row is all texts."""
    rows = [["Text", "Tokens before", "Tokens after", "[UNK] before", "[UNK] after"]]
    columns = [[*counts.tolist(), int(counts.sum())] for counts in (*tokens, *unknown)]
    for name, *counts, unknown_before, unknown_after in zip([*names, "all"], *columns):
        shares = [f"{part / max(1, whole):.3%}" for part, whole in zip((unknown_before, unknown_after), counts)]
        rows.append([name, *(f"{count:,}" for count in counts), *shares])
    return markdown_table(rows if len(names) > 1 else rows[:-1])


if __name__ == "__main__":
    run_script(main)
