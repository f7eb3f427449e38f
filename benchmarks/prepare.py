"""Times prepare_corpus.py on each kind of source, made out of one text, and compares its counts with the documents of the source.

python benchmarks/prepare.py --text wiki.txt --megabytes 100
"""

import bz2
import csv
import gzip
import json
import lzma
import os
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from benchmarks.processes import peak_memory_of_command
from pretraining.corpus.files import read_lines
from pretraining.utils import ArgumentParser, positive_int, run_script

PACKED: dict[str, Callable[[Path], Any]] = {
    "": lambda path: open(path, "wb"),
    ".gz": lambda path: gzip.open(path, "wb", compresslevel=3),
    ".xz": lambda path: lzma.open(path, "wb", preset=0),
    ".bz2": lambda path: bz2.open(path, "wb", compresslevel=1),
    ".zst": lambda path: pa.CompressedOutputStream(str(path), "zstd"),
}


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--text", required=True, type=Path, help="a text in UTF-8; its documents end at blank lines")
    parser.add_argument("--megabytes", default=100, type=positive_int, help="size of each source before it is packed")
    args = parser.parse_args(argv)
    documents = read_first_documents(args.text, args.megabytes * 1e6)
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    print(f"{len(documents):,} documents, {megabytes:.1f} MB; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(prefix="minirbt_prepare_") as work:
        for name, write in sources().items():
            source = Path(work) / f"source{name}"
            write(source, documents)
            start = time.perf_counter()
            found, memory = prepare(source, Path(work) / f"corpus{name}", "gb18030" if name == "_gb18030.txt" else "utf-8")
            seconds = time.perf_counter() - start
            assert found == len(documents), f"{name}: {found} documents of {len(documents)}"
            print(f"{name:14} {seconds:5.1f} s  {megabytes / seconds:5.1f} MB/s  {memory:5.0f} MB  {found:,} documents", flush=True)


def read_first_documents(text: Path, size: float) -> list[str]:
    """The documents at the beginning of a text, together about ``size`` bytes."""
    documents, lines = [], []
    for line in read_lines(text):
        if line.strip():
            lines.append(line)
        elif lines:
            documents.append("\n".join(lines))
            size -= len(documents[-1].encode())
            lines = []
        if size < 0:
            break
    return documents


def sources() -> dict[str, Callable[[Path, list[str]], None]]:
    """What writes each kind of source, by the end of its name."""
    texts = {f".txt{end}": lambda path, documents, end=end: write_lines(path, end, (f"{text}\n\n" for text in documents)) for end in PACKED}
    json_lines = {
        f".jsonl{end}": lambda path, documents, end=end: write_lines(
            path, end, (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
        )
        for end in PACKED
    }
    return {
        **texts,
        "_gb18030.txt": lambda path, documents: path.write_text("".join(f"{text}\n\n" for text in documents), encoding="gb18030"),
        **json_lines,
        ".csv": write_csv,
        ".parquet": lambda path, documents: pq.write_table(pa.table({"text": documents}), path, row_group_size=10_000),
        "_dataset": lambda path, documents: Dataset.from_dict({"text": documents}).save_to_disk(str(path)),
    }


def write_lines(path: Path, end: str, lines: Any) -> None:
    with PACKED[end](path) as file:
        while block := "".join(islice(lines, 1000)):
            file.write(block.encode())


def write_csv(path: Path, documents: list[str]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows(enumerate(documents))


def prepare(source: Path, output_dir: Path, encoding: str) -> tuple[int, float]:
    """Runs the command; returns how many documents it has written, and its peak memory in MB."""
    arguments = {"sources": source, "output_dir": output_dir, "encoding": encoding}
    memory = peak_memory_of_command("scripts/prepare_corpus.py", output_dir.with_suffix(".log"), **arguments)
    state = json.loads((output_dir / ".prepare_corpus.json").read_text(encoding="utf-8"))
    return state["counts"]["train"], memory


if __name__ == "__main__":
    run_script(main)
