"""Any corpus -> text files of about 256 MB and the list of them, ready for run_chinese_ref.py and my_datasets.py.

    python scripts/prepare_corpus.py --sources 'crawl/*.jsonl.gz' books/ wiki.parquet --output_dir ./dataset/corpus --dev_documents 1000

Reads .txt, .jsonl, .json (JSON lines) and .csv, plain or packed with gz, zst, xz or bz2, .parquet, and data sets saved by Hugging Face
datasets. A document becomes its lines and a blank line; in a text file it ends at a blank line. The dev documents are those with the
smallest hashes, so that the same documents are chosen in any order of the sources; a copy of one is never in the train files.
The same command goes on where a run was stopped, and ends with the same bytes.
"""

import argparse
import codecs
import hashlib
import heapq
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pretraining.corpus.files import MAX_LINE_BYTES, atomic_write, read_json, require_writable_place, write_json
from pretraining.corpus.formats import require_plain_text
from pretraining.corpus.locks import exclusive
from pretraining.corpus.sources import Document, Source, find_sources, read_documents
from pretraining.corpus.tokenizer import CHINESE_RANGES
from pretraining.utils import (
    ArgumentParser,
    UserError,
    non_negative_int,
    output_directory,
    positive_float,
    progress_bar,
    run_script,
    share,
)

FORMAT = 1
DIGEST_BYTES = 16  # of a document; two different ones of a billion have the same with a probability below 1e-20
STATE, DIGESTS = ".prepare_corpus.json", ".prepare_corpus.digests"


def main(argv: list[str] | None = None) -> None:
    args = parse_arguments(argv)
    sources = find_sources(args.sources)
    settings = {
        "format": FORMAT,
        "settings": {name: getattr(args, name) for name in SETTINGS},
        "sources": [[str(source.path), source.size, source.path.stat().st_mtime_ns] for source in sources],
    }
    output_dir: Path = args.output_dir
    require_writable_place(output_dir, "--output_dir")
    refuse_foreign_files(args, output_dir)
    with exclusive(output_dir / ".lock", f"--output_dir {output_dir}"):
        corpus = Corpus(args, settings)
        if not corpus.is_finished:
            check_first_documents(sources, args)
            corpus.write(sources)
        print(corpus.summary())


SETTINGS = ("text_key", "encoding", "min_characters", "min_chinese_share", "deduplicate", "dev_documents", "file_megabytes")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--sources", nargs="+", required=True, help="files, folders and patterns such as 'crawl/*.jsonl.gz'")
    parser.add_argument("--output_dir", required=True, type=output_directory, help="gets the text files")
    parser.add_argument("--data_files_json", type=Path, help="the list of them; default: data.json in --output_dir")
    parser.add_argument("--text_key", default="text", help="field or column with the text of a document")
    parser.add_argument("--encoding", default="utf-8", type=encoding, help="of text files, JSON lines and CSV, such as gb18030")
    parser.add_argument("--min_characters", default=0, type=non_negative_int, help="shorter documents are left out")
    parser.add_argument("--min_chinese_share", default=0.0, type=share, help="of the characters that are not white space")
    parser.add_argument("--deduplicate", action="store_true", help="leave out documents that are equal to an earlier one")
    parser.add_argument("--dev_documents", default=0, type=non_negative_int, help="how many documents become the dev file")
    parser.add_argument("--file_megabytes", default=256.0, type=positive_float, help="size of a train file")
    parser.add_argument("--skip_broken", action="store_true", help="count what cannot be read, and go on")
    args = parser.parse_args(argv)
    args.data_files_json = args.data_files_json or args.output_dir / "data.json"
    return args


def encoding(name: str) -> str:
    """The name of a text encoding that Python knows."""
    try:
        "文".encode(name).decode(name)
    except (LookupError, UnicodeError):
        raise argparse.ArgumentTypeError(f"{name}: is no encoding of Chinese text; try utf-8, gb18030 or big5") from None
    return codecs.lookup(name).name


def refuse_foreign_files(args: argparse.Namespace, output_dir: Path) -> None:
    """Overwrites nothing that this command has not made."""
    if (output_dir / STATE).exists():
        return
    for path in (args.data_files_json, output_dir / "dev.txt", *output_dir.glob("train-*.txt")):
        if path.exists():
            raise UserError(f"{path}: was not made by this command; choose another --output_dir or --data_files_json")


def check_first_documents(sources: list[Source], args: argparse.Namespace) -> None:
    """Finds a wrong --text_key or --encoding in any source before the first one is read."""
    for source in tqdm(sources, desc="checking the sources", unit=" files", leave=False, delay=1):
        if source.kind == ".txt" and not source.compression and args.encoding == "utf-8":
            with open(source.path, "rb") as file:
                require_plain_text(source.path, file)
        first = next(read_documents(source, args.text_key, args.encoding), None)
        if first and first.error and not args.skip_broken:
            raise _broken(first)


def _broken(document: Document) -> UserError:
    return UserError(f"{document.place}: {document.error}, or leave it out with --skip_broken")


class Corpus:
    """The files that are written, and how far they are.

    ``state`` is saved behind each finished train file: the position in the sources, the counts and the dev documents so far.
    """

    def __init__(self, args: argparse.Namespace, settings: dict[str, Any]):
        self.folder, self.args = args.output_dir, args
        self.state: dict[str, Any] = {**settings, "position": [0, 0], "counts": {}, "files": [], "digests": 0, "dev": [], "finished": False}
        if (self.folder / STATE).exists():
            stored = read_json(self.folder / STATE, "the state of an earlier run")
            if any(stored.get(name) != value for name, value in settings.items()):
                raise UserError(
                    f"{self.folder}: was made with other settings or of other sources; choose another --output_dir, or remove it"
                )
            self.state = stored
        self.counts = Counter(self.state["counts"])
        self.dev = [(-int(digest, 16), text) for digest, text in self.state["dev"]]  # a heap with the largest hash first
        heapq.heapify(self.dev)
        self.dev_digests = {negative for negative, _ in self.dev}
        self.digests = self._read_digests()
        self.new_digests: list[bytes] = []
        self.texts: list[bytes] = []  # of the train file that is not full yet
        self.size = 0

    @property
    def is_finished(self) -> bool:
        return self.state["finished"] and self.args.data_files_json.exists()

    def _read_digests(self) -> set[bytes]:
        if not self.state["digests"]:
            return set()
        with open(self.folder / DIGESTS, "rb") as file:
            content = file.read(self.state["digests"] * DIGEST_BYTES)
        return {content[start : start + DIGEST_BYTES] for start in range(0, len(content), DIGEST_BYTES)}

    def write(self, sources: list[Source]) -> None:
        """Writes the train files, then the dev file and the list of all."""
        first, skipped = self.state["position"]
        before = sum(source.size for source in sources[:first])
        total = sum(source.size for source in sources)
        self._save(self.state["position"])  # the files that follow are known to be this command's
        with progress_bar(total=total, initial=before, desc="preparing", unit="B", unit_scale=True) as bar:
            for number, source in enumerate(sources[first:], first):
                documents = read_documents(source, self.args.text_key, self.args.encoding)
                for count, document in enumerate(documents, 1):
                    bar.update(before + document.done - bar.n)
                    if number > first or count > skipped:
                        self._add(document)
                        if self.size >= self.args.file_megabytes * 1e6:
                            self._write_train_file([number, count])
                before += source.size
                bar.update(before - bar.n)
        if self.texts:
            self._write_train_file([len(sources), 0])
        self._finish(len(sources))

    def _add(self, document: Document) -> None:
        """Adds a document to the train file or to the dev documents, or counts why it is left out."""
        text, reason = clean(document)
        if reason:
            if not self.args.skip_broken:
                raise _broken(document._replace(error=reason))
            self.counts["broken"] += 1
            return
        content = text.encode()
        digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
        if reason := self._reason_to_leave_out(text, digest):
            self.counts[reason] += 1
            return
        if self.args.deduplicate:
            self.digests.add(digest)
            self.new_digests.append(digest)
        for_train = self._offer_to_dev(text, digest) if self.args.dev_documents else text
        if for_train:
            content = for_train.encode()
            self.texts.append(content)
            self.size += len(content)
            self.counts["train"] += 1

    def _reason_to_leave_out(self, text: str, digest: bytes) -> str:
        if not text.strip():
            return "empty"
        if len(text) < self.args.min_characters:
            return "short"
        if self.args.min_chinese_share and chinese_share(text) < self.args.min_chinese_share:
            return "not Chinese"
        if digest in self.digests:
            return "equal to an earlier one"
        return "equal to a dev document" if -int.from_bytes(digest, "big") in self.dev_digests else ""

    def _offer_to_dev(self, text: str, digest: bytes) -> str:
        """Keeps the documents with the smallest hashes; returns the one that has no place, if there is one."""
        entry = (-int.from_bytes(digest, "big"), text)
        self.dev_digests.add(entry[0])
        if len(self.dev) < self.args.dev_documents:
            heapq.heappush(self.dev, entry)
            return ""
        negative, without_place = heapq.heappushpop(self.dev, entry)
        self.dev_digests.remove(negative)
        return without_place

    def _write_train_file(self, position: list[int]) -> None:
        path = self.folder / f"train-{len(self.state['files']):05d}.txt"
        with atomic_write(path, "wb") as output:
            output.writelines(self.texts)
        with open(self.folder / DIGESTS, "ab") as file:
            file.truncate(self.state["digests"] * DIGEST_BYTES)  # what a killed run wrote behind its state
            file.writelines(self.new_digests)
            file.flush()
            os.fsync(file.fileno())
        self.state["files"].append(path.name)
        self.state["digests"] += len(self.new_digests)
        self.texts, self.size, self.new_digests = [], 0, []
        self._save(position)

    def _save(self, position: list[int], finished: bool = False) -> None:
        dev = [[f"{-negative:x}", text] for negative, text in self.dev]
        write_json(self.folder / STATE, {**self.state, "position": position, "counts": self.counts, "dev": dev, "finished": finished})

    def _finish(self, sources: int) -> None:
        """Writes the dev file and the list of all files."""
        if not self.state["files"]:
            raise UserError(f"{self.folder}: no document is left for the train files; see the settings that leave documents out")
        files = {"train": self.state["files"], "dev": ["dev.txt"] if self.dev else []}
        if self.dev:
            with atomic_write(self.folder / "dev.txt", "wb") as output:
                output.writelines(text.encode() for _, text in sorted(self.dev, reverse=True))
        lists = {}
        for split, names in files.items():
            texts = [self.folder / name for name in names]
            references = [path.parent / "ref_files" / f"{path.stem}_ref.txt" for path in texts]
            lists[split] = {f"{split}_files": list(map(str, texts)), f"{split}_ref_files": list(map(str, references))}
        write_json(self.args.data_files_json, lists)
        self.state["digests"] = 0
        self._save([sources, 0], finished=True)
        (self.folder / DIGESTS).unlink(missing_ok=True)

    def summary(self) -> str:
        """What was read, written and left out, and the next command."""
        left_out = {reason: count for reason, count in self.counts.items() if reason != "train"}
        read = self.counts["train"] + len(self.dev) + sum(left_out.values())
        size = sum((self.folder / name).stat().st_size for name in self.state["files"])
        return "\n".join(
            [
                f"{read:,} documents read from {len(self.state['sources']):,} sources",
                f"{self.counts['train']:,} in {len(self.state['files']):,} train files, {size / 1e6:,.1f} MB; {len(self.dev):,} dev documents",
                *(f"{count:,} left out: {reason}" for reason, count in sorted(left_out.items())),
                f"next: python run_chinese_ref.py --data_files_json {self.args.data_files_json}",
            ]
        )


# ---------------------------------------------------------------- one document


def clean(document: Document) -> tuple[str, str]:
    """The lines of a document with a blank line behind them, or what is wrong with it."""
    if document.error:
        return "", document.error
    lines = [line.removesuffix("\r") for line in document.text.split("\n") if line.strip()]
    text = "".join(f"{line}\n" for line in lines) + "\n"
    if "\0" in text:
        return "", "holds a NUL character"
    try:
        longest = max((len(line.encode()) for line in lines), default=0)
    except UnicodeEncodeError:
        return "", "holds half of a surrogate pair"
    return (text, "") if longest <= MAX_LINE_BYTES else ("", "has a line of over 16 MiB")


_IS_CHINESE = np.zeros(sys.maxunicode + 1, bool)
for _first, _last in CHINESE_RANGES:
    _IS_CHINESE[_first : _last + 1] = True


def chinese_share(text: str) -> float:
    """The share of Chinese characters among those that are not white space; ``text`` has at least one."""
    chinese = int(_IS_CHINESE[np.frombuffer(text.encode("utf-32-le"), np.uint32)].sum())
    return chinese / sum(map(len, text.split()))


if __name__ == "__main__":
    run_script(main)
