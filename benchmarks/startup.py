"""Times the start of train.py, up to its first step, on a corpus of many files whose shards are ready.

    python benchmarks/startup.py --gigabytes 1 15

Each size has files of 150 MB of repeated text: names of one file on the disk, so that it needs little room and is read from memory.
The model is tiny and has no teacher. The first start after the build, later starts, and starts with --verify_data are timed.
"""

import json
import os
import shutil
import tempfile
import time
from itertools import cycle
from pathlib import Path

from benchmarks.inputs import sample_corpus, write_vocabulary
from benchmarks.processes import in_fresh_process
from pretraining.utils import ArgumentParser, positive_float, positive_int, run_script

FILE_MEGABYTES = 150
STUDENT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 512}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--gigabytes", nargs="+", type=positive_float, default=[1.0], help="sizes of all text together")
    parser.add_argument("--megabytes", type=positive_int, default=FILE_MEGABYTES, help="size of a text file")
    parser.add_argument("--rounds", type=positive_int, default=3, help="timed later starts and starts with --verify_data, in turn")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="minirbt_startup_") as work:
        write_first_file(Path(work), args.megabytes)
        for gigabytes in args.gigabytes:
            files = max(1, round(gigabytes * 1000 / args.megabytes))
            data = write_names(Path(work), files)
            for number in range(args.rounds + 1):
                seconds = start_seconds(Path(work), data)
                name = "later start" if number else "first start"
                verified = start_seconds(Path(work), data, "--verify_data", "true")
                print(
                    f"{files} files, {files * args.megabytes / 1000:g} GB: {name} {seconds:.1f} s, --verify_data {verified:.1f} s",
                    flush=True,
                )
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def write_first_file(work: Path, megabytes: int) -> None:
    """``0.txt``, its references without a word of several tokens, the vocabulary, the student, and the shard of the file."""
    texts = sample_corpus()
    lines = [line for text in texts for line in text.read_bytes().splitlines(keepends=True)]
    written = count = 0
    with open(work / "0.txt", "wb") as file:
        for line in cycle(lines):
            written, count = written + file.write(line), count + 1
            if written >= megabytes * 1e6:
                break
    (work / "0.refs").write_text("[]\n" * count)
    write_vocabulary(work / "bert", texts, entries=0)
    vocabulary = len((work / "bert/vocab.txt").read_text(encoding="utf-8").splitlines())
    (work / "student.json").write_text(json.dumps({**STUDENT, "model_type": "bert", "vocab_size": vocabulary}))
    start_seconds(work, write_names(work, 1))


def write_names(work: Path, files: int) -> Path:
    """Gives the file, its references and its shard, if there is one, more names; returns the list of the files."""
    for number in range(1, files):
        if not (work / f"{number}.txt").exists():
            for name in ("{}.txt", "{}.refs"):
                os.link(work / name.format(0), work / name.format(number))
            shutil.copytree(work / "shards/0", work / f"shards/{number}", copy_function=os.link)
    path = work / f"{files}.json"
    names = {
        f"train{kind}_files": [str(work / f"{number}.{ending}") for number in range(files)]
        for kind, ending in (("", "txt"), ("_ref", "refs"))
    }
    path.write_text(json.dumps({"train": names}))
    return path


def start_seconds(work: Path, data: Path, *more: str) -> float:
    """Seconds from the start of train.py to its first step, its imports included."""
    arguments = {
        "student_config": work / "student.json",
        "tokenizer": work / "bert",
        "data_files_json": data,
        "data_cache_dir": work / "shards",
        "output_dir": Path(tempfile.mkdtemp(dir=work)) / "run",
        "do_train": "true",
        "no_cuda": "true",
        "train_batch_size": 1,
    }
    line = [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    return in_fresh_process(_seconds_to_first_step, [*line, *more])


class FirstStep(Exception):
    """Ends a run at its first step."""


def _seconds_to_first_step(arguments: list[str]) -> float:
    def stop(step: int, distiller: object) -> None:
        raise FirstStep

    start = time.perf_counter()
    from pretraining import train  # its imports are part of the start

    try:
        train.main(arguments, step_callback=stop)
    except FirstStep:
        return time.perf_counter() - start
    raise AssertionError("train.py ended before its first step")


if __name__ == "__main__":
    run_script(main)
