"""Checkpoints ``gs<step>/``: written atomically, verified by checksum, refused if they belong to another run."""

import hashlib
import json
import re
import shutil
import sys
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig

from pretraining.config import FREE_TO_CHANGE, TrainingArguments
from pretraining.corpus.files import atomic_directory, disk_full_as_user_error, file_facts, read_json, write_json
from pretraining.corpus.tokenizer import save_tokenizer, tokenizer_sha256
from pretraining.utils import UserError, first_line

STATE_FILE = "training_state.pt"
CHECKSUMS = "checksums.json"
FORMAT = 1  # of the training state; checkpoints from before it was written down have this one, too
STATE_KEYS = {"step", "projections", "optimizer", "scheduler", "scaler", "identity"}


def save_checkpoint(output_dir: str | Path, model: Any, tokenizer: Any, state: dict[str, Any], keep: int) -> Path:
    """Writes ``output_dir/gs<step>/`` and keeps the newest ``keep`` of the checkpoints up to this step (0: all).

    The directory loads with ``BertModel.from_pretrained`` and ``BertTokenizer.from_pretrained``.

    Args:
        state: tensors, numbers, strings and containers of them; ``state["step"]`` names the checkpoint.

    Returns:
        the directory of the checkpoint.
    """
    directory = Path(output_dir) / f"gs{state['step']}"
    with atomic_directory(directory) as partial:
        with disk_full_as_user_error(directory):
            model.save_pretrained(str(partial))
            save_tokenizer(tokenizer, partial)
            torch.save({"format": FORMAT, **state}, partial / STATE_FILE)
        write_checksums(partial)
    if keep:
        found = checkpoints(output_dir)
        for old in found[found.index(directory) + keep :]:  # later ones are damaged, or the run resumed from before them
            shutil.rmtree(old, ignore_errors=True)  # a file that a shared disk still holds is removed next time
    return directory


def write_checksums(directory: Path) -> None:
    """Writes the checksum of every file of a directory, for :func:`damage`."""
    write_json(directory / CHECKSUMS, {entry.name: file_facts(entry).sha256 for entry in sorted(directory.iterdir())})


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, damaged ones included."""
    found = [(int(match[1]), entry) for entry in Path(output_dir).glob("gs*") if (match := re.fullmatch(r"gs(\d+)", entry.name))]
    return [entry for _, entry in sorted(found, reverse=True)]


def damage(directory: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None."""
    try:
        sums = read_json(directory / CHECKSUMS, "the checkpoint's checksums")
    except UserError as error:
        return str(error)
    for name, expected in sums.items():
        path = directory / name
        if path.parent != directory:
            return f"{directory / CHECKSUMS} names {_short(name)}, which is no file of the checkpoint"
        try:
            is_file = path.is_file()
        except OSError:  # a name that is too long
            is_file = False
        if not is_file:
            return f"{path} is missing"
        if file_facts(path).sha256 != expected:
            return f"{path} is truncated or was changed"
    return None


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """Finds the checkpoint that ``--resume_from_checkpoint`` names.

    For "latest": the newest intact checkpoint, or None if the run has none yet. Names damaged checkpoints on stderr.

    Raises:
        UserError: the named checkpoint does not exist or is damaged, or all checkpoints of the run are damaged.
    """
    if wanted != "latest":
        directory = Path(wanted)
        if not directory.is_dir():
            raise UserError(f'--resume_from_checkpoint {wanted}: no such directory (or write "latest")')
        if wrong := damage(directory):
            raise UserError(f"--resume_from_checkpoint {wanted}: {wrong}; choose another checkpoint")
        return directory
    damaged: dict[Path, str] = {}
    for directory in checkpoints(output_dir):
        if wrong := damage(directory):
            damaged[directory] = wrong
            continue
        for later, wrong in damaged.items():
            print(f"warning: {wrong}; taking the checkpoint before {later.name}", file=sys.stderr)
        return directory
    if damaged:
        first = next(iter(damaged.values()))
        raise UserError(f"{output_dir}: all of its {len(damaged)} checkpoints are damaged ({first}); remove the directory to start again")
    return None


def load_state(directory: Path) -> dict[str, Any]:
    """Reads the training state: only tensors and plain values, so that a stranger's file cannot run code.

    Returns:
        what :func:`save_checkpoint` got, and as ``path`` the file; ``training_state.restore_state`` checks what is to be restored.
    """
    path = directory / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: cannot be read as a training state ({first_line(error)})") from None
    if not _is_state(state):
        raise UserError(f"{path}: is no training state of train.py; choose another checkpoint")
    found = state.get("format", 1)
    if found != FORMAT:
        raise UserError(f"{path}: has format {found}, this version reads format {FORMAT}; resume with the version that wrote it")
    return {**state, "path": str(path)}


def _is_state(state: Any) -> bool:
    """True for the keys of a training state with a step, a format and an identity that can be compared and printed."""
    if not isinstance(state, dict) or not STATE_KEYS <= set(state) or not isinstance(state["identity"], dict):
        return False
    if type(state["step"]) is not int or not 0 <= state["step"] < 2**31 or type(state.get("format", FORMAT)) is not int:
        return False
    try:
        return bool(json.dumps(state["identity"]))
    except (TypeError, ValueError, RecursionError):  # a tensor; a container that holds itself; thousands of containers in each other
        return False


def model_sha256(path: str | Path | None) -> str | None:
    """Fingerprint (hex) of the weights and config of a model directory, or of a file; None for None."""
    if path is None:
        return None
    if Path(path).is_file():
        return file_facts(path).sha256
    weights = [file_facts(file).sha256 for file in sorted(Path(path).glob("*")) if file.suffix in (".safetensors", ".bin")]
    config_file = Path(path) / "config.json"
    config = without_version(read_json(config_file, "the config of a model")) if config_file.is_file() else None
    return hashlib.sha256(json.dumps([weights, config], sort_keys=True).encode()).hexdigest()


def without_version(config: dict) -> dict:
    """A model's config without the version of transformers that wrote it."""
    return {key: value for key, value in config.items() if key != "transformers_version"}


def run_identity(args: TrainingArguments, world_size: int, student_config: Any, tokenizer: Any, data_fingerprint: str) -> dict[str, Any]:
    """All that decides what a run computes: files by content, not by path; the split of the global batch is no part of it."""
    identity = {key: value for key, value in asdict(args).items() if key not in FREE_TO_CHANGE}
    return {
        **identity,
        "train_batch_size x processes": args.train_batch_size * world_size,
        **{f"student_config {key}": value for key, value in without_version(student_config.to_diff_dict()).items()},
        "teacher": model_sha256(args.teacher_name_or_path),
        "student_pretrained_weights": model_sha256(args.student_pretrained_weights),
        "tokenizer": tokenizer_sha256(tokenizer),
        "data": data_fingerprint,
    }


def default_identity() -> dict[str, Any]:
    """The value of every argument and of every key of a BERT config that a run does not set."""
    arguments = {
        field.name: field.default if field.default_factory is MISSING else field.default_factory() for field in fields(TrainingArguments)
    }
    return {**arguments, **{f"student_config {key}": value for key, value in BertConfig().to_dict().items()}}


def differences(saved: dict, current: dict) -> dict[str, tuple[Any, Any]]:
    """The keys in which two identities differ, with both values.

    A key that one of them lacks came into the program, or into a release of transformers, between the two. It has its default there.
    An argument that decided something in an earlier version, and that a run may change today, is not compared.
    A key of a config that transformers does not know, and that the student's JSON does not have, decides nothing today.
    """
    defaults = default_identity()
    now_free = {key for key in saved if key in FREE_TO_CHANGE and key not in current}
    saved, current = ({**defaults, **identity} for identity in (saved, current))
    outdated = [key for key in saved if key not in current and key.startswith("student_config ")]
    compared = [key for key in {**current, **saved} if key not in outdated and key not in now_free]
    pairs = {key: (saved.get(key), current.get(key)) for key in compared}
    return {key: (there, here) for key, (there, here) in pairs.items() if there != here}


def check_identity(directory: Path, saved: dict, current: dict, ignore_data: bool) -> None:
    """Refuses to resume from a checkpoint of another run; names what differs."""
    different = differences(saved, current)
    if "data" in different and ignore_data:
        del different["data"]
    if list(different) == ["data"]:
        raise UserError(f"{directory}: was trained on other data; --ignore_data_fingerprint resumes nevertheless")
    if list(different) == ["num_train_steps"] and directory.name == f"gs{saved.get('num_train_steps')}":
        raise UserError(
            f"{directory}: the run has done all of its {saved['num_train_steps']} steps, and its learning rate followed them; to train its "
            f"student further give --student_pretrained_weights {directory}, the steps to add as --num_train_steps, and a new --output_dir"
        )
    if different:
        named = ", ".join(f"{key} ({_short(there)} there, {_short(here)} here)" for key, (there, here) in different.items())
        raise UserError(f"{directory}: belongs to a run with another {named}; give the same arguments or another --output_dir")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 24 else text[1:13] + "…"
