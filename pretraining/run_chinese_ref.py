"""Text -> whole-word reference files, with LTP.

    python run_chinese_ref.py --ltp ./pretrained_model_path/ltp --bert ./pretrained_model_path/RoBERTa

Line i of a reference file belongs to line i of its text. It is a JSON list of token positions, [CLS] being 0: the positions of the
Chinese characters that continue a word, as in Chinese-BERT-wwm (arXiv:1906.08101). A word counts if it has two characters or more, all
of them Chinese and each a token of the BERT vocabulary. Beside each reference file lies ``<its name>.json``, the fingerprint of all
that made it. A file that is up to date is skipped, so the same command resumes a run that was stopped.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from typing import Any

from tqdm import tqdm

from pretraining.corpus.files import (
    TextAndRefs,
    atomic_write,
    check_lines,
    file_facts,
    read_data_json,
    read_json,
    read_line_blocks,
    require_writable_place,
    sidecar_of,
    write_json,
)
from pretraining.corpus.locks import exclusive
from pretraining.corpus.references import ReferenceFinder
from pretraining.corpus.segmenter import LtpDirectory, Segment, load_segmenter, read_ltp_directory, words_of
from pretraining.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from pretraining.utils import ArgumentParser, UserError, progress_bar, run_script

FORMAT = 1
BATCH_CHARACTERS = 1 << 17  # an encoded character takes some 600 bytes, so 80 MB a batch


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the text files, train and dev, and their reference files")
    parser.add_argument("--ltp", default="./pretrained_model_path/ltp", help="directory of a legacy or neural LTP model")
    parser.add_argument("--bert", default="./pretrained_model_path/RoBERTa", help="directory of the BERT model, for its vocab.txt")
    parser.add_argument("--overwrite", action="store_true", help="make all reference files again, also those that are up to date")
    args = parser.parse_args(argv)

    files = list(chain.from_iterable(read_data_json(args.data_files_json).values()))
    check_outputs(files, args.overwrite)
    ltp = read_ltp_directory(args.ltp)
    tokenizer = load_tokenizer(args.bert)
    makers = {"format": FORMAT, "ltp_sha256": ltp.sha256(), "tokenizer_sha256": tokenizer_sha256(tokenizer)}
    with ExitStack() as locks:
        for place in {file.refs.parent.resolve(): file.refs.parent for file in files}.values():
            locks.enter_context(exclusive(place / ".lock", f"reference files in {place}"))
        make_references(files, makers, ltp, tokenizer, args.overwrite)


def make_references(files: list[TextAndRefs], makers: dict[str, Any], ltp: LtpDirectory, tokenizer: Any, overwrite: bool) -> None:
    """Writes the reference files that are not up to date; checks all their texts before the first.

    Args:
        makers: what decides the result beside the texts.
    """
    outdated = []
    for file in tqdm(files, desc="reading the texts", unit=" files", leave=False):
        facts = file_facts(file.text)
        inputs = {**makers, "text_sha256": facts.sha256, "lines": facts.lines}
        if not overwrite and is_current(file, inputs):
            tqdm.write(f"{file.refs}: up to date, skipped (--overwrite makes it again)")
            continue
        check_lines(file.text, is_text=True)
        outdated.append((file, inputs))
    if outdated:
        segment = load_segmenter(ltp)
        find_references = ReferenceFinder(tokenizer)
        for file, inputs in outdated:
            write_references(file, inputs, segment, find_references)


def check_outputs(files: list[TextAndRefs], overwrite: bool) -> None:
    """Checks that every reference file can be written, and overwrites nothing that belongs to someone else."""
    texts = {file.text.resolve() for file in files}
    for _, refs in files:
        sidecar = sidecar_of(refs)
        if texts & {refs.resolve(), sidecar.resolve()}:
            raise UserError(f"{refs}: writing this reference file would overwrite a text file; give it another name")
        if refs.is_dir() or sidecar.is_dir():
            raise UserError(f"{refs}: a reference file is to be written here, but this name or {sidecar.name} is a directory")
        if refs.exists() and not sidecar.exists() and not overwrite:
            raise UserError(f"{refs}: was not made by this script (no {sidecar.name} beside it); move it away or give --overwrite")
        require_writable_place(refs.parent, f"{refs}:")


def is_current(file: TextAndRefs, inputs: dict[str, Any]) -> bool:
    """True if the reference file was made from ``inputs`` and was not changed since."""
    sidecar = sidecar_of(file.refs)
    if not (file.refs.is_file() and sidecar.is_file()):
        return False
    noted = read_json(sidecar, "the note beside a reference file (--overwrite makes both again)")
    return noted == {**inputs, "refs_sha256": file_facts(file.refs).sha256}


def write_references(file: TextAndRefs, inputs: dict[str, Any], segment: Segment, find_references: ReferenceFinder) -> None:
    """Writes one reference file and, just before it replaces the old one, the note of what made it."""
    start, digest, lines_done = time.perf_counter(), hashlib.sha256(), 0
    bar_settings = {"total": inputs["lines"], "desc": file.text.name, "unit": " lines", "unit_scale": True}
    with atomic_write(file.refs, "wb") as output, progress_bar(**bar_settings) as bar:
        for lines in chain.from_iterable(map(batches_of_lines, read_line_blocks(file.text))):
            lines_done += len(lines)
            words = words_of(lines, segment, bar.update)
            references = "".join(f"{positions}\n" for positions in find_references(lines, words)).encode()
            digest.update(references)
            output.write(references)
            bar.update(lines_done - bar.n)  # counts lines with nothing to segment
        if lines_done != inputs["lines"]:
            raise UserError(f"{file.text}: was changed while it was read; run again")
        write_json(sidecar_of(file.refs), {**inputs, "refs_sha256": digest.hexdigest()})
    seconds = time.perf_counter() - start
    print(f"{file.refs}: {inputs['lines']:,} lines in {seconds:.1f} s, {inputs['lines'] / seconds:,.0f} lines/s")


def batches_of_lines(lines: list[str]) -> Iterator[list[str]]:
    """Splits a list of lines into lists of about ``BATCH_CHARACTERS``; an empty line costs memory too."""
    first = size = 0
    for number, line in enumerate(lines, start=1):
        size += len(line) + 16
        if size >= BATCH_CHARACTERS:
            yield lines[first:number]
            first, size = number, 0
    if first < len(lines):
        yield lines[first:]


if __name__ == "__main__":
    run_script(main)
