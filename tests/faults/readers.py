"""What reads the files of strangers. Each makes its right files in a directory and says how to spoil and how to read them."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from transformers import BertForMaskedLM

from finetuning.features import collate, make_features
from finetuning.task_definitions import TASKS, TASKS_DIR, definition, read_task, to_task
from finetuning.tasks import load_split, task_labels
from pretraining.config import TrainingArguments
from pretraining.corpus.batches import TrainingBatches
from pretraining.corpus.files import TextAndRefs, file_facts, read_data_json, sidecar_of
from pretraining.corpus.masking import WholeWordMasker
from pretraining.corpus.segmenter import read_ltp_directory
from pretraining.corpus.shards import ShardSpec, describe_shards, load_shards
from pretraining.corpus.tokenizer import load_tokenizer, tokenizer_sha256
from pretraining.corpus.tokens import find_pieces, read_token_blocks
from pretraining.distillation.checkpoint import CHECKSUMS, STATE_FILE, check_identity, find_checkpoint, load_state, write_checksums
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.modeling import build_student, masked_lm_outputs, read_config
from pretraining.distillation.optimizer import make_optimizer, make_scheduler
from pretraining.utils import UserError
from tests import tiny, workplace
from tests.faults.mutate import VALUES, Mutator, mutated_bytes, mutated_json, mutated_json_lines, mutated_value

LENGTH = 32


class Reader(NamedTuple):
    """A reader in a directory of its own.

    Attributes:
        spoil: makes all files right again, then one of them wrong.
        read: reads all; may raise UserError alone.
    """

    spoil: Callable[[random.Random], None]
    read: Callable[[], Any]


def spoiler(*files: tuple[Path, Mutator]) -> Callable[[random.Random], None]:
    right = {path: path.read_bytes() for path, _ in files}

    def spoil(draw: random.Random) -> None:
        for path, content in right.items():
            path.write_bytes(content)
        path, mutate = draw.choice(files)
        path.write_bytes(mutate(right[path], draw))

    return spoil


def make_all_calls(*calls: Callable[[], Any]) -> None:
    """Makes all the calls; then raises the first of their UserErrors."""
    errors = []
    for call in calls:
        try:
            call()
        except UserError as error:
            errors.append(error)
    if errors:
        raise errors[0]


def write_text(place: Path) -> tuple[Any, TextAndRefs]:
    tokenizer = tiny.write_vocabulary(place / "vocabulary")
    tiny.write_text(place / "text.txt", tiny.paragraphs(8, seed=1), tokenizer)
    return tokenizer, TextAndRefs(place / "text.txt", place / "text.refs")


# ---------------------------------------------------------------- pretraining's data


def reference_lines(place: Path) -> Reader:
    tokenizer, file = write_text(place)
    pieces = find_pieces(tokenizer)
    return Reader(
        spoiler((file.refs, mutated_json_lines), (file.refs, mutated_bytes)), lambda: list(read_token_blocks(file, tokenizer, pieces))
    )


def text_and_notes(place: Path) -> Reader:
    """The text, its references and what run_chinese_ref.py notes of them."""
    tokenizer, file = write_text(place)
    sums = {"text_sha256": file_facts(file.text).sha256, "refs_sha256": file_facts(file.refs).sha256}
    notes = sidecar_of(file.refs)
    notes.write_text(json.dumps({**sums, "tokenizer_sha256": tokenizer_sha256(tokenizer)}))
    spec = ShardSpec(place / "cache", LENGTH, tokenizer)

    def read() -> None:
        make_all_calls(lambda: describe_shards([file], spec), lambda: list(read_token_blocks(file, tokenizer, spec.is_piece)))

    return Reader(spoiler((file.text, mutated_bytes), (file.refs, mutated_bytes), (notes, mutated_json)), read)


def data_json(place: Path) -> Reader:
    for name in ("a", "b", "dev"):
        (place / f"{name}.txt").write_text("今天\n", encoding="utf-8")
    path = place / "data.json"
    tiny.write_data_json(path, [place / "a.txt", place / "b.txt"], [place / "dev.txt"])
    return Reader(spoiler((path, mutated_json)), lambda: read_data_json(path))


def shards(place: Path) -> Reader:
    """shard.json and data.arrow; most spoiled arrows come with the right size and checksum. Batches are made of what is accepted."""
    tokenizer, file = write_text(place)
    spec = ShardSpec(place / "cache", LENGTH, tokenizer)
    load_shards([file], spec, progress=False)
    data, notes = place / "cache" / "text" / "data.arrow", place / "cache" / "text" / "shard.json"
    right, right_notes = data.read_bytes(), notes.read_bytes()
    table = pa.ipc.open_stream(right).read_all()

    def spoil(draw: random.Random) -> None:
        data.write_bytes(right)
        notes.write_bytes(right_notes)
        kind = draw.randrange(3)
        if kind == 0:
            notes.write_bytes(mutated_json(right_notes, draw))
            return
        data.write_bytes(mutated_bytes(right, draw) if kind == 1 else mutated_rows(table, draw))
        if draw.random() < 0.7:
            content = data.read_bytes()
            noted = {**json.loads(right_notes), "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            notes.write_text(json.dumps(noted))

    def read() -> None:
        rows = load_shards([file], spec, progress=False)
        batches = TrainingBatches(rows, WholeWordMasker(tokenizer, LENGTH, 0.15, 1), 1, len(rows), 1)
        batch = batches[0]
        assert batch["input_ids"].max() < len(tokenizer) and batch["input_ids"].shape[1] <= LENGTH

    return Reader(spoil, read)


def mutated_rows(table: pa.Table, draw: random.Random) -> bytes:
    """Other rows in the right types, where that is possible."""
    columns = []
    for column in table.columns:
        values = mutated_value(column.to_pylist(), draw, [0, 1, 63, 255, None, True, [], [0], [1] * 100])
        try:
            columns.append(pa.array(values, column.type))
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            columns.append(column.combine_chunks())
    length = min(map(len, columns))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(pa.record_batch([column[:length] for column in columns], schema=table.schema))
    return sink.getvalue().to_pybytes()


def ltp_configs(place: Path) -> Reader:
    """config.json of both kinds."""
    legacy, neural = place / "legacy", place / "neural"
    for folder in (legacy, neural):
        folder.mkdir()
        for name in ("vocab.txt", "pytorch_model.bin", "cws_model.bin"):
            (folder / name).write_bytes(b"x")
    (legacy / "config.json").write_text(json.dumps({"nerual": False, "tasks": {"cws": "cws_model.bin"}}))
    (neural / "config.json").write_text(json.dumps(workplace.neural_config(40)))

    def read() -> None:
        make_all_calls(lambda: read_ltp_directory(legacy).sha256(), lambda: read_ltp_directory(neural).sha256())

    return Reader(spoiler((legacy / "config.json", mutated_json), (neural / "config.json", mutated_json)), read)


# ---------------------------------------------------------------- fine-tuning


FILES = {"train": "unused", "dev": "unused"}
OWN: dict[str, dict[str, Any]] = {
    "rows": {"kind": "classification", "layout": "table", "files": FILES, "fields": ["text"], "labels": ["好", "坏"]},
    "answers": {"kind": "reading", "layout": "jsonl", "files": FILES, "fields": ["question", "text"], "label": "answers"},
    "tags": {"kind": "labelling", "layout": "jsonl", "files": FILES, "fields": ["text"], "label": "tags", "labels": ["LOC"]},
    "conll": {"kind": "labelling", "layout": "conll", "files": FILES, "labels": ["LOC"]},
}


def task_definitions(place: Path) -> Reader:
    """A task of the project, and one of one's own; what is accepted is written and read back."""
    lcqmc, own = place / "lcqmc.json", place / "mine.json"
    shutil.copy(TASKS_DIR / "lcqmc.json", lcqmc)
    own.write_text(json.dumps({**OWN["rows"], "metric": "macro_f1", "max_seq_length": 32, "learning_rate_small": 1e-4}))

    def read(path: Path) -> None:
        task = read_task(path)
        assert to_task(path, json.loads(json.dumps(definition(task)))) == task

    return Reader(spoiler((lcqmc, mutated_json), (own, mutated_json)), lambda: make_all_calls(lambda: read(lcqmc), lambda: read(own)))


def squad() -> str:
    paragraphs = [
        {"context": text, "qas": [{"id": f"q{n}", "question": "哪里?", "answers": [{"text": text[2:4], "answer_start": 2}]}]}
        for n, text in enumerate(tiny.SENTENCES)
    ]
    return json.dumps({"data": [{"paragraphs": paragraphs}]}, ensure_ascii=False)


SPANS = {"span1_text": "火车", "span1_index": 0, "span2_text": "慢", "span2_index": 2}


def task_files(place: Path) -> Reader:
    """The files of each layout, read and made into a batch."""
    tiny.write_vocabulary(place / "vocabulary")
    tokenizer = load_tokenizer(place / "vocabulary")
    pairs = [{"sentence1": text, "sentence2": text[:4], "label": "neutral"} for text in tiny.SENTENCES]
    contents = {
        "squad.json": ("cmrc2018", mutated_json, squad()),
        "pairs.json": ("ocnli", mutated_json_lines, "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)),
        "news.json": ("tnews", mutated_json_lines, '{"label": "100", "sentence": "今天天气很好"}\n{"label": "101", "sentence": "火车"}\n'),
        "table.tsv": ("chnsenticorp", mutated_bytes, "label\ttext_a\n1\t今天天气很好\n0\t火车\n"),
        "table.csv": ("bq", mutated_bytes, 'sentence1,sentence2,label\n"今天,天气",很好,1\n"他说""好""",火车,0\n'),
        "labels.json": ("", mutated_json_lines, '{"label": "100"}\n{"label": "101"}\n'),
        "spans.json": (
            "cluewsc",
            mutated_json_lines,
            json.dumps({"text": "火车慢", "label": "true", "target": SPANS}, ensure_ascii=False) + "\n",
        ),
        "rows.csv": ("rows", mutated_bytes, "text,label\n今天,好\n火车,坏\n"),
        "answers.jsonl": ("answers", mutated_json_lines, '{"question": "哪里?", "text": "他在北京", "answers": ["北京"]}\n'),
        "tags.jsonl": ("tags", mutated_json_lines, '{"text": "在北京", "tags": ["O", "B-LOC", "I-LOC"]}\n{"text": ["我"], "tags": "O"}\n'),
        "conll.txt": ("conll", mutated_bytes, "在 O\n北 B-LOC\n京 I-LOC\n\n我\tO\n"),
    }
    tasks = {**TASKS, **{name: to_task(place, {"name": name, **values}) for name, values in OWN.items()}}
    for name, (_, _, text) in contents.items():
        (place / name).write_text(text, encoding="utf-8")

    def read() -> None:
        make_all_calls(*(lambda task=task, name=name: read_one(task, place / name) for name, (task, _, _) in contents.items() if task))

    def read_one(name: str, path: Path) -> None:
        task = tasks[name]
        examples: list = load_split(task, path, task_labels(task, place))
        for training in (True, False):
            features, _ = make_features(task, examples, tokenizer, LENGTH, training)
            if features:
                collate(features[:8])

    return Reader(spoiler(*((place / name, mutate) for name, (_, mutate, _) in contents.items())), read)


# ---------------------------------------------------------------- models and checkpoints

PUBLISHED_KEYS = {
    "architectures": ["BertForMaskedLM"],
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "num_labels": 2,
    "id2label": {"0": "a", "1": "b"},
    "position_embedding_type": "absolute",
    "use_cache": True,
    "classifier_dropout": None,
    "directionality": "bidi",
    "is_decoder": False,
    "chunk_size_feed_forward": 0,
    "tie_word_embeddings": True,
    "dtype": "float32",
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "problem_type": None,
}


def student_jsons(place: Path) -> Reader:
    """A student's config; what is accepted is built, if it is small, takes a forward pass and is saved."""
    path = place / "student.json"
    path.write_text(json.dumps({**tiny.config(60, 2, 16, 2), **PUBLISHED_KEYS}))

    def read() -> None:
        config = read_config(path, "the student's config")
        with torch.device("meta"):
            parameters = BertForMaskedLM(config).num_parameters()
        if parameters < 10**7:  # a large model is as large as it was asked for
            length = min(8, config.max_position_embeddings)
            batch = {name: torch.zeros(1, length, dtype=torch.int64) for name in ("input_ids", "masked_positions")}
            student = build_student(config, None)
            masked_lm_outputs(student, batch, hidden_states=True)
            student.save_pretrained(str(place / "saved"))

    return Reader(spoiler((path, mutated_json)), read)


class Training:
    """A tiny run without data: what a checkpoint's files are read into."""

    def __init__(self, place: Path):
        self.tokenizer = tiny.write_vocabulary(place / "vocabulary")
        path = place / "student.json"
        path.write_text(json.dumps(tiny.config(len(self.tokenizer), 1, 8, 2)))
        self.args = TrainingArguments(student_config=str(path), output_dir=str(place / "run"), num_train_steps=4, max_seq_length=LENGTH)
        self.config = read_config(path, "the student's config")
        self.student = build_student(self.config, None)
        self.identity = {"learning_rate": 1e-3, "data": "0", "teacher": None, "student_config hidden_size": 8}

    def start(self) -> tuple[Distiller, torch.optim.AdamW, Any]:
        distiller = Distiller(self.args, self.student, None, [], torch.device("cpu"))
        optimizer = make_optimizer(self.student, distiller.module.projections, self.args)
        return distiller, optimizer, make_scheduler(optimizer, self.args)

    def step(self, optimizer: torch.optim.Optimizer, scheduler: Any) -> None:
        for parameter in self.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        scheduler.step()

    def state(self) -> dict[str, Any]:
        distiller, optimizer, scheduler = self.start()
        self.step(optimizer, scheduler)
        return {
            "step": 1,
            "projections": distiller.module.projections.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "scaler": distiller.scaler.state_dict(),
            "identity": self.identity,
        }


def training_states(place: Path) -> Reader:
    """training_state.pt with other values or other bytes; what is accepted is restored and takes a step."""
    training = Training(place)
    state, path = training.state(), place / STATE_FILE
    torch.save(state, path)
    right = path.read_bytes()
    tensors = [
        torch.zeros(1).expand(8, 8),
        torch.zeros(8, 8).to_sparse(),
        torch.zeros(0),
        torch.zeros(3, 3),
        torch.tensor(float("nan")),
        torch.tensor([1, 2]),
        torch.zeros(1, dtype=torch.bool),
    ]

    def spoil(draw: random.Random) -> None:
        if draw.random() < 0.3:
            path.write_bytes(mutated_bytes(right, draw))
        else:
            torch.save(mutated_value(state, draw, [*VALUES, *tensors]), path)

    def read() -> None:
        found = load_state(place)
        check_identity(place, found["identity"], training.identity, ignore_data=False)
        distiller, optimizer, scheduler = training.start()
        distiller.restore(found, optimizer, scheduler)
        training.step(optimizer, scheduler)

    return Reader(spoil, read)


def checkpoint_jsons(place: Path) -> Reader:
    """checksums.json, config.json and the tokenizer's files of a checkpoint; the checksums of the latter are right."""
    training = Training(place)
    checkpoint = place / "run" / "gs2"
    training.student.save_pretrained(str(checkpoint))
    training.tokenizer.save_pretrained(str(checkpoint))
    shutil.copy(place / "vocabulary" / "vocab.txt", checkpoint)
    write_checksums(checkpoint)
    names = (CHECKSUMS, "config.json", "tokenizer_config.json", "tokenizer.json", "vocab.txt")
    right = {name: (checkpoint / name).read_bytes() for name in names}

    def spoil(draw: random.Random) -> None:
        for name, content in right.items():
            (checkpoint / name).write_bytes(content)
        name = draw.choice((CHECKSUMS, *names))
        mutate = mutated_bytes if name == "vocab.txt" else mutated_json
        (checkpoint / name).write_bytes(mutate(right[name], draw))
        if name != CHECKSUMS:
            sums = json.loads(right[CHECKSUMS])
            sums[name] = file_facts(checkpoint / name).sha256
            (checkpoint / CHECKSUMS).write_text(json.dumps(sums))

    def read() -> None:
        found = find_checkpoint(place / "run", "latest")
        build_student(training.config, found)
        load_tokenizer(checkpoint)(tiny.SENTENCES[0])

    return Reader(spoil, read)


# The readers by name; the number is their share of the inputs, by their speed.
READERS: dict[str, tuple[Callable[[Path], Reader], float]] = {
    "reference lines": (reference_lines, 1),
    "text and notes": (text_and_notes, 1),
    "data.json": (data_json, 1),
    "shards": (shards, 0.1),
    "LTP configs": (ltp_configs, 1),
    "task definitions": (task_definitions, 1),
    "task files": (task_files, 0.5),
    "student JSONs": (student_jsons, 0.2),
    "training states": (training_states, 0.2),
    "checkpoints' JSON files": (checkpoint_jsons, 0.1),
}
