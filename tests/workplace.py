"""A small pretraining directory as a user has it: code, models, LTP directories, texts, references; and runs of the scripts in it."""

import importlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

from pretraining import utils
from tests import tiny

PRETRAINING = Path(utils.__file__).parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": ""}
ENVIRONMENT = {name: value for name, value in ENVIRONMENT.items() if not name.startswith(("COV_", "PYTEST_"))}
LENGTH = 32

# The command lines that are right; a test changes what it is about.
ARGUMENTS = {
    "run_chinese_ref.py": {"data_files_json": "data.json", "ltp": "ltp", "bert": "vocabulary"},
    "my_datasets.py": {
        "data_files_json": "data.json",
        "data_cache_dir": "shards",
        "tokenizer": "vocabulary",
        "max_seq_length": LENGTH,
        "preprocessing_num_workers": 1,
    },
    "train.py": {
        "teacher_name_or_path": "teacher",
        "student_config": "student.json",
        "matches": "L2h16_L4h32_hidden_mse",
        "data_files_json": "data.json",
        "data_cache_dir": "shards",
        "max_seq_length": LENGTH,
        "do_train": "true",
        "num_train_steps": 4,
        "ckpt_steps": 2,
        "train_batch_size": 4,
        "preprocessing_num_workers": 1,
        "no_cuda": "true",
        "output_dir": "run",
    },
    "scripts/init_checkpoint_TA.py": {"model_name_or_path": "teacher", "dump_checkpoint": "init", "layers": ["0", "2"]},
    "scripts/train_segmenter.py": {"train": "segmented.txt", "dev": "segmented_dev.txt", "output_dir": "new_ltp"},
}

# distill.sh on the directory's models, as its variables set it: 4 layers of size 32 -> 2 of 32 -> 2 of 16.
RECIPE = {
    "teacher": "./teacher",
    "json_files": "./data.json",
    "data_cache_dir": "./shards",
    "saves": "./saves",
    "ngpu": "1",
    "train_steps": "4",
    "save_steps": "2",
    "global_batch": "4",
    "forward_batch": "2",
    "length": str(LENGTH),
    "precision": "fp32",
    "workers": "1",
    "python": sys.executable,
    "ta_config": "./assistant.json",
    "ta_layers": "0 2",
    "ta_matches": "L2h32_L4h32_hidden_mse",
    "student_config": "./student.json",
    "student_matches": "L2h16_L2h32_hidden_mse",
}


def build(directory: Path) -> None:
    """Writes the directory; every path in it is relative, so a copy works as well."""
    shutil.copytree(PRETRAINING, directory, ignore=lambda folder, names: [name for name in names if not _is_code(Path(folder, name))])
    tokenizer = tiny.write_vocabulary(directory / "vocabulary")
    for name, seed in (("a", 1), ("b", 2), ("dev", 3)):
        tiny.write_text(directory / f"{name}.txt", tiny.paragraphs(6, seed), tokenizer)
    write_data_json(directory, ["a.txt", "b.txt"], ["dev.txt"])
    (directory / "student.json").write_text(json.dumps(tiny.config(len(tokenizer), 2, 16, 2)))
    (directory / "assistant.json").write_text(json.dumps(tiny.config(len(tokenizer), 2, 32, 4)))
    tiny.model(tiny.config(len(tokenizer), 4, 32, 4), seed=3).save_pretrained(str(directory / "teacher"))
    tiny.write_vocabulary(directory / "teacher")
    segmented = [" ".join(tiny.WORDS[first::3]) for first in range(len(tiny.WORDS))]
    for name in ("segmented.txt", "segmented_dev.txt"):
        (directory / name).write_text("".join(f"{line}\n" for line in segmented), encoding="utf-8")
    write_legacy_ltp(directory / "ltp", directory / "segmented.txt")
    write_neural_ltp(directory / "neural", directory / "vocabulary" / "vocab.txt")


def _is_code(path: Path) -> bool:
    return path.is_dir() and path.name in ("scripts", "distill_configs") or path.suffix in (".py", ".sh", ".json") and path.is_file()


def write_data_json(directory: Path, train: list[str], dev: list[str]) -> None:
    data = {
        split: {f"{split}_files": texts, f"{split}_ref_files": [text.replace(".txt", ".refs") for text in texts]}
        for split, texts in (("train", train), ("dev", dev))
    }
    (directory / "data.json").write_text(json.dumps(data, indent=1))


def write_legacy_ltp(directory: Path, segmented: Path) -> None:
    from ltp_extension.perceptron import CWSTrainer

    trainer = CWSTrainer()
    trainer.epoch, trainer.shuffle, trainer.verbose = 1, False, False
    trainer.load_train_data(str(segmented))
    directory.mkdir()
    trainer.train().save(str(directory / "cws_model.bin"))
    (directory / "config.json").write_text(json.dumps({"nerual": False, "tasks": {"cws": "cws_model.bin"}}))


def neural_config(vocabulary: int) -> dict:
    size = {"embedding_size": 8, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    head = {"_ltp_target_": "ltp_core.models.components.token.MLPTokenClassifier", "input_size": 8, "num_labels": 2, "dropout": 0.1}
    model = {
        "_ltp_target_": "ltp_core.models.ltp_model.LTPModule",
        "backbone": {
            "_ltp_target_": "ltp_core.models.utils.transformer.load_transformers",
            "config": {"model_type": "electra", "vocab_size": vocabulary, "max_position_embeddings": 512, **size},
        },
        "processor": {"cws": {"_ltp_target_": "ltp_core.models.processor.TokenOnly"}},
        "heads": {"cws": head},
    }
    return {"nerual": True, "model": model, "vocabs": {"cws": ["I-W", "B-W"]}}


def write_neural_ltp(directory: Path, vocabulary: Path) -> None:
    import torch
    from ltp.nerual import LTP

    directory.mkdir()
    shutil.copy(vocabulary, directory / "vocab.txt")
    config = neural_config(len(vocabulary.read_text(encoding="utf-8").splitlines()))
    (directory / "config.json").write_text(json.dumps(config))
    torch.save(LTP(config=config).model.state_dict(), directory / "pytorch_model.bin")


# ---------------------------------------------------------------- running


def command_line(script: str, **changes) -> list[str]:
    """The arguments of a script; ``changes`` replace some or, where they are None, take them out."""
    line = []
    for name, value in {**ARGUMENTS[script], **changes}.items():
        if value is not None:
            line += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    return line


class Ended(NamedTuple):
    """How a script ended: exit status, what it printed, what is left of stderr on a terminal, and how many seconds it took."""

    status: int
    out: str
    err: str
    seconds: float


def on_a_terminal(text: str) -> str:
    """What a terminal shows in the end: a carriage return begins the line anew, so that a cleared progress bar is gone."""
    return "\n".join(line.rsplit("\r", 1)[-1].rstrip() for line in text.split("\n"))


def run_here(script: str, arguments: list[str], directory: Path, capfd) -> Ended:
    """Runs a script as ``python script`` does, but in this process: what it imports is paid for once."""
    module_of(script)
    capfd.readouterr()
    begin, status = time.perf_counter(), 0
    try:
        call(script, arguments, directory)
    except SystemExit as end:
        status = end.code
    seconds = time.perf_counter() - begin
    out, err = capfd.readouterr()
    return Ended(status, out, on_a_terminal(err), seconds)


def call(script: str, arguments: list[str], directory: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, warnings.catch_warnings():
        monkeypatch.chdir(directory)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        warnings.showwarning = lambda *warning: print(warnings.formatwarning(*warning[:4]), file=sys.stderr)  # pytest catches them else
        warnings.simplefilter("always", UserWarning)
        utils.run_script(module_of(script).main)


def module_of(script: str) -> ModuleType:
    """``scripts/report.py`` is ``pretraining.scripts.report``, ``finetuning/run.py`` is ``finetuning.run``."""
    name = script.removesuffix(".py").replace("/", ".")
    return importlib.import_module(name if name.startswith("finetuning.") else f"pretraining.{name}")


def start(command: list[str], directory: Path, **environment) -> subprocess.Popen:
    """Starts a command in a process group of its own."""
    return subprocess.Popen(
        command,
        cwd=directory,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def free_port() -> int:
    """A TCP port of this machine that nobody uses."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_there(command: list[str], directory: Path, **environment) -> Ended:
    """Runs a command as a user does, in a process of its own."""
    begin = time.perf_counter()
    process = start(command, directory, **environment)
    out, err = (output.decode() for output in process.communicate(timeout=600))
    return Ended(process.returncode, out, on_a_terminal(err), time.perf_counter() - begin)


def entries(directory: Path) -> dict[str, tuple]:
    """Everything below a directory: folders too, and of the files size, time of change and content.

    Left out are the files of locks, which stay for good, and folders that hold nothing else.
    """
    found = {}
    for path in sorted(directory.rglob("*")):
        files = [inner for inner in path.rglob("*") if not inner.is_dir()]
        if tiny.is_lock(path) or path.is_dir() and files and all(map(tiny.is_lock, files)):
            continue
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() and status.st_size < 1 << 20 else status.st_size
        found[str(path.relative_to(directory))] = (status.st_mode, *(() if path.is_dir() else (status.st_mtime_ns, content)))
    return found
