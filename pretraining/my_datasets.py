"""Text + reference files -> cached shards of tokens; also what train.py loads.

    python my_datasets.py --tokenizer ./pretrained_model_path/RoBERTa

A shard is a directory ``<data_cache_dir>/<name of the text file>/`` with ``data.arrow``, rows of max_seq_length - 2 content tokens
(only a file's last row is shorter), and ``shard.json``, the fingerprint of all that made it. Any difference rebuilds it.
"""

import argparse
import hashlib
import json
import os
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path

import numpy as np
from utils import (
    TextAndRefs,
    UserError,
    file_facts,
    load_tokenizer,
    parse_one_line_errors,
    progress_bar,
    read_data_json,
    read_json,
    read_line_blocks,
    require_file,
    require_writable_place,
    run_script,
    sidecar_of,
    tokenizer_sha256,
    whole_directory,
)

FORMAT = 1


def load_shards(
    files: list[TextAndRefs],
    data_cache_dir: str | Path,
    max_seq_length: int,
    tokenizer,
    num_workers: int = 1,
    progress: bool = True,
    descriptions: list[dict] | None = None,
):
    """Returns the rows of all files, in order, building the shards that are missing or out of date.

    Args:
        files: pairs from :func:`utils.read_data_json`.
        tokenizer: transformers.BertTokenizer.
        num_workers: threads that tokenise; rows and bytes are the same for any number.
        descriptions: from :func:`describe_shards`, if that was called before.

    Returns:
        (dataset, fingerprint): a datasets.Dataset with the columns ``input_ids`` (list of the smallest unsigned integer that holds
        the vocabulary) and ``continues`` (list of bool: the token continues the word before it), read as NumPy arrays; and a hex string.

    Raises:
        UserError: a file is missing, the text and its reference file do not belong together, or there is no text at all.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(num_workers))  # the tokenizer's thread pool, read at its first use
    if descriptions is None:
        descriptions = describe_shards(files, data_cache_dir, max_seq_length, tokenizer)

    from datasets import Dataset, concatenate_datasets  # takes a second to import; not before the checks above

    shards = []
    for file, description in zip(files, descriptions):
        directory = Path(data_cache_dir) / file.text.stem
        fingerprint, schema = _sha256_of(description), _schema(tokenizer)
        is_whole = _is_current(directory, fingerprint) and _is_intact(directory, schema)
        with _locked(directory):  # of several processes one builds, the others wait and read
            if not _is_current(directory, fingerprint) or not (is_whole or _is_intact(directory, schema)):
                _build(file, directory, description, fingerprint, max_seq_length, tokenizer, progress)
            shards.append(Dataset.from_file(str(directory / "data.arrow")))  # once mapped, another's rebuild does not touch it
    if not any(map(len, shards)):
        raise _no_text(files)
    return concatenate_datasets(shards).with_format("numpy"), data_fingerprint(descriptions)


def describe_shards(files: list[TextAndRefs], data_cache_dir: str | Path, max_seq_length: int, tokenizer) -> list[dict]:
    """All that decides the content of each file's shard; checks what can be checked without building one, and writes nothing.

    Raises:
        UserError: as :func:`load_shards`, but for references that do not fit their line.
    """
    tokenizer.backend_tokenizer.no_truncation()  # whoever used it before may have left these on
    tokenizer.backend_tokenizer.no_padding()
    for file in files:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    descriptions = [_description(file, max_seq_length, tokenizer) for file in files]
    for file, description in zip(files, descriptions):
        directory = Path(data_cache_dir) / file.text.stem
        if _is_current(directory, _sha256_of(description)):
            continue
        require_writable_place(data_cache_dir, "--data_cache_dir")
        if _is_someone_elses(directory):
            raise UserError(f"{directory}: is no shard, though that of {file.text} belongs here; choose another --data_cache_dir")
        for path in file:
            for _ in read_line_blocks(path):  # says now, not after hours of work, that line so-and-so is not valid
                pass
    if not any(line.strip() for file in files for lines in read_line_blocks(file.text) for line in lines):
        raise _no_text(files)
    return descriptions


def data_fingerprint(descriptions: list[dict]) -> str:
    """One hex string for all that :func:`describe_shards` says."""
    return hashlib.sha256("".join(map(_sha256_of, descriptions)).encode()).hexdigest()


def _sha256_of(description: dict) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _no_text(files: list[TextAndRefs]) -> UserError:
    return UserError(f"{', '.join(str(file.text) for file in files)}: no text in them, so there is nothing to train on")


@contextmanager
def _locked(directory: Path):
    """Holds the lock of a shard's directory; if the block fails, nothing is left of what the lock needed."""
    from filelock import FileLock

    lock = directory.parent / f".{directory.name}.lock"
    new_folders = [folder for folder in lock.parents if not folder.exists()]
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        try:
            yield
        except BaseException:
            lock.unlink(missing_ok=True)  # one who waits for it sees that it is gone and makes a new one
            with suppress(OSError):  # another has begun to use them
                for folder in new_folders:
                    folder.rmdir()
            raise


def _description(file: TextAndRefs, max_seq_length: int, tokenizer) -> dict:
    """All that decides a shard's content; also checks that text and references belong together."""
    text, refs = file_facts(file.text), file_facts(file.refs)
    if text.lines != refs.lines:
        raise UserError(f"{file.refs}: has {refs.lines} lines, its text {file.text} {text.lines}; make it again with run_chinese_ref.py")
    sidecar, tokenizer_sha = sidecar_of(file.refs), tokenizer_sha256(tokenizer)
    if sidecar.is_file():
        noted = read_json(sidecar, "what run_chinese_ref.py noted")
        if noted.get("text_sha256") != text.sha256:
            raise UserError(f"{file.refs}: was made from another content of {file.text}; make it again with run_chinese_ref.py")
        if noted.get("tokenizer_sha256") != tokenizer_sha:
            raise UserError(f"{file.refs}: was made for another vocabulary; make it again with run_chinese_ref.py and this one as --bert")
        if noted.get("refs_sha256") != refs.sha256:
            raise UserError(f"{file.refs}: is not what run_chinese_ref.py wrote; make it again, or remove {sidecar} if it is to be used")
    return {
        "format": FORMAT,
        "text": text.sha256,
        "lines": text.lines,
        "refs": refs.sha256,
        "tokenizer": tokenizer_sha,
        "max_seq_length": max_seq_length,
    }


def _is_someone_elses(directory: Path) -> bool:
    try:
        return not set(os.listdir(directory)) <= {"data.arrow", "shard.json"}
    except FileNotFoundError:
        return False
    except NotADirectoryError:
        return True


def _is_current(directory: Path, fingerprint: str) -> bool:
    try:
        stored = read_json(directory / "shard.json", "the shard's description")
        return stored.get("fingerprint") == fingerprint and stored.get("bytes") == (directory / "data.arrow").stat().st_size
    except (UserError, OSError):  # not there, or just being replaced by another process
        return False


def _is_intact(directory: Path, schema) -> bool:
    """Whether the rows of a current shard are, bit by bit, those that were written, and of no other kind."""
    import pyarrow as pa

    data = directory / "data.arrow"
    try:
        if read_json(directory / "shard.json", "the shard's description").get("sha256") != file_facts(data).sha256:
            return False
        with pa.memory_map(str(data)) as source, pa.ipc.open_stream(source) as reader:
            if not reader.schema.equals(schema, check_metadata=True):
                return False
            reader.read_all().validate(full=True)  # a stranger's rows may point outside the file
        return True
    except (UserError, OSError, pa.ArrowException):
        return False


def _schema(tokenizer):
    import pyarrow as pa

    id_type = pa.from_numpy_dtype(np.min_scalar_type(len(tokenizer) - 1))
    return pa.schema([("input_ids", pa.list_(id_type)), ("continues", pa.list_(pa.bool_()))])


def _build(file: TextAndRefs, directory: Path, description: dict, fingerprint: str, max_seq_length: int, tokenizer, progress: bool) -> None:
    import pyarrow as pa

    schema = _schema(tokenizer)
    content_length = max_seq_length - 2
    rows = tokens = 0
    with whole_directory(directory) as partial:
        with (
            pa.OSFile(str(partial / "data.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, schema) as writer,
            progress_bar(
                total=description["lines"], desc=f"shard {directory.name}", unit=" lines", unit_scale=True, disable=not progress
            ) as bar,
        ):
            ids, flags = np.empty(0, schema.field("input_ids").type.value_type.to_pandas_dtype()), np.empty(0, bool)
            for block_ids, block_flags, block_lines in _token_blocks(file, tokenizer):
                ids, flags = np.concatenate([ids, block_ids.astype(ids.dtype)]), np.concatenate([flags, block_flags])
                full = len(ids) // content_length * content_length
                if full:
                    writer.write_batch(_record_batch(schema, ids[:full], flags[:full], content_length))
                rows, tokens = rows + full // content_length, tokens + full
                ids, flags = ids[full:], flags[full:]
                bar.update(block_lines)
            if len(ids):
                writer.write_batch(_record_batch(schema, ids, flags, content_length))
                rows, tokens = rows + 1, tokens + len(ids)
        data = partial / "data.arrow"
        written = {"rows": rows, "tokens": tokens, "bytes": data.stat().st_size, "sha256": file_facts(data).sha256}
        stored = {"fingerprint": fingerprint, **description, **written}
        (partial / "shard.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")


def _record_batch(schema, ids: np.ndarray, flags: np.ndarray, content_length: int):
    import pyarrow as pa

    offsets = pa.array(np.append(np.arange(0, len(ids), content_length), len(ids)).astype(np.int32))
    columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, flags)]
    return pa.record_batch(columns, schema=schema)


def _token_blocks(file: TextAndRefs, tokenizer):
    """Yields (ids, continues, number of lines) for one block of lines after the other; ids int64, continues bool, both flat."""
    backend = tokenizer.backend_tokenizer
    is_piece = np.zeros(len(tokenizer), dtype=bool)
    is_piece[[number for token, number in tokenizer.get_vocab().items() if token.startswith("##")]] = True
    refs, first_line = _LineReader(file.refs), 1
    for lines in read_line_blocks(file.text):
        encodings = [encoding.ids for encoding in backend.encode_batch_fast(lines, add_special_tokens=False)]
        lengths = np.fromiter(map(len, encodings), np.int64, len(lines))
        ids = np.fromiter(chain.from_iterable(encodings), np.int64, int(lengths.sum()))
        continues = is_piece[ids]
        continues[_continuation_indices(file, refs.take(len(lines)), lengths, first_line)] = True
        yield ids, continues, len(lines)
        first_line += len(lines)


class _LineReader:
    """Hands out a file's lines in the numbers asked for."""

    def __init__(self, path: Path):
        self.blocks = read_line_blocks(path)
        self.lines: list[str] = []

    def take(self, count: int) -> list[str]:
        while len(self.lines) < count:
            self.lines += next(self.blocks)
        taken, self.lines = self.lines[:count], self.lines[count:]
        return taken


def _continuation_indices(file: TextAndRefs, ref_lines: list[str], lengths: np.ndarray, first_line: int) -> np.ndarray:
    """Where in the block's flat tokens the references point; int64.

    Args:
        ref_lines: JSON lists of positions, [CLS] being position 0.
        lengths: (lines,) tokens of each line without [CLS] and [SEP].
    """
    try:
        refs = json.loads(f"[{','.join(ref_lines)}]")
        bad = len(refs) != len(ref_lines) or any(line[:1] + line[-1:] != "[]" for line in map(str.strip, ref_lines))
    except (ValueError, RecursionError):  # ValueError: no JSON, or a number of thousands of digits
        bad = True
    if bad or not set(map(type, refs)) <= {list} or not set(map(type, chain.from_iterable(refs))) <= {int}:
        raise _explain(file, ref_lines, lengths, first_line)
    counts = np.fromiter(map(len, refs), np.int64, len(refs))
    try:
        positions = np.fromiter(chain.from_iterable(refs), np.int64, int(counts.sum()))
    except OverflowError:
        raise _explain(file, ref_lines, lengths, first_line) from None
    line = np.repeat(np.arange(len(refs)), counts)
    sorted_in_line = (np.diff(positions) > 0) | (np.diff(line) > 0)
    if not (((positions >= 2) & (positions <= lengths[line])).all() and sorted_in_line.all()):
        raise _explain(file, ref_lines, lengths, first_line)
    return positions - 1 + (np.cumsum(lengths) - lengths)[line]


def _explain(file: TextAndRefs, ref_lines: list[str], lengths: np.ndarray, first_line: int) -> UserError:
    """The error for the first wrong line among ``ref_lines``."""
    for number, (text, length) in enumerate(zip(ref_lines, lengths), first_line):
        try:
            ref = json.loads(text)
        except (ValueError, RecursionError):
            ref = None
        if not isinstance(ref, list):
            wrong = "is not a JSON list of positions"
        elif any(type(position) is not int for position in ref):
            wrong = "holds something that is not an integer"
        elif any(position < 2 or position > length for position in ref):
            outside = next(position for position in ref if position < 2 or position > length)
            wrong = f"position {outside} lies outside the line's tokens that can continue a word (2 to {length})"
        elif any(left >= right for left, right in zip(ref, ref[1:])):
            wrong = "its positions do not rise"
        else:
            continue
        return UserError(f"{file.refs}:{number}: {wrong}; make it again with run_chinese_ref.py and the same vocabulary as here")
    raise AssertionError("called without a wrong line")


class TrainingBatches:
    """The micro-batches of a run, one for each number: an endless map-style dataset.

    Samples stand in one endless line, epoch after epoch, each epoch in its own random order. Optimizer step ``t`` (from 0) takes the
    ``t``-th stretch of ``global_batch`` samples, however that is divided into processes and micro-batches.

    Args:
        dataset: from :func:`load_shards`.
        masker: masking.WholeWordMasker.
        seed: decides the order.
        train_batch_size: samples a step and process; micro_batches: forwards a step; rank, processes: which share is this process's.
    """

    def __init__(self, dataset, masker, seed: int, train_batch_size: int, micro_batches: int = 1, rank: int = 0, processes: int = 1):
        self.dataset, self.masker, self.seed = dataset, masker, seed
        self.micro_batches, self.micro_batch_size = micro_batches, train_batch_size // micro_batches
        self.first, self.global_batch = rank * train_batch_size, train_batch_size * processes
        self.orders: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> dict:
        """Micro-batch ``number`` of this process, counted from the run's first: tensors as in WholeWordMasker, int64."""
        step, micro = divmod(number, self.micro_batches)
        start = step * self.global_batch + self.first + micro * self.micro_batch_size
        return masked_batch(self.dataset, self.masker, *self.examples(start, self.micro_batch_size))

    def examples(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(epochs, indices into the dataset), int64, of ``count`` samples from place ``start`` of the endless line."""
        epochs, places = np.divmod(np.arange(start, start + count), len(self.dataset))
        return epochs, np.array([self._order(epoch)[place] for epoch, place in zip(epochs.tolist(), places.tolist())], dtype=np.int64)

    def beginnings(self, indices: np.ndarray) -> dict[int, str]:
        """How the texts of samples begin, without white space, by their index into the dataset: to find them in the files."""
        rows = self.dataset[indices.tolist()]["input_ids"]
        return {int(index): "".join(self.masker.tokenizer.decode(row[:32]).split()) for index, row in zip(indices, rows)}

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self.orders:
            self.orders = {old: order for old, order in self.orders.items() if old == epoch - 1}
            random = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            self.orders[epoch] = random.permutation(np.arange(len(self.dataset), dtype=np.uint32))
        return self.orders[epoch]


def masked_batch(dataset, masker, epochs: np.ndarray, indices: np.ndarray) -> dict:
    """Reads samples and masks them; returns WholeWordMasker's batch as tensors."""
    import torch

    rows = dataset[indices.tolist()]
    lengths = np.fromiter(map(len, rows["input_ids"]), np.int64, len(indices))
    ids, continues = (_dense(rows[column], lengths, masker.content_length) for column in ("input_ids", "continues"))
    return {name: torch.from_numpy(array) for name, array in masker(ids, continues, lengths, epochs, indices).items()}


def _dense(rows, lengths: np.ndarray, width: int) -> np.ndarray:
    """Rows of different length as one array padded with zeros."""
    if (lengths == width).all():
        return np.asarray(rows)
    dense = np.zeros((len(rows), width), dtype=rows[0].dtype)
    dense[np.arange(width) < lengths[:, None]] = np.concatenate(list(rows))
    return dense


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="which files are train and dev, and their reference files")
    parser.add_argument("--data_cache_dir", default="./dataset/shards", help="where the shards are kept")
    parser.add_argument("--tokenizer", default="./pretrained_model_path/RoBERTa", help="directory with the teacher's vocab.txt")
    parser.add_argument("--max_seq_length", default=512, type=int, help="tokens a sample, [CLS] and [SEP] included")
    parser.add_argument("--preprocessing_num_workers", default=os.cpu_count() or 1, type=int, help="threads that tokenise")
    args = parse_one_line_errors(parser)
    if args.max_seq_length < 4:
        raise UserError(f"--max_seq_length {args.max_seq_length}: must be at least 4")
    if args.preprocessing_num_workers < 1:
        raise UserError(f"--preprocessing_num_workers {args.preprocessing_num_workers}: must be at least 1")

    splits = read_data_json(args.data_files_json)
    tokenizer = load_tokenizer(args.tokenizer)
    placed = (args.data_cache_dir, args.max_seq_length, tokenizer)
    descriptions = {split: describe_shards(files, *placed) for split, files in splits.items() if files}  # all, before one is built
    for split, files in splits.items():
        if files:
            dataset, fingerprint = load_shards(files, *placed, args.preprocessing_num_workers, descriptions=descriptions[split])
            print(
                f"{split}: {len(dataset):,} samples of {args.max_seq_length} tokens from {len(files)} files, fingerprint {fingerprint[:12]}"
            )


if __name__ == "__main__":
    run_script(main)
