"""Every error a user can cause: status 2, one line that names what is wrong and where, nothing written; and how long each took."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import tiny, workplace
from tests.workplace import command_line, entries, run_here, run_there

REFS, SHARDS, TRAIN, TA, SEGMENTER = workplace.ARGUMENTS
TOOK: list[tuple[float, str]] = []


@pytest.fixture(scope="module", autouse=True)
def times(request):
    """Reports in the end how long the refusals took; the time a script takes to start comes on top."""
    yield
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line(f"\n{len(TOOK)} refusals, seconds each; the slowest:")
        for seconds, name in sorted(TOOK, reverse=True)[:12]:
            reporter.write_line(f"{seconds:8.3f}  {name}")
        by_script: dict[str, list[float]] = {}
        for seconds, name in TOOK:
            by_script.setdefault(name.split(":")[0], []).append(seconds)
        for script, seconds in by_script.items():
            middle = sorted(seconds)[len(seconds) // 2]
            reporter.write_line(f"{script}: {len(seconds)} refusals, median {middle:.3f} s, slowest {max(seconds):.3f} s")


def assert_refused(ended, says: str, name: str) -> None:
    TOOK.append((ended.seconds, name))
    lines = ended.err.split("\n")
    assert ended.status == 2, f"{ended.out}\n{ended.err}"
    assert len(lines) == 2 and lines[1] == "" and lines[0].startswith("error: "), ended.err
    assert "Traceback" not in ended.out
    for part in says.split(" & "):
        assert part in lines[0]


class Case(NamedTuple):
    """``spoil`` is done to a right work directory, ``changes`` to a right command line; ``says``: parts of the error, joined by " & "."""

    name: str
    says: str
    spoil: object = None
    changes: dict = {}
    more: tuple = ()


def write(name: str, content: str | bytes):
    """Something that writes a file of the work directory."""

    def spoil(work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return spoil


def change_line(name: str, number: int, content: str | bytes):
    """Replaces line ``number``, from 1, of a file."""

    def spoil(work: Path) -> None:
        lines = (work / name).read_bytes().split(b"\n")
        lines[number - 1] = content.encode() if isinstance(content, str) else content
        (work / name).write_bytes(b"\n".join(lines))

    return spoil


def change_json(name: str, **values):
    """Sets keys of a JSON object; None takes one out."""

    def spoil(work: Path) -> None:
        changed = {**json.loads((work / name).read_text()), **values}
        (work / name).write_text(json.dumps({key: value for key, value in changed.items() if value is not None}))

    return spoil


def remove(name: str):
    return lambda work: shutil.rmtree(work / name) if (work / name).is_dir() else (work / name).unlink()


def directory_instead_of(name: str):
    def spoil(work: Path) -> None:
        (work / name).unlink(missing_ok=True)  # a place where nothing is yet serves as well
        (work / name).mkdir()

    return spoil


def both(*spoils):
    def spoil(work: Path) -> None:
        for one in spoils:
            one(work)

    return spoil


def data_json(train: list[str], dev: list[str] = ()):
    return lambda work: workplace.write_data_json(work, list(train), list(dev))


def link_to_an_unreadable_file(name: str):
    """A file that root cannot read either: the kernel answers every read of it with an input/output error."""

    def spoil(work: Path) -> None:
        if not Path("/proc/self/mem").exists():
            pytest.skip("no /proc/self/mem here")
        (work / name).unlink()
        (work / name).symlink_to("/proc/self/mem")

    return spoil


def forbid(name: str):
    def spoil(work: Path) -> None:
        (work / name).chmod(0)
        if os.access(work / name, os.R_OK):
            pytest.skip("root reads files whatever their permissions")

    return spoil


# ---------------------------------------------------------------- data.json, read by three scripts

ENTRY = {"train_files": ["a.txt"], "train_ref_files": ["a.refs"]}
DATA_JSON = [
    Case("no such data.json", "nowhere.json: no such file", changes={"data_files_json": "nowhere.json"}),
    Case("data.json is a directory", "data.json: & this is a directory", directory_instead_of("data.json")),
    Case("data.json is no JSON", "data.json:3: & not valid JSON", write("data.json", '{\n"train":\n oops}')),
    Case("data.json is empty", "data.json:1: & not valid JSON", write("data.json", "")),
    Case("data.json with a byte-order mark and no lists", "data.json: & has []", write("data.json", b"\xef\xbb\xbf{}")),
    Case("data.json is not UTF-8", "data.json: & not valid UTF-8", write("data.json", b'{"train": "\xc4\xe3"}')),
    Case("data.json holds NUL bytes", "data.json:1: & not valid JSON", write("data.json", bytes(64))),
    Case("data.json is a list", "data.json: & JSON object", write("data.json", "[]")),
    Case("data.json nested too deep", "data.json: & not valid JSON", write("data.json", "[" * 200_000)),
    Case("data.json with an endless number", "data.json: & not valid JSON", write("data.json", '{"train": ' + "9" * 5000 + "}")),
    Case("data.json has other keys", 'data.json: & "train" & training', write("data.json", json.dumps({"training": ENTRY}))),
    Case("data.json without references", "data.json: & train_ref_files", write("data.json", json.dumps({"train": {"train_files": []}}))),
    Case("data.json with a key too many", 'data.json: & "train"', write("data.json", json.dumps({"train": {**ENTRY, "x": 1}}))),
    Case("data.json: train is a list", 'data.json: & "train"', write("data.json", json.dumps({"train": ["a.txt"]}))),
    Case("data.json: files are no list", 'data.json: & "train_files"', change_json("data.json", train={**ENTRY, "train_files": "a.txt"})),
    Case("data.json: a file is a number", 'data.json: & "train_files"', change_json("data.json", train={**ENTRY, "train_files": [1]})),
    Case("data.json: a file has no name", 'data.json: & "train_files"', change_json("data.json", train={**ENTRY, "train_files": [""]})),
    Case("data.json with an empty list", 'data.json: & "train_files" is an empty list', data_json([])),
    Case("more texts than references", "data.json: & 1 files & 0", change_json("data.json", train={**ENTRY, "train_ref_files": []})),
    Case("a text is missing", "c.txt: no such file", data_json(["a.txt", "c.txt"])),
    Case("a text is a directory", "a.txt: & this is a directory", directory_instead_of("a.txt")),
    Case("a text is a device", "a.txt: & no such file", both(remove("a.txt"), lambda work: os.mkfifo(work / "a.txt"))),
    Case("a text may not be read", "b.txt: cannot be read", forbid("b.txt")),
    Case("a text cannot be read", "b.txt: Input/output error", link_to_an_unreadable_file("b.txt")),
    Case(
        "two train files of one name",
        "data.json: & more/a.txt & a.txt have the same name",
        both(write("more/a.txt", "今天"), data_json(["more/a.txt", "a.txt"])),
    ),
    Case("a dev file of a train file's name", "data.json: & have the same name", data_json(["a.txt"], ["a.txt"])),
    Case(
        "one reference file for two texts",
        "data.json: a.refs is the reference file of two texts",
        change_json("data.json", train={"train_files": ["a.txt", "b.txt"], "train_ref_files": ["a.refs", "a.refs"]}),
    ),
]


def sparse(work: Path) -> None:
    """Fifty million NUL bytes that take no place on the disk; with references, if there are some, of one line."""
    os.truncate(work / "b.txt", 0)
    os.truncate(work / "b.txt", 50 << 20)
    if (work / "b.refs").exists():
        (work / "b.refs").write_text("[]")


# ---------------------------------------------------------------- texts and vocabularies, read by three scripts

TEXTS = [
    Case("a text is not UTF-8", "a.txt:3: not valid UTF-8", change_line("a.txt", 3, "今天天气".encode("gb18030"))),
    Case("the last text is not UTF-8", "dev.txt:2: not valid UTF-8", change_line("dev.txt", 2, b"\xff\xfe")),
    Case("a text holds a NUL byte", "b.txt:2: holds a NUL byte", change_line("b.txt", 2, b"\xe5\x8c\x97\0")),
    Case("a text in UTF-16", "a.txt: is in UTF-16 & iconv", write("a.txt", "\n".join("今天天气好好").encode("utf-16"))),
    Case("a text in UTF-16 without its mark", "a.txt:2: holds a NUL byte", write("a.txt", "\n".join("今天天气好好").encode("utf-16-le"))),
    Case("a text in gzip", "a.txt: is a gzip file & gzip -dk", write("a.txt", gzip.compress("今天天气".encode()))),
    Case("a text of JSON lines", "a.txt: holds JSON objects & prepare_corpus.py --sources a.jsonl --text_key text", write("a.txt", '{"id": 0, "text": "今天天气"}\n' * 6)),
    Case("a line of 50 MB", "b.txt:2: a line of over 16 MiB", change_line("b.txt", 2, b"x" * (50 << 20))),
    Case("a sparse file of 50 MB", "b.txt:1: a line of over 16 MiB", sparse),
]  # fmt: skip


def vocabulary(name: str, change):
    """Spoils a vocabulary wherever it lies."""

    def spoil(work: Path) -> None:
        for folder in ("vocabulary", "teacher"):
            path = work / folder / "vocab.txt"
            path.write_bytes(change(path.read_bytes()))

    return Case(name, "", spoil)


def foreign_tokenizer_json(work: Path) -> None:
    """Of as many tokens as vocab.txt, but others."""
    tokenizer = tiny.write_vocabulary(work / "other", extra=["x"])
    for folder in ("vocabulary", "teacher"):
        tokenizer.save_pretrained(str(work / folder))
        lines = (work / "other" / "vocab.txt").read_text(encoding="utf-8").split("\n")
        lines[-2] = "y"
        (work / folder / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")


VOCABULARIES = [
    vocabulary("a vocabulary without [MASK]", lambda data: data.replace(b"[MASK]\n", b""))._replace(says="vocab.txt: has no [MASK]"),
    vocabulary("an empty vocabulary", lambda data: b"")._replace(says="vocab.txt: has no [PAD]"),
    vocabulary("a vocabulary with CRLF", lambda data: data.replace(b"\n", b"\r\n"))._replace(says="vocab.txt: has carriage returns"),
    vocabulary("a token twice", lambda data: data + b"[UNK]\n")._replace(says="vocab.txt: & '[UNK]' is a duplicate of line 3"),
    vocabulary("a vocabulary in GBK", lambda data: data.decode().encode("gb18030"))._replace(says="vocab.txt:25: not valid UTF-8"),
    Case("no vocab.txt", "vocab.txt: no such file", both(remove("vocabulary/vocab.txt"), remove("teacher/vocab.txt"))),
    Case(
        "vocab.txt is a directory",
        "vocab.txt: & this is a directory",
        both(directory_instead_of("vocabulary/vocab.txt"), directory_instead_of("teacher/vocab.txt")),
    ),
    Case("a tokenizer.json of another vocabulary", "tokenizer.json", foreign_tokenizer_json),
    Case(
        "a tokenizer.json that is none",
        "tokenizer",
        both(write("vocabulary/tokenizer.json", "no JSON"), write("teacher/tokenizer.json", "no JSON")),
    ),
]

# ---------------------------------------------------------------- reference files, read by two scripts

REFERENCES = [
    Case(name, f"a.refs:2: {says}", change_line("a.refs", 2, line))
    for name, line, says in (
        ("a reference line that is no JSON", "2 3", "is not a JSON list"),
        ("a blank reference line", "", "is not a JSON list"),
        ("a reference line that is no list", "7", "is not a JSON list"),
        ("a reference line that is an object", '{"2": 3}', "is not a JSON list"),
        ("a reference line that is null", "null", "is not a JSON list"),
        ("two lists in a line", "[2], [3]", "is not a JSON list"),
        ("a nested list", "[[2]]", "holds something that is not an integer"),
        ("a reference line nested too deep", "[" * 5000, "is not a JSON list"),
        ("NaN", "[2, NaN]", "holds something that is not an integer"),
        ("Infinity", "[Infinity]", "holds something that is not an integer"),
        ("a fraction", "[2, 3.5]", "holds something that is not an integer"),
        ("a whole number written as a fraction", "[2.0]", "holds something that is not an integer"),
        ("a truth value", "[true]", "holds something that is not an integer"),
        ("a word", '["2"]', "holds something that is not an integer"),
        ("a negative position", "[-2]", "position -2 lies outside"),
        ("position 0, that of [CLS]", "[0]", "position 0 lies outside"),
        ("position 1, which continues nothing", "[1]", "position 1 lies outside"),
        ("a position beyond its line", "[2, 300]", "position 300 lies outside"),
        ("a position beyond 64 bits", "[99999999999999999999]", "position 99999999999999999999 lies outside"),
        ("unsorted positions", "[4, 2]", "its positions do not rise"),
        ("a position twice", "[2, 2]", "its positions do not rise"),
        ("a NUL byte in the references", "[2]\0", "holds a NUL byte"),
        ("references that are not UTF-8", b"[\xff]", "not valid UTF-8"),
    )
] + [
    Case(
        "two lines that are lists only together",
        "a.refs:2: is not a JSON list",
        both(change_line("a.refs", 2, "[2], [3"), change_line("a.refs", 3, "4]")),
    ),
    Case("a reference line too few", "a.refs: has 5 lines, its text a.txt 6", lambda work: write("a.refs", "[]\n" * 5)(work)),
    Case("a reference line too many", "dev.refs: has 7 lines, its text dev.txt 6", write("dev.refs", "[]\n" * 7)),
    Case("no reference file", "b.refs: no such file & run_chinese_ref.py", remove("b.refs")),
    Case("no reference file of the last text", "dev.refs: no such file & run_chinese_ref.py", remove("dev.refs")),
    Case("a reference file is a directory", "b.refs: & this is a directory", directory_instead_of("b.refs")),
    Case("a reference file cannot be read", "b.refs: Input/output error", link_to_an_unreadable_file("b.refs")),
    Case("an empty corpus", "a.txt, b.txt: no text", both(*(write(f"{name}{end}", "") for name in "ab" for end in (".txt", ".refs")))),
    Case(
        "a corpus of blank lines",
        "a.txt: no text",
        both(write("a.txt", "\n \n\u3000\n"), write("a.refs", "[]\n[]\n[]\n"), data_json(["a.txt"], ["dev.txt"])),
    ),
    Case("the references' note is no JSON", "a.refs.json:1: & not valid JSON", write("a.refs.json", "oops")),
    Case(
        "a directory of the user's where the shard belongs",
        "shards/a: & shard",
        write("shards/a/precious.txt", "mine"),
    ),
    Case("the cache is a file", "shards: & no directory", write("shards", "mine")),
]


def after_the_scripts(change):
    """References and shards are made by the scripts, then something is changed; the number of lines stays."""

    def spoil(work: Path) -> None:
        for name in ("a", "b", "dev"):
            (work / f"{name}.refs").unlink()
        for script in (REFS, SHARDS):
            workplace.call(script, command_line(script), work)
        change(work)

    return spoil


REFERENCES += [
    Case(
        "a text changed under its references",
        "a.refs: was made from another content of a.txt",
        after_the_scripts(change_line("a.txt", 1, "老师说学校")),
    ),
    Case(
        "references changed under their note",
        "a.refs: is not what run_chinese_ref.py wrote; & remove a.refs.json",
        after_the_scripts(change_line("a.refs", 1, "[]")),
    ),
    Case(
        "references for another vocabulary",
        "a.refs: was made for another vocabulary",
        after_the_scripts(change_json("a.refs.json", tokenizer_sha256="0")),
    ),
]

# ---------------------------------------------------------------- run_chinese_ref.py


def neural(**values) -> Case:
    return {"spoil": change_json("neural/config.json", **values), "changes": {"ltp": "neural"}}


def spoil_neural_weights(change):
    def spoil(work: Path) -> None:
        path = work / "neural" / "pytorch_model.bin"
        torch.save(change(torch.load(path, weights_only=True)), path)

    return {"spoil": spoil, "changes": {"ltp": "neural"}}


MODEL = workplace.neural_config(44)["model"]
LTP = [
    Case("no LTP directory", "--ltp nowhere: no such directory", changes={"ltp": "nowhere"}),
    Case("the LTP directory is a file", "--ltp a.txt: no such directory", changes={"ltp": "a.txt"}),
    Case("an LTP directory that is none", "vocabulary/config.json: no such file", changes={"ltp": "vocabulary"}),
    Case("a BERT directory as LTP directory", "teacher/config.json: & no LTP model", changes={"ltp": "teacher"}),
    Case("the LTP config is no JSON", "ltp/config.json:1: & not valid JSON", write("ltp/config.json", "{oops")),
    Case("the LTP config is a list", "ltp/config.json: & JSON object", write("ltp/config.json", "[1]")),
    Case("a legacy LTP model without segmentation", 'ltp/config.json: & "cws"', write("ltp/config.json", '{"nerual": false, "tasks": {"pos": "p"}}')),
    Case("a legacy LTP model without weights", "ltp/cws_model.bin: no such file", remove("ltp/cws_model.bin")),
    Case("legacy LTP weights that are none", "ltp/cws_model.bin: is no LTP", write("ltp/cws_model.bin", b"\x07" * 4000)),
    Case("truncated legacy LTP weights", "ltp/cws_model.bin: is no LTP", lambda work: os.truncate(work / "ltp/cws_model.bin", 99)),
    Case("a neural LTP model without segmentation", 'neural/config.json: & "cws"', **neural(model={**MODEL, "heads": {}})),
    Case("a neural LTP model whose heads are a list", 'neural/config.json: & "cws"', **neural(model={**MODEL, "heads": ["cws"]})),
    Case("a neural LTP model of another shape", "neural: LTP cannot load", **neural(model={**MODEL, "backbone": {}})),
    Case("a neural LTP model without weights", "neural/pytorch_model.bin: no such file", remove("neural/pytorch_model.bin"), {"ltp": "neural"}),
    Case("neural LTP weights under other names", "neural/pytorch_model.bin: does not fit", **spoil_neural_weights(lambda weights: {f"x{name}": tensor for name, tensor in weights.items()})),
    Case("neural LTP weights of another shape", "neural: LTP cannot load", **spoil_neural_weights(lambda weights: {name: torch.zeros(3) for name in weights})),
    Case("neural LTP weights that are a list", "neural", **spoil_neural_weights(lambda weights: list(weights.values()))),
    Case("truncated neural LTP weights", "neural/pytorch_model.bin: is damaged", lambda work: os.truncate(work / "neural/pytorch_model.bin", 999), {"ltp": "neural"}),
    Case("no BERT directory", "nowhere: no such directory", changes={"bert": "nowhere"}),
    Case("references that this script did not make", "a.refs: was not made by this script"),
    Case("a reference file would overwrite a text", "a.txt: writing this reference file would overwrite", change_json("data.json", train={"train_files": ["a.txt"], "train_ref_files": ["a.txt"]})),
    Case("a reference file's place is a directory", "a.refs: & is a directory", directory_instead_of("a.refs")),
    Case("a reference file below a file", "a.txt/a.refs: & no directory", change_json("data.json", train={"train_files": ["a.txt"], "train_ref_files": ["a.txt/a.refs"]})),
    Case("the note beside a reference file is a directory", "a.refs: & a.refs.json is a directory", lambda work: (work / "a.refs.json").mkdir()),
    Case("an unknown argument", "--batch_size", more=("--batch_size", "3")),
    Case("an abbreviated argument", "--over", more=("--over",)),
    Case("a word too many", "extra", more=("extra",)),
]  # fmt: skip
# ---------------------------------------------------------------- my_datasets.py

SHARD_ARGUMENTS = [
    Case("a length of zero", "--max_seq_length 0", changes={"max_seq_length": 0}),
    Case("a negative length", "--max_seq_length -8", changes={"max_seq_length": -8}),
    Case("a length that holds no word", "--max_seq_length 3", changes={"max_seq_length": 3}),
    Case("a length that is no number", "--max_seq_length long: must be a whole number, 4 or above", changes={"max_seq_length": "long"}),
    Case("no workers", "--preprocessing_num_workers 0", changes={"preprocessing_num_workers": 0}),
    Case("no tokenizer directory", "nowhere: no such directory", changes={"tokenizer": "nowhere"}),
    Case("an unknown argument", "--overwrite", more=("--overwrite",)),
    Case("an abbreviated argument", "--max_seq", changes={"max_seq_length": None}, more=("--max_seq", "32")),
    Case("an argument without its value", "--tokenizer", changes={"tokenizer": None}, more=("--tokenizer",)),
]

# ---------------------------------------------------------------- train.py


def weights(name: str, change):
    """Spoils the tensors of a model directory."""

    def spoil(work: Path) -> None:
        path = work / name / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return spoil


def other_student(work: Path) -> None:
    """First weights of three layers rather than two."""
    vocabulary = len((work / "vocabulary" / "vocab.txt").read_text(encoding="utf-8").splitlines())
    tiny.model(tiny.config(vocabulary, 3, 16, 2), seed=1).save_pretrained(str(work / "first"))
    tiny.model(tiny.config(vocabulary, 2, 8, 2), seed=1).save_pretrained(str(work / "narrow"))


def other_vocabulary(work: Path) -> None:
    lines = (work / "teacher" / "vocab.txt").read_text(encoding="utf-8").split("\n")
    lines[8], lines[9] = lines[9], lines[8]
    (work / "teacher" / "vocab.txt").write_text("\n".join(lines), encoding="utf-8")


def damaged_run(work: Path) -> None:
    for step in (2, 4):
        write(f"run/gs{step}/checksums.json", json.dumps({"model.safetensors": "0" * 64}))(work)


def another_run(work: Path) -> None:
    write("other/gs2/checksums.json", "{}")(work)


HIDDEN = "L2h16_L4h32_hidden_mse"
TRAINING = [
    Case(f"{name} {value}", f"--{name} {value}", changes={name: value})
    for name, values in {
        "max_seq_length": (0, -1, 3),
        "num_train_steps": (0, -5),
        "train_batch_size": (0, -4),
        "gradient_accumulation_steps": (0,),
        "learning_rate": (0.0, -0.1, "nan", "inf"),
        "temperature": (0.0, -1.0, "nan", "inf"),
        "mlm_probability": (0.0, -0.1, 1.5, "nan"),
        "warmup_proportion": (-0.1, 2.0),
        "weight_decay_rate": (-1.0, 2.0),
        "ckpt_steps": (0, -2),
        "keep_checkpoints": (-1,),
        "random_seed": (-1, 1 << 70),
        "preprocessing_num_workers": (0,),
    }.items()
    for value in values
] + [
    Case("a number that is none", "--train_batch_size four: must be a whole number above 0", changes={"train_batch_size": "four"}),
    Case("a truth value that is none", "--do_train & maybe", changes={"do_train": "maybe"}),
    Case("an unknown schedule", "--official_schedule & cosine", changes={"official_schedule": "cosine"}),
    Case("a batch that is not divisible", "--train_batch_size 4 & --gradient_accumulation_steps 3", changes={"gradient_accumulation_steps": 3}),
    Case("an output directory in /proc", "--output_dir /proc/run: cannot be written, /proc", changes={"output_dir": "/proc/run"}),
    Case("both precisions", "--fp16 & --bf16", changes={"fp16": "true", "bf16": "true"}),
    Case("fp16 without CUDA", "--fp16 & CUDA", changes={"fp16": "true"}),
    Case("nothing to do", "--do_train & --do_eval", changes={"do_train": None}),
    Case("no output directory", "--output_dir", changes={"output_dir": None}),
    Case("no student", "--student_config", changes={"student_config": None}),
    Case("an unknown argument", "--adam_epsilon", changes={"adam_epsilon": 1}),
    Case("an abbreviated argument", "--ckpt", changes={"ckpt": 1}),
    Case("matches without a teacher", "--matches & --teacher_name_or_path", changes={"teacher_name_or_path": None}),
    Case("no vocabulary", "--tokenizer", changes={"teacher_name_or_path": None, "matches": None}),
    Case("evaluation of nothing", "--do_eval & --student_pretrained_weights", changes={"do_train": None, "do_eval": "true"}),
    Case("evaluation of a run without checkpoints", "run", changes={"do_train": None, "do_eval": "true", "resume_from_checkpoint": "latest"}),
    Case("evaluation without dev files", 'data.json: & "dev"', data_json(["a.txt"]), {"do_eval": "true"}),
    # ---- matches
    Case("matches unknown", "--matches L6_hiden_mse & nearest & L6_hidden_mse", changes={"matches": "L6_hiden_mse"}),
    Case("matches for other sizes", "--matches L6h256_rbt6_hidden_mse", changes={"matches": "L6h256_rbt6_hidden_mse"}),
    Case("matches for a wider student", "--matches L2h17_L4h32_hidden_mse & 17 & 16", changes={"matches": "L2h17_L4h32_hidden_mse"}),
    Case("matches for a deeper student", "--matches L4h16_L4h32_hidden_mse & student", changes={"matches": "L4h16_L4h32_hidden_mse"}),
    Case("matches for a deeper teacher", "--matches L2h16_L8h32_hidden_mse & teacher", changes={"matches": "L2h16_L8h32_hidden_mse"}),
    Case("matches of another student", "--matches L3h16_L4h32_hidden_mse & the student has 2 layers", changes={"matches": "L3h16_L4h32_hidden_mse"}),
    Case("matches without a layer", "--matches L0h16_L4h32_hidden_mse", changes={"matches": "L0h16_L4h32_hidden_mse"}),
    Case("the second of two matches", "--matches L3_attention_mse", changes={"matches": [HIDDEN, "L3_attention_mse"]}),
    Case("matches without a name", "--matches", changes={"matches": []}),
    Case("hidden matches without hidden states", "--output_encoded_layers", changes={"output_encoded_layers": "false"}),
    # ---- models
    Case("no teacher", "nowhere", changes={"teacher_name_or_path": "nowhere"}),
    Case("no teacher, but a tokenizer", "nowhere", changes={"teacher_name_or_path": "nowhere", "tokenizer": "vocabulary"}),
    Case("the teacher is a file", "student.json", changes={"teacher_name_or_path": "student.json"}),
    Case("a teacher without a config", "teacher/config.json: no such file", remove("teacher/config.json")),
    Case("a teacher whose config is no JSON", "teacher/config.json:1: & not valid JSON", write("teacher/config.json", "x")),
    Case("a teacher that is no BERT", "teacher/config.json: & gpt2", change_json("teacher/config.json", model_type="gpt2")),
    Case("a teacher without weights", "teacher: & no weights", remove("teacher/model.safetensors")),
    Case("a teacher with truncated weights", "teacher: ", lambda work: os.truncate(work / "teacher/model.safetensors", 5000)),
    Case("a teacher with empty weights", "teacher: ", write("teacher/model.safetensors", "")),
    Case("a teacher whose weights are a directory", "teacher: & no weights", directory_instead_of("teacher/model.safetensors")),
    Case("a teacher without a masked-LM head", "teacher: & lack", weights("teacher", lambda tensors: {name: tensor for name, tensor in tensors.items() if "cls." not in name})),
    Case("a teacher whose weights have other shapes", "teacher: ", change_json("teacher/config.json", intermediate_size=48)),
    Case("vocabularies of different size", "student.json: & vocab_size", change_json("student.json", vocab_size=60)),
    Case("a student with too small a vocabulary", "student.json: & vocab_size", change_json("student.json", vocab_size=7)),
    Case("vocabularies of different order", "teacher/vocab.txt: & differ", other_vocabulary, {"tokenizer": "vocabulary"}),
    Case("no student config", "nowhere.json: no such file", changes={"student_config": "nowhere.json"}),
    Case("the student config is a directory", "teacher: & directory", changes={"student_config": "teacher"}),
    Case("the student config is no JSON", "student.json:2: & not valid JSON", write("student.json", '{"hidden_size":\n}')),
    Case("the student config is a list", "student.json: & JSON object", write("student.json", "[]")),
    Case("a student's hidden size not divisible by its heads", "student.json: hidden_size 16 & num_attention_heads 3", change_json("student.json", num_attention_heads=3)),
    Case("a student without a hidden size", "student.json: & hidden_size", change_json("student.json", hidden_size=None)),
    Case("a student of no layers", "student.json: & num_hidden_layers", change_json("student.json", num_hidden_layers=0)),
    Case("a student of half a layer", "student.json: & num_hidden_layers", change_json("student.json", num_hidden_layers=1.5)),
    Case("a student of negative size", "student.json: & intermediate_size", change_json("student.json", intermediate_size=-32)),
    Case("a student with an unknown activation", "student.json: & tanhh", change_json("student.json", hidden_act="tanhh")),
    Case("a student with a mad dropout", "student.json: & dropout", change_json("student.json", hidden_dropout_prob=7)),
    Case("a student with dropout in words", "student.json: & dropout", change_json("student.json", hidden_dropout_prob="much")),
    Case("a student without positions", "student.json: & max_position_embeddings", change_json("student.json", max_position_embeddings=0)),
    Case("a student without token types", "student.json: & type_vocab_size", change_json("student.json", type_vocab_size=0)),
    Case("a length over the student's positions", "--max_seq_length 32: student.json has only 16", change_json("student.json", max_position_embeddings=16)),
    Case("a length over the teacher's positions", "--max_seq_length 65: teacher has only 64", change_json("student.json", max_position_embeddings=512), {"max_seq_length": 65}),
    Case("no first weights", "nowhere: no such file", changes={"student_pretrained_weights": "nowhere"}),
    Case("first weights of other layers", "first: does not fit & layer.2", other_student, {"student_pretrained_weights": "first"}),
    Case("first weights of other shapes", "narrow: & shape", other_student, {"student_pretrained_weights": "narrow"}),
    Case("first weights that are a text", "a.txt: cannot be read as a state dict", changes={"student_pretrained_weights": "a.txt"}),
    Case("first weights that are a list", "list.pth: ", lambda work: torch.save([1, 2], work / "list.pth"), {"student_pretrained_weights": "list.pth"}),
    Case("first weights of other names", "x.pth: does not fit", lambda work: torch.save({"x": torch.zeros(1)}, work / "x.pth"), {"init_checkpoint_S": "x.pth"}),
    Case("a directory without weights as first weights", "vocabulary/config.json: no such file", changes={"student_pretrained_weights": "vocabulary"}),
    # ---- the run's directory
    Case("an output directory that holds another run", "--output_dir run: already holds a run", write("run/arguments.json", "{}")),
    Case("an output directory that holds checkpoints", "--output_dir run: already holds a run", write("run/gs7/config.json", "{}")),
    Case("the output directory is a file", "--output_dir run: ", write("run", "mine")),
    Case("the output directory lies below a file", "--output_dir data.json/run: ", changes={"output_dir": "data.json/run"}),
    Case("resume from nothing", "--resume_from_checkpoint nowhere: no such directory", changes={"resume_from_checkpoint": "nowhere"}),
    Case("resume from another run into a run", "--output_dir run: already holds a run", both(another_run, write("run/arguments.json", "{}")), {"resume_from_checkpoint": "other/gs2"}),
    Case("resume from what is no checkpoint", "--resume_from_checkpoint teacher: & checksums.json", changes={"resume_from_checkpoint": "teacher"}),
    Case("resume from damaged checkpoints", "run: all of its 2 checkpoints are damaged", damaged_run, {"resume_from_checkpoint": "latest"}),
]  # fmt: skip

# ---------------------------------------------------------------- scripts/

ASSISTANT = [
    Case("no teacher", "nowhere: no such directory", changes={"model_name_or_path": "nowhere"}),
    Case("a teacher without weights", "teacher: & no weights", remove("teacher/model.safetensors")),
    Case("a teacher with truncated weights", "teacher: ", lambda work: os.truncate(work / "teacher/model.safetensors", 5000)),
    Case("a teacher without a vocabulary", "teacher/vocab.txt: no such file", remove("teacher/vocab.txt")),
    Case("a layer beyond the teacher's", "--layers 4: teacher has the layers 0 to 3", changes={"layers": ["0", "4"]}),
    Case("a negative layer", "--layers -1", changes={"layers": ["0", "-1"]}),
    Case("a layer that is no number", "--layers & 'last'", changes={"layers": ["last"]}),
    Case("no layers", "--layers", changes={"layers": []}),
    Case("an unknown argument", "--layer_count", more=("--layer_count", "3")),
    Case("an abbreviated argument", "--dump", changes={"dump_checkpoint": None}, more=("--dump", "init")),
    Case("the result's place is a file", "init: ", write("init", "mine")),
    Case("the result would replace the teacher", "teacher: ", changes={"dump_checkpoint": "teacher"}),
    Case("the result would replace a directory of the user's", "init: ", write("init/precious.txt", "mine")),
    Case("the result would replace the work directory", "--dump_checkpoint .: ", changes={"dump_checkpoint": "."}),
]

SEGMENTING = [
    Case("no text to train on", "nowhere.txt: no such file", changes={"train": "nowhere.txt"}),
    Case("the text to train on is a directory", "teacher: & directory", changes={"train": "teacher"}),
    Case("an empty text to train on", "segmented.txt: ", write("segmented.txt", "")),
    Case("a text to train on that is not UTF-8", "segmented.txt:2: not valid UTF-8", change_line("segmented.txt", 2, b"\xff")),
    Case("a text to train on with a NUL byte", "segmented.txt:3: holds a NUL byte", change_line("segmented.txt", 3, b"a\0b")),
    Case("no text to test on", "nowhere.txt: no such file", changes={"dev": "nowhere.txt"}),
    Case("a text to test on that is not UTF-8", "segmented_dev.txt:1: not valid UTF-8", change_line("segmented_dev.txt", 1, b"\xff")),
    Case("no place for the segmenter", "--output_dir", changes={"output_dir": None}),
    Case("the segmenter's place is a file", "segmented.txt: ", changes={"output_dir": "segmented.txt"}),
    Case("an unknown argument", "--test", more=("--test", "3")),
    Case("an abbreviated argument", "--output", changes={"output_dir": None}, more=("--output", "x")),
]

TABLE = [
    pytest.param(script, case, id=f"{script}: {case.name}")
    for script, cases in (
        (REFS, DATA_JSON + TEXTS + VOCABULARIES + LTP),
        (SHARDS, DATA_JSON + TEXTS + VOCABULARIES + REFERENCES + SHARD_ARGUMENTS),
        (TRAIN, DATA_JSON + TEXTS + VOCABULARIES + REFERENCES + TRAINING),
        (TA, VOCABULARIES + ASSISTANT),
        (SEGMENTER, SEGMENTING),
    )
    for case in cases
]


def prepared(case: Case, script: str, work: Path) -> list[str]:
    if script == REFS and case.name != "references that this script did not make":
        for refs in work.glob("*.refs"):
            refs.unlink()
    if case.spoil:
        case.spoil(work)
    changes = dict(case.changes)
    if script == TRAIN and case in TEXTS + VOCABULARIES + REFERENCES:
        changes["do_eval"] = "true"
    if case.name == "fp16 without CUDA":
        changes["no_cuda"] = "true"
    return [*command_line(script, **changes), *case.more]


@pytest.mark.parametrize(("script", "case"), TABLE)
def test_refused(script, case, work, capfd):
    if not (work / script).exists():
        pytest.skip(f"no {script} yet")
    arguments = prepared(case, script, work)
    before = entries(work)
    ended = run_here(script, arguments, work, capfd)
    assert_refused(ended, case.says, f"{script}: {case.name}")
    assert entries(work) == before


# ---------------------------------------------------------------- the real thing

REAL = [
    (REFS, "an LTP directory that is none"),
    (REFS, "legacy LTP weights that are none"),
    (REFS, "a text is not UTF-8"),
    (SHARDS, "a position beyond its line"),
    (SHARDS, "data.json is no JSON"),
    (SHARDS, "an unknown argument"),
    (TRAIN, "a student's hidden size not divisible by its heads"),
    (TRAIN, "a line of 50 MB"),
    (TA, "a layer beyond the teacher's"),
    (SEGMENTER, "a text to train on that is not UTF-8"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("script", "name"), REAL)
def test_refused_in_a_process_of_its_own(script, name, work):
    if not (work / script).exists():
        pytest.skip(f"no {script} yet")
    case = next(param.values[1] for param in TABLE if param.values[0] == script and param.values[1].name == name)
    arguments = prepared(case, script, work)
    before = entries(work)
    assert_refused(run_there([sys.executable, script, *arguments], work), case.says, f"python {script}: {name}")
    assert entries(work) == before


# ---------------------------------------------------------------- distill.sh

NO_ASSISTANT = {"ta_config": "", "ta_layers": "", "ta_matches": ""}
WIDE = {"ta_matches": "L2h64_L4h32_hidden_mse", "student_matches": "L2h16_L2h64_hidden_mse"}
RECIPES = [
    Case("an unknown recipe", "distill.sh: h312: no such recipe & h288", more=("h312",)),
    Case("two recipes", "distill.sh: h288: h256 is given too", more=("h256", "h288")),
    Case("an unknown variable after the recipe", "distill.sh: train_step=4: & train_steps=", more=("h256", "train_step=4")),
    Case("no GPU wanted", "ngpu=0", changes={"ngpu": "0"}),
    Case("GPUs in words", "ngpu=two", changes={"ngpu": "two"}),
    Case("a negative number of machines", "nnodes=-1", changes={"nnodes": "-1"}),
    Case("no steps", "train_steps=0", changes={"train_steps": "0"}),
    Case("half a step", "train_steps=0.5", changes={"train_steps": "0.5"}),
    Case("steps beyond counting", "train_steps=99999999999999999999", changes={"train_steps": "99999999999999999999"}),
    Case("never a checkpoint", "save_steps=0", changes={"save_steps": "0"}),
    Case("an empty batch", "global_batch=0", changes={"global_batch": "0"}),
    Case("a batch that three GPUs cannot share", "global_batch=4 & ngpu=3", changes={"ngpu": "3"}),
    Case("a batch that forwards do not divide", "forward_batch=3", changes={"forward_batch": "3"}),
    Case("a length in words", "length=long", changes={"length": "long"}),
    Case("no workers", "workers=0", changes={"workers": "0"}),
    Case("a machine that is not counted", "node_rank=1 & nnodes=1", changes={"node_rank": "1"}),
    Case("a negative machine", "node_rank=-1", changes={"node_rank": "-1"}),
    Case("an unknown precision", "precision=int8", changes={"precision": "int8"}),
    Case("compile none of its words", "compile=1", changes={"compile": "1"}),
    Case("no such python", "python=no_such_python", changes={"python": "no_such_python"}),
    Case("a port beyond the last", "master_port=65536", changes={"master_port": "65536"}),
    *(
        Case(f"an address that nobody has: {name}", f"distill.sh: master_addr={name}: this machine finds no such address", changes={"ngpu": "2", "master_addr": name})
        for name in ("no-such-machine.invalid", "a..b")
    ),
    Case("a learning rate in words", "lr=fast: must be a number above 0", changes={"lr": "fast"}),
    Case("a mistake in the second stage's matches", "student_matches=L6_hiden_mse & L6_hidden_mse", changes={"student_matches": "L6_hiden_mse"}),
    Case("matches for a recipe without a teacher", "student_matches=L2h16_L2h32_hidden_mse: recipe rbt3", changes=NO_ASSISTANT, more=("rbt3",)),
    # ---- these reach the checks of the commands
    Case("no teacher", "nowhere: no such directory", changes={"teacher": "nowhere"}),
    Case("runs where nothing can be made", "--output_dir /proc/runs/rbt6_kd: cannot be written, /proc", changes={"saves": "/proc/runs"}),
    Case("a layer that the teacher has not", "--layers 9", changes={"ta_layers": "0 9"}),
    Case("fewer layers than the assistant has", "--layers 0: ./assistant.json has 2 layers & ta_layers", changes={"ta_layers": "0"}),
    Case("an assistant wider than the teacher's layers", "assistant.json: hidden_size is 64 & 32", change_json("assistant.json", hidden_size=64), WIDE),
]  # fmt: skip


SLOW = (
    "a layer that the teacher has not",
    "fewer layers than the assistant has",
    "an assistant wider than the teacher's layers",
)  # train.py


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case.name in SLOW)) for case in RECIPES])
def test_distill_sh_refuses(case, work):
    if case.spoil:
        case.spoil(work)
    before = entries(work)
    ended = run_there(["sh", "distill.sh", *case.more], work, **{**workplace.RECIPE, **case.changes})
    assert_refused(ended, case.says, f"distill.sh: {case.name}")
    assert entries(work) == before


# ---------------------------------------------------------------- what must not be refused, and what stays


def test_carriage_returns_before_newlines_change_nothing(work, capfd):
    """Rule 1: a CRLF text gives the references and rows of the same text with LF."""
    results = []
    for name in ("LF", "CRLF"):
        copied = Path(shutil.copytree(work, work.parent / name))
        for refs in copied.glob("*.refs"):
            refs.unlink()
        if name == "CRLF":
            for text in (copied / "a.txt", copied / "b.txt", copied / "dev.txt"):
                text.write_bytes(text.read_bytes().replace(b"\n", b"\r\n"))
        for script in (REFS, SHARDS):
            assert run_here(script, command_line(script), copied, capfd).status == 0
        results.append(
            {str(path.relative_to(copied)): path.read_bytes() for path in (*copied.glob("*.refs"), *copied.glob("*/*/data.arrow"))}
        )
    assert len(results[0]) == 6 and results[0] == results[1]
    (copied / "a.refs").write_bytes((copied / "a.refs").read_bytes().replace(b"\n", b"\r\n"))
    (copied / "a.refs.json").unlink()
    assert run_here(SHARDS, command_line(SHARDS), copied, capfd).status == 0
    assert (copied / "shards/a/data.arrow").read_bytes() == results[0]["shards/a/data.arrow"]


def test_references_that_do_not_fit_leave_the_shards_before_them(work, capfd):
    """They are only found when the line is tokenised; what was built by then is whole and stays."""
    change_line("b.refs", 2, "[2, 300]")(work)
    ended = run_here(SHARDS, command_line(SHARDS), work, capfd)
    assert ended.status == 2 and ended.err.split("\n")[0].startswith("error: b.refs:2: position 300 lies outside")
    assert sorted(path.name for path in (work / "shards").iterdir()) == [".a.lock", ".b.lock", ".lock", "a"]
    assert {path.name for path in (work / "shards/a").iterdir()} == {"data.arrow", "shard.json"}


def test_a_place_made_by_the_script_itself_is_replaced_or_kept(work, capfd):
    """init_checkpoint_TA.py writes over nothing but its own results, and not again what is there."""
    assert run_here(TA, command_line(TA), work, capfd).status == 0
    before = entries(work)
    assert "up to date" in run_here(TA, command_line(TA), work, capfd).out
    assert entries(work) == before
    assert "layers [1]" in run_here(TA, command_line(TA, layers=["1"]), work, capfd).out
    (work / "init" / "model.safetensors").write_bytes(b"damaged")
    assert "layers [1]" in run_here(TA, command_line(TA, layers=["1"]), work, capfd).out


def test_fewer_steps_than_ckpt_steps_give_one_checkpoint(work, capfd):
    """The default of --ckpt_steps is for long runs; a trial run need not set it."""
    assert run_here(TRAIN, command_line(TRAIN, ckpt_steps=5, num_train_steps=2), work, capfd).status == 0
    assert [path.name for path in (work / "run").glob("gs*")] == ["gs2"]
