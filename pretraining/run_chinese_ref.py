"""Text -> whole-word reference files, with LTP.

    python run_chinese_ref.py --ltp ./pretrained_model_path/ltp --bert ./pretrained_model_path/RoBERTa

Line i of a reference file belongs to line i of its text. It is a JSON list of token positions, [CLS] being 0: the positions of the
Chinese characters that continue a word, as in Chinese-BERT-wwm (arXiv:1906.08101). A word counts if it has two characters or more, all
of them Chinese and each a token of the BERT vocabulary. Beside each reference file lies ``<its name>.json``, the fingerprint of all
that made it. A file that is up to date is skipped, so the same command resumes a run that was stopped.
"""

import time
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import chain
from typing import Any

from tqdm import tqdm

from pretraining.corpus.executor_settings import Executor, add_executor_arguments, executor_of, part_bytes_of
from pretraining.corpus.executors import group_by_size, join_earlier_job, run_tasks
from pretraining.corpus.files import TextAndRefs, check_lines, read_data_json, require_writable_place, sidecar_of
from pretraining.corpus.locks import exclusive
from pretraining.corpus.parts import divide
from pretraining.corpus.reference_files import ReferenceFile, ReferenceMaker, is_current, load_models
from pretraining.corpus.segmenter import gpus_for, read_ltp_directory
from pretraining.utils import ArgumentParser, UserError, progress_bar, run_script

PRINTED_FILES = 20


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the text files, train and dev, and their reference files")
    parser.add_argument("--ltp", default="./pretrained_model_path/ltp", help="directory of a legacy or neural LTP model")
    parser.add_argument("--bert", default="./pretrained_model_path/RoBERTa", help="directory of the BERT model, for its vocab.txt")
    parser.add_argument("--overwrite", action="store_true", help="make all reference files again, also those that are up to date")
    add_executor_arguments(parser)
    args = parser.parse_args(argv)

    if args.overwrite and args.no_wait:
        raise UserError(
            "--overwrite and --no_wait: the same command is to be given again to join the result, and would begin again; leave out one"
        )
    files = list(chain.from_iterable(read_data_json(args.data_files_json).values()))
    check_outputs(files, args.overwrite)
    executor = executor_of(args, gpus_for(read_ltp_directory(args.ltp)))
    maker = ReferenceMaker.of(args.ltp, args.bert)
    with ExitStack() as locks:
        for place in {file.refs.parent.resolve(): file.refs.parent for file in files}.values():
            locks.enter_context(exclusive(place / ".lock", f"reference files in {place}"))
        make_references(files, maker, executor, part_bytes_of(args), args.overwrite)


def make_references(files: list[TextAndRefs], maker: ReferenceMaker, executor: Executor, part_bytes: int, overwrite: bool) -> None:
    """Writes the reference files that are not up to date; checks all their texts before the first."""
    place = files[0].refs.parent / ".workers"
    if not join_earlier_job(place, executor):
        return
    outdated = find_outdated(files, dict(maker.makers), part_bytes, overwrite)
    work = [part for file in outdated for part in file.missing_parts()]
    start, lines = time.perf_counter(), sum(part.part.lines for part in work)
    if work and executor.is_this_process:
        load_models(maker)  # before the bar; a worker elsewhere sends the same error
    if work:
        tasks = group_by_size(work, lambda part: part.part.size, part_bytes)
        with progress_bar(total=lines, desc="references", unit=" lines", unit_scale=True) as bar:
            if not run_tasks(maker, tasks, executor, place, bar):
                return
    seconds = time.perf_counter() - start
    for file in outdated:
        file.join()
    print_files(f"{file.file.refs}: {file.inputs['lines']:,} lines" for file in outdated)
    if work:
        print(f"{lines:,} lines in {len(work):,} part{'s' * (len(work) > 1)} in {seconds:.1f} s, {lines / seconds:,.0f} lines/s")


def print_files(lines: Iterable[str]) -> None:
    """Prints a line per file; of thousands of files the first ones."""
    lines = list(lines)
    print("".join(f"{line}\n" for line in lines[:PRINTED_FILES]), end="")
    if len(lines) > PRINTED_FILES:
        print(f"... and {len(lines) - PRINTED_FILES:,} more")


def find_outdated(files: list[TextAndRefs], makers: dict[str, Any], part_bytes: int, overwrite: bool) -> list[ReferenceFile]:
    """The reference files that are not up to date, with the parts that are there already in their folders."""
    outdated, current = [], []
    for file in tqdm(files, desc="reading the texts", unit=" files", leave=False):
        facts, parts = divide(file.text, part_bytes)
        inputs = {**makers, "text_sha256": facts.sha256, "lines": facts.lines}
        if not overwrite and is_current(file, inputs):
            current.append(file)
            continue
        check_lines(file.text, is_text=True)
        outdated.append(ReferenceFile(file, inputs, parts))
    print_files(f"{file.refs}: up to date, skipped (--overwrite makes it again)" for file in current)
    for wanted in outdated:
        if overwrite:
            wanted.forget_parts()
        else:
            wanted.copy_parts_of_old_file()
    return outdated


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


if __name__ == "__main__":
    run_script(main)
