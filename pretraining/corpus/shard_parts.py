"""Text + references -> the shard of a text: which parts are missing, one part made by one worker, the list of all parts."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pretraining.corpus.files import FileFacts, TextAndRefs, atomic_directory, file_facts, write_json
from pretraining.corpus.known_files import CLOCK_STEP
from pretraining.corpus.locks import exclusive
from pretraining.corpus.parts import Part, divide, divide_by_lines, require_unchanged
from pretraining.corpus.shard_files import ShardSpec, data_files, is_intact, read_current, sha256_of
from pretraining.corpus.tokens import read_token_blocks
from pretraining.utils import UserError


class ShardPart(NamedTuple):
    """A part of a text with its references, and the directory that its shard is written to.

    Attributes:
        description: all that decides the content of the shard.
    """

    file: TextAndRefs
    text: Part
    refs: Part
    directory: Path
    description: dict[str, Any]


class Shard(NamedTuple):
    """The shard of a text that is to be made.

    Attributes:
        description: all that decides its content.
    """

    file: TextAndRefs
    description: dict[str, Any]
    parts: list[ShardPart]

    @classmethod
    def divided(cls, file: TextAndRefs, description: dict[str, Any], spec: ShardSpec, part_bytes: int) -> "Shard":
        """Divides a text and its references; raises UserError if they are no longer what was described."""
        text_facts, texts = divide(file.text, part_bytes)
        refs_facts, refs = divide_by_lines(file.refs, [part.lines for part in texts])
        for path, facts, name in ((file.text, text_facts, "text"), (file.refs, refs_facts, "refs")):
            if facts.sha256 != description[name]:
                raise UserError(f"{path}: was changed while it was read; run again")
        parts = [
            ShardPart(
                file,
                *pair,
                directory=spec.part_directory(file, number, len(texts)),
                description={**description, "text": pair[0].sha256, "lines": pair[0].lines, "refs": pair[1].sha256},
            )
            for number, pair in enumerate(zip(texts, refs))
        ]
        return cls(file, description, parts)

    def missing_parts(self, spec: ShardSpec) -> list[ShardPart]:
        """The parts without a shard; removes damaged ones, whose fingerprint may still be right."""
        missing = []
        for part in self.parts:
            stored = read_current(part.directory, part.description)
            if stored and not all(is_intact(data, what, spec) for data, what in data_files(part.directory, stored)):
                (part.directory / "shard.json").unlink()
                stored = None
            if stored is None:
                missing.append(part)
        return missing

    def finish(self, spec: ShardSpec) -> None:
        """Lists the parts of a text that has several; removes what an older content of the text has left."""
        stored = [read_current(part.directory, part.description) for part in self.parts]
        for part, what in zip(self.parts, stored):
            if what is None:
                raise UserError(f"{part.directory}: was changed while the shards were made; run again")
            spec.known.put(part.directory / "data.arrow", FileFacts(what["sha256"], 0))
            spec.known.note(part.directory / "data.arrow", spec.rows_check)
        if len(self.parts) == 1:
            return
        directory = spec.directory(self.file)
        listed = [{name: what[name] for name in ("rows", "tokens", "bytes", "sha256")} for what in stored if what]
        totals = {name: sum(part[name] for part in listed) for name in ("rows", "tokens")}
        index = {"fingerprint": sha256_of(self.description), **self.description, **totals, "parts": listed}
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "shard.json", index)
        (directory / "data.arrow").unlink(missing_ok=True)
        for old in directory.glob("[0-9]" * 5):
            if int(old.name) >= len(self.parts):
                shutil.rmtree(old, ignore_errors=True)


@dataclass
class ShardMaker:
    """Makes the shard of a part; picklable, for workers in other processes and on other machines."""

    spec: ShardSpec

    def __call__(self, part: ShardPart, report: Callable[[int], object]) -> None:
        """Writes the shard of a part; if another process is at it, waits for that one.

        Args:
            report: called with numbers of lines that are finished.
        """
        with exclusive(part.directory.with_name(f".{part.directory.name}.lock"), part.directory, wait=True):
            if read_current(part.directory, part.description):
                report(part.text.lines)
                return
            require_unchanged(part.file.text, part.text)
            require_unchanged(part.file.refs, part.refs)
            with atomic_directory(part.directory) as partial:
                data = partial / "data.arrow"
                with pa.OSFile(str(data), "wb") as sink:
                    counts = self._write_rows(part, sink, report)
                sizes = {"bytes": data.stat().st_size, "sha256": file_facts(data).sha256}
                stored = {"fingerprint": sha256_of(part.description), **part.description, **counts, **sizes}
                (partial / "shard.json").write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
                past = data.stat().st_mtime_ns - round(2e9 * CLOCK_STEP)
                os.utime(data, ns=(past, past))  # if it is changed in the next second, its time tells

    def _write_rows(self, part: ShardPart, sink: pa.NativeFile, report: Callable[[int], object]) -> dict[str, int]:
        """Writes the tokens of a part in rows of ``max_seq_length - 2``; returns how many rows and tokens."""
        length, schema = self.spec.content_length, self.spec.schema
        ids = np.empty(0, schema.field("input_ids").type.value_type.to_pandas_dtype())
        flags = np.empty(0, bool)
        rows = tokens = 0
        with pa.ipc.new_stream(sink, schema) as writer:
            for block in read_token_blocks(part.file, self.spec.tokenizer, self.spec.is_piece, part.text, part.refs):
                ids = np.concatenate([ids, block.ids.astype(ids.dtype)])
                flags = np.concatenate([flags, block.continues])
                if not rows:
                    flags[:1] = False  # the first token of a part continues no word of another part
                full = len(ids) // length * length
                if full:
                    writer.write_batch(_record_batch(schema, ids[:full], flags[:full], length))
                rows, tokens = rows + full // length, tokens + full
                ids, flags = ids[full:], flags[full:]
                report(block.lines)
            if len(ids):
                writer.write_batch(_record_batch(schema, ids, flags, length))
                rows, tokens = rows + 1, tokens + len(ids)
        return {"rows": rows, "tokens": tokens}


def _record_batch(schema: pa.Schema, ids: np.ndarray, flags: np.ndarray, length: int) -> pa.RecordBatch:
    offsets = pa.array(np.append(np.arange(0, len(ids), length), len(ids)).astype(np.int32))
    columns = [pa.ListArray.from_arrays(offsets, pa.array(values)) for values in (ids, flags)]
    return pa.record_batch(columns, schema=schema)
