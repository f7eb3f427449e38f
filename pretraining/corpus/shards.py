"""The shards of a corpus: described, built where they are missing, and read as rows; see shard_files.py for their format.

The rows of a corpus go across the ends of its shards; see rows.py.
"""

import hashlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pretraining.corpus.executor_settings import PART_BYTES, Executor
from pretraining.corpus.executors import group_by_size, join_earlier_job, run_tasks
from pretraining.corpus.files import TextAndRefs, check_lines, read_json, read_lines, require_file, require_writable_place, sidecar_of
from pretraining.corpus.locks import exclusive
from pretraining.corpus.rows import Piece, Rows
from pretraining.corpus.shard_files import FORMAT, ShardSpec, data_files, is_foreign, is_intact, open_all, read_current, sha256_of
from pretraining.corpus.shard_parts import Shard, ShardMaker
from pretraining.corpus.tokenizer import tokenizer_sha256
from pretraining.utils import UserError, progress_bar

LINES = "lines"  # the check that a file has the lines of a text


def load_shards(
    files: list[TextAndRefs],
    spec: ShardSpec,
    descriptions: list[dict] | None = None,
    num_workers: int = 1,
    progress: bool = True,
    *,
    fill_last_row: bool = True,
) -> Rows:
    """Returns the rows of all files, in order; builds the shards that are missing or out of date.

    Args:
        files: from :func:`files.read_data_json`.
        descriptions: from :func:`describe_shards`, if the caller has them already.
        num_workers: threads that tokenise; rows and bytes are the same for any number.
        fill_last_row: with the first tokens of the corpus, for training; an evaluation should count no token twice.

    Raises:
        UserError: a file is missing, the text and its reference file do not belong together, or there is no text at all.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_workers))  # the tokenizer's thread pool, read at its first use
    if descriptions is None:
        descriptions = describe_shards(files, spec)
    found = _open_shards(files, spec, descriptions)
    if missing := [number for number, shard in enumerate(found) if shard is None]:
        outdated, what = [files[number] for number in missing], [descriptions[number] for number in missing]
        with _locked(spec):  # until they are mapped: another run of another length may wait for the same directory
            _build(outdated, spec, what, Executor(), PART_BYTES, progress)
            for number, shard in zip(missing, _open_shards(outdated, spec, what)):
                found[number] = shard
    pieces: list[Piece] = []
    for file, shard in zip(files, found):
        if shard is None:
            raise UserError(f"{spec.directory(file)}: was changed while it was read; run again")
        pieces += shard
    if not pieces:
        raise _no_text(files)
    return Rows(pieces, spec.content_length, fill_last_row)


def build_shards(files: list[TextAndRefs], spec: ShardSpec, descriptions: list[dict], executor: Executor, part_bytes: int) -> bool:
    """Builds the shards that are missing or out of date; another process that wants to do the same waits.

    Returns:
        False if a Slurm job was submitted and is not waited for.

    Raises:
        UserError: as :func:`load_shards`.
    """
    with _locked(spec):
        return _build(files, spec, descriptions, executor, part_bytes, progress=True)


def _locked(spec: ShardSpec) -> AbstractContextManager[None]:
    return exclusive(Path(spec.cache_dir) / ".lock", spec.cache_dir, wait=True)


def _build(
    files: list[TextAndRefs], spec: ShardSpec, descriptions: list[dict], executor: Executor, part_bytes: int, progress: bool
) -> bool:
    place = Path(spec.cache_dir) / ".workers"
    if not join_earlier_job(place, executor):
        return False
    found = _open_shards(files, spec, descriptions)
    shards = [Shard.divided(file, what, spec, part_bytes) for file, what, shard in zip(files, descriptions, found) if shard is None]
    work = [part for shard in shards for part in shard.missing_parts(spec)]
    if work:
        tasks = group_by_size(work, lambda part: part.text.size, part_bytes)
        settings = {"total": sum(part.text.lines for part in work), "desc": "shards", "unit": " lines", "unit_scale": True}
        with progress_bar(**settings, **({} if progress else {"disable": True})) as bar:
            if not run_tasks(ShardMaker(spec), tasks, executor, place, bar):
                return False
    for shard in shards:
        shard.finish(spec)
    if shards:
        spec.known.remember()
    return True


# ---------------------------------------------------------------- what a shard is made of


def describe_shards(files: list[TextAndRefs], spec: ShardSpec) -> list[dict]:
    """Describes all that decides the content of each shard. Checks what can be checked without building one.

    Raises:
        UserError: as :func:`load_shards`, except for references that do not fit their line.
    """
    spec.tokenizer.backend_tokenizer.no_truncation()  # an earlier user of the tokenizer may have left these on
    spec.tokenizer.backend_tokenizer.no_padding()
    for file in files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
        if is_foreign(spec.directory(file)):
            require_writable_place(spec.cache_dir, "--data_cache_dir")
            raise UserError(
                f"{spec.directory(file)}: is no shard, but the shard of {file.text} belongs here; choose another --data_cache_dir"
            )
    known = spec.known
    if unknown := [path for file in files for path in file if not known.knows(path)]:
        with known.learning():
            for path in tqdm(unknown, desc="reading texts and references", unit=" files", leave=False, delay=2):
                known.facts(path)
    tokenizer_sha = tokenizer_sha256(spec.tokenizer)
    descriptions = [_describe(file, spec, tokenizer_sha) for file in files]
    shards = [read_current(spec.directory(file), description) for file, description in zip(files, descriptions)]
    if outdated := [file for file, stored in zip(files, shards) if not stored]:
        require_writable_place(spec.cache_dir, "--data_cache_dir")
        _check_lines(outdated, spec)
    has_tokens = any(stored and stored.get("tokens") for stored in shards)
    if not has_tokens and not any(line.strip() for file in files for line in read_lines(file.text)):
        raise _no_text(files)
    return descriptions


def _check_lines(files: list[TextAndRefs], spec: ShardSpec) -> None:
    """Checks what a shard is to be built of."""
    known, texts = spec.known, {file.text for file in files}
    if unchecked := [path for file in files for path in file if not known.knows(path, LINES)]:
        with known.learning():
            for path in unchecked:
                if not known.knows(path, LINES):
                    check_lines(path, is_text=path in texts)
                    known.note(path, LINES)


def data_fingerprint(descriptions: list[dict]) -> str:
    """One hex string for all that :func:`describe_shards` returns.

    Rows that go across the ends of files came later than shards. A corpus of one file has the same rows as before them, so it keeps
    its fingerprint.
    """
    rows = "rows across files" if len(descriptions) > 1 else ""
    return hashlib.sha256("".join([*map(sha256_of, descriptions), rows]).encode()).hexdigest()


def _describe(file: TextAndRefs, spec: ShardSpec, tokenizer_sha: str) -> dict:
    """All that decides the content of a shard; also checks that text and references belong together."""
    text, refs = spec.known.facts(file.text), spec.known.facts(file.refs)
    if text.lines != refs.lines:
        raise UserError(f"{file.refs}: has {refs.lines} lines, its text {file.text} {text.lines}; make it again with run_chinese_ref.py")
    sidecar = sidecar_of(file.refs)
    if sidecar.is_file():
        noted = read_json(sidecar, "what run_chinese_ref.py noted")
        if noted.get("text_sha256") != text.sha256:
            raise UserError(f"{file.refs}: was made from another content of {file.text}; make it again with run_chinese_ref.py")
        if noted.get("tokenizer_sha256") != tokenizer_sha:
            raise UserError(f"{file.refs}: was made for another vocabulary; make it again with run_chinese_ref.py and this one as --bert")
        if noted.get("refs_sha256") != refs.sha256:
            raise UserError(f"{file.refs}: is not what run_chinese_ref.py wrote; make it again, or remove {sidecar} to use it as it is")
    return {
        "format": FORMAT,
        "text": text.sha256,
        "lines": text.lines,
        "refs": refs.sha256,
        "tokenizer": tokenizer_sha,
        "max_seq_length": spec.max_seq_length,
    }


def _no_text(files: list[TextAndRefs]) -> UserError:
    return UserError(f"{', '.join(str(file.text) for file in files)}: no text in them, so there is nothing to train on")


# ---------------------------------------------------------------- reading


def _open_shards(files: list[TextAndRefs], spec: ShardSpec, descriptions: list[dict]) -> list[list[Piece] | None]:
    """The tokens of each shard that is current and intact, None for the others; one process of the machine reads what is not known."""
    candidates: list[list[tuple[Path, dict[str, Any]]] | None] = []
    for file, description in zip(files, descriptions):
        stored = read_current(spec.directory(file), description)
        candidates.append(data_files(spec.directory(file), stored) if stored else None)
    unknown = [pair for pairs in candidates if pairs for pair in pairs if not spec.known.knows(pair[0], spec.rows_check)]
    if unknown:
        with spec.known.learning():
            for data, stored in tqdm(unknown, desc="checking shards", unit=" files", leave=False, delay=2):
                is_intact(data, stored, spec)
    return [open_all(pairs, spec) if pairs is not None else None for pairs in candidates]
