"""Times both data stages by one worker, several workers, Slurm and Ray, in turn, and compares what they write.

    python benchmarks/executors.py --text wiki.txt --ltp ltp --vocab vocab.txt --megabytes 200 --kinds one two

The text is repeated, with a number before each line, until it has the size. Slurm and Ray must be there for their kinds.
"""

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pretraining
from pretraining.corpus.files import TextAndRefs
from pretraining.corpus.shard_files import ShardSpec
from pretraining.corpus.shards import load_shards
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import ArgumentParser, UserError, positive_int, run_script

KINDS = {
    "one": [],
    "two": ["--workers", "2"],
    "slurm": ["--executor", "slurm", "--workers", "2"],
    "ray": ["--executor", "ray", "--workers", "2"],
}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--text", required=True, type=Path, help="a text in UTF-8")
    parser.add_argument("--ltp", required=True, type=Path, help="directory of an LTP model")
    parser.add_argument("--vocab", required=True, type=Path, help="a vocab.txt")
    parser.add_argument("--megabytes", default=200, type=positive_int)
    parser.add_argument("--kinds", nargs="+", default=["one", "two"], choices=KINDS)
    parser.add_argument("--rounds", default=1, type=positive_int)
    parser.add_argument("--partition", default="main", help="of Slurm")
    parser.add_argument("--before", type=Path, help="a checkout without executors, timed first in each round")
    parser.add_argument("--work", type=Path, help="where to write; default: a temporary directory")
    args = parser.parse_args(argv)
    with TemporaryDirectory(prefix="minirbt_executors_", dir=args.work) as work:
        write_inputs(Path(work), args.text, args.vocab, args.megabytes * 1e6)
        digests: set[str] = set()
        for number in range(args.rounds):
            for kind in (*(["before"] if args.before else []), *args.kinds):
                place = Path(work, f"{number}-{kind}")
                seconds, memory = run_stages(kind, place, Path(work), args)
                digests.add(digest_of(place))
                print(
                    f"{kind:7} references {seconds[0]:7.1f} s {args.megabytes / seconds[0]:5.2f} MB/s, shards {seconds[1]:7.1f} s "
                    f"{args.megabytes / seconds[1]:5.2f} MB/s; {memory}; load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )
    print("the same bytes" if len(digests) == 1 else f"DIFFERENT bytes: {digests}")


def write_inputs(work: Path, text: Path, vocab: Path, size: float) -> None:
    (work / "bert").mkdir()
    (work / "bert/vocab.txt").write_bytes(vocab.read_bytes())
    with open(work / "corpus.txt", "wb") as output:
        for repetition in count():
            with open(text, "rb") as lines:
                for line in lines:
                    size -= output.write(line if repetition == 0 or not line.strip() else b"%d " % repetition + line)
                    if size <= 0:
                        return


def run_stages(kind: str, place: Path, work: Path, args: argparse.Namespace) -> tuple[list[float], str]:
    """Runs both stages; returns their seconds, and what is known of the memory."""
    place.mkdir()
    data = {"train": {"train_files": [str(work / "corpus.txt")], "train_ref_files": [str(place / "corpus.refs")]}}
    (place / "data.json").write_text(json.dumps(data))
    pretraining_folder = (args.before / "pretraining") if kind == "before" else Path(pretraining.__file__).parent
    options = [*KINDS.get(kind, []), *(["--partition", args.partition] if kind == "slurm" else [])]
    stages = (
        ["run_chinese_ref.py", "--ltp", args.ltp, "--bert", work / "bert", *options],
        ["my_datasets.py", "--tokenizer", work / "bert", "--data_cache_dir", place / "shards", *options],
    )
    seconds, memory = [], []
    for script, *arguments in stages:
        line = [sys.executable, str(pretraining_folder / script), "--data_files_json", str(place / "data.json"), *map(str, arguments)]
        start = time.perf_counter()
        with open(place / "log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(line, stdout=log, stderr=log, cwd=pretraining_folder)
            _, status, usage = os.wait4(process.pid, 0)
            log.seek(0)
            printed = log.read()
        if status:
            raise UserError(f"{script} ({kind}) failed: {printed.strip().splitlines()[-1]}")
        seconds.append(time.perf_counter() - start)
        worker = re.search(r"the largest worker took ([\d,]+) MB", printed)
        memory.append(f"{worker.group(1) if worker else usage.ru_maxrss >> 10} MB")
    return seconds, "largest process " + ", ".join(memory)


def digest_of(place: Path) -> str:
    """Of the references and of the tokens of all shards in order."""
    digest = hashlib.sha256((place / "corpus.refs").read_bytes())
    spec = ShardSpec(place / "shards", 512, load_tokenizer(place.parent / "bert"))
    file = TextAndRefs(place.parent / "corpus.txt", place / "corpus.refs")
    rows = load_shards([file], spec, progress=False)
    for piece in rows.pieces:
        digest.update(piece.ids.tobytes())
        digest.update(piece.continues(0, len(piece.ids)).tobytes())
    return digest.hexdigest()


if __name__ == "__main__":
    run_script(main)
