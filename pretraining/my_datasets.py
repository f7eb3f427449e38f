"""Text + reference files -> cached shards of tokens, which train.py loads.

    python my_datasets.py --tokenizer ./pretrained_model_path/RoBERTa

train.py builds missing shards too; this command builds them before training. corpus/shard_files.py describes their format. A part of a text
that is done is not made again. Slurm, for example:

    python my_datasets.py --executor slurm --partition cpu --workers 50
"""

import os
import time
from itertools import chain

from pretraining.corpus.executor_settings import add_executor_arguments, executor_of, part_bytes_of
from pretraining.corpus.files import read_data_json
from pretraining.corpus.shard_files import ShardSpec
from pretraining.corpus.shards import build_shards, data_fingerprint, describe_shards, load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import ArgumentParser, positive_int, run_script, sequence_length


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="which files are train and dev, and their reference files")
    parser.add_argument("--data_cache_dir", default="./dataset/shards", help="where the shards are kept")
    parser.add_argument("--tokenizer", default="./pretrained_model_path/RoBERTa", help="directory with the teacher's vocab.txt")
    parser.add_argument("--max_seq_length", default=512, type=sequence_length, help="tokens of a sample, [CLS] and [SEP] included")
    parser.add_argument(
        "--preprocessing_num_workers", default=os.cpu_count() or 1, type=positive_int, help="threads that tokenise in a single worker"
    )
    parser.add_argument(
        "--verify_data", action="store_true", help="read and check all files again, also those that seem unchanged since the last time"
    )
    add_executor_arguments(parser)
    start, args = time.time(), parser.parse_args(argv)

    executor = executor_of(args)
    splits = {split: files for split, files in read_data_json(args.data_files_json).items() if files}
    spec = ShardSpec(args.data_cache_dir, args.max_seq_length, load_tokenizer(args.tokenizer), start if args.verify_data else 0.0)
    descriptions = {split: describe_shards(files, spec) for split, files in splits.items()}  # all checks before the first shard is built
    if executor.is_this_process:  # the tokenizer's thread pool reads it at its first use
        os.environ.setdefault("RAYON_NUM_THREADS", str(args.preprocessing_num_workers))
    all_files, all_descriptions = list(chain(*splits.values())), list(chain(*descriptions.values()))
    if not build_shards(all_files, spec, all_descriptions, executor, part_bytes_of(args)):
        return
    for split, files in splits.items():
        fill = split == "train"
        rows = load_shards(files, spec, descriptions[split], fill_last_row=fill)
        mean = spec.max_seq_length if fill else rows.tokens / len(rows) + 2  # with [CLS] and [SEP]
        print(
            f"{split}: {len(rows):,} samples of {mean:.4g} tokens on average; {rows.tokens:,} tokens from {len(files):,} files; "
            f"fingerprint {data_fingerprint(descriptions[split])[:12]}"
        )


if __name__ == "__main__":
    run_script(main)
