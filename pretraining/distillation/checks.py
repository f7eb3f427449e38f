"""What train.py refuses before time is spent."""

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from transformers import BertConfig

from pretraining.config import TrainingArguments
from pretraining.corpus.files import require_file, require_writable_place
from pretraining.corpus.locks import exclusive
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.distillation.checkpoint import checkpoints, find_checkpoint
from pretraining.distillation.memory import largest_forward_batch
from pretraining.distillation.modeling import half_dtype, read_config, require_model_directory
from pretraining.distillation.processes import Process, Run, gpus_of_srun, started_by_srun
from pretraining.matches import get_matches
from pretraining.utils import UserError


class ModelPlan(NamedTuple):
    """The configs of student and teacher, and what is matched.

    Attributes:
        matches: TextBrewer's ``intermediate_matches``.
    """

    student: BertConfig
    teacher: BertConfig | None
    matches: list[dict]

    @property
    def needs_attentions(self) -> bool:
        """True if the models must return attention probabilities."""
        return any(match["feature"] == "attention" for match in self.matches)


def check_run(args: TrainingArguments, tokenizer: Any) -> tuple[Run, ModelPlan]:
    """All that can be checked of a run without its data and its checkpoints; chooses the device and how it computes."""
    process = Process.from_environment()
    plan = check_models(args, tokenizer)
    device = check_device(args, process)
    compiled = check_compile(args, device, process)
    check_output_dir(args)
    return Run(args, tokenizer, device, process, compiled, forward_passes(args, plan, device)), plan


@contextmanager
def locked_output_dir(run: Run, store: dist.Store | None) -> Iterator[None]:
    """Keeps a second command from training in the same directory; rank 0 holds the lock for all processes, which wait for it."""
    if run.process.rank != 0:
        assert store is not None
        store.wait(["output_dir is locked"])
        yield
        return
    output_dir = run.args.output_dir
    with exclusive(Path(output_dir) / ".lock", f"--output_dir {output_dir}") if run.args.do_train else nullcontext():
        if store is not None:
            store.set("output_dir is locked", "")
        yield


def check_models(args: TrainingArguments, tokenizer: Any) -> ModelPlan:
    """Reads the configs; refuses models that do not fit each other, the mappings, the vocabulary or the length."""
    require_file(args.student_config, "the student's config")
    student = read_config(args.student_config, "the student's config")
    teacher, matches = None, []
    if args.teacher_name_or_path:
        is_only_config = args.check_only and Path(args.teacher_name_or_path).is_file()
        teacher = (read_config if is_only_config else require_model_directory)(args.teacher_name_or_path, "the teacher")
        matches = get_matches(args.matches, student, teacher)
    if not args.output_encoded_layers and any(match["feature"] == "hidden" for match in matches):
        raise UserError("--output_encoded_layers false: the matches need hidden states; drop one of the two")
    _check_vocabularies(args, tokenizer, student, teacher)
    check_length(args, student, teacher)
    return ModelPlan(student, teacher, matches)


def check_length(args: TrainingArguments, student: BertConfig, teacher: BertConfig | None) -> None:
    """Refuses samples that are longer than the models' positions."""
    for config, path in ((student, args.student_config), (teacher, args.teacher_name_or_path)):
        if config and args.max_seq_length > config.max_position_embeddings:
            raise UserError(f"--max_seq_length {args.max_seq_length}: {path} has only {config.max_position_embeddings} positions")


def _check_vocabularies(args: TrainingArguments, tokenizer: Any, student: BertConfig, teacher: BertConfig | None) -> None:
    if student.vocab_size < len(tokenizer):
        raise UserError(f"{args.student_config}: vocab_size is {student.vocab_size}, but the vocabulary has {len(tokenizer)} tokens")
    if teacher and teacher.vocab_size < len(tokenizer):
        raise UserError(f"{args.teacher_name_or_path}: vocab_size is {teacher.vocab_size}, but the vocabulary has {len(tokenizer)} tokens")
    if teacher and args.kd_weight and teacher.vocab_size != student.vocab_size:
        raise UserError(
            f"{args.student_config}: the vocabularies differ: vocab_size is {student.vocab_size}, the teacher's {teacher.vocab_size}"
        )
    for directory in (args.teacher_name_or_path, args.student_pretrained_weights):
        vocabulary = Path(directory or "") / "vocab.txt"
        if directory and vocabulary.is_file() and load_tokenizer(directory).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{vocabulary}: the vocabularies differ: this is not the one the text is tokenised with")


def check_device(args: TrainingArguments, process: Process) -> torch.device:
    """Chooses the device of this process; refuses a precision that it cannot compute in."""
    if not torch.cuda.is_available() or args.no_cuda:
        if args.fp16:
            raise UserError("--fp16 needs a CUDA device; on the CPU use --bf16 or float32")
        return torch.device("cpu")
    if args.bf16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--bf16: {torch.cuda.get_device_name()} has no bfloat16; use --fp16 (precision=fp16 sh distill.sh)")
    visible = torch.cuda.device_count()
    is_only_own = visible == 1 and gpus_of_srun() > process.local_rank
    index = 0 if is_only_own else process.local_rank
    if index >= visible:
        advice = "start as many processes as GPUs" + (", or give srun --gpus-per-task=1" if started_by_srun() else "")
        raise UserError(f"process {process.local_rank} of this machine has no GPU of its own, it sees {visible}; {advice}")
    return torch.device("cuda", index)


def forward_passes(args: TrainingArguments, plan: ModelPlan, device: torch.device) -> int:
    """``gradient_accumulation_steps`` if it is given, else as few as fit the GPU's memory, or on a CPU such of at most 64 samples."""
    if args.gradient_accumulation_steps is not None:
        return args.gradient_accumulation_steps
    if device.type == "cpu":
        sizes = (size for size in range(min(64, args.train_batch_size), 0, -1) if args.train_batch_size % size == 0)
        return args.train_batch_size // next(sizes)
    memory = torch.cuda.get_device_properties(device).total_memory
    size = largest_forward_batch(
        memory,
        plan.student,
        plan.teacher,
        plan.matches,
        args.max_seq_length,
        half_dtype(args),
        args.train_batch_size,
        args.mlm_probability,
        args.hard_label_weight > 0,
    )
    return args.train_batch_size // size


def check_compile(args: TrainingArguments, device: torch.device, process: Process) -> bool:
    """Decides whether torch.compile runs; refuses ``--compile yes`` where its compiler is missing."""
    if args.compile == "no" or (args.compile == "auto" and device.type == "cpu"):
        return False
    missing = missing_for_compile(device)
    if missing and args.compile == "yes":
        raise UserError(f"--compile yes: {missing}; install it or use --compile no")
    if missing and process.rank == 0:
        print(
            f"--compile auto: {missing}; computing without torch.compile, which takes about 1.5 times as long (estimate)", file=sys.stderr
        )
    return not missing


def missing_for_compile(device: torch.device) -> str | None:
    """What torch.compile needs and this machine lacks, or None: on a CPU a C++ compiler, on a GPU triton, which builds a C extension."""
    if device.type == "cpu":
        names = [os.environ.get("CXX", "g++"), "clang++"]
        return None if any(map(shutil.which, names)) else "no C++ compiler (g++) was found"
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not any(map(shutil.which, [os.environ.get("CC", "gcc"), "clang", "cc"])):
        return "no C compiler (gcc) was found"
    if not (Path(sysconfig.get_path("include")) / "Python.h").is_file():
        return f"no Python.h in {sysconfig.get_path('include')} (package python3-dev)"
    return None


def check_output_dir(args: TrainingArguments) -> None:
    """Refuses an output directory that cannot be written to."""
    require_writable_place(args.output_dir, "--output_dir")


def check_resume(args: TrainingArguments) -> Path | None:
    """Finds the checkpoint to resume from, or None; refuses to start a run in a directory that holds one already."""
    output_dir, wanted = Path(args.output_dir), args.resume_from_checkpoint
    checkpoint = find_checkpoint(output_dir, wanted) if wanted else None
    if not (args.do_train or checkpoint or args.student_pretrained_weights):
        raise UserError(f"--resume_from_checkpoint {wanted}: {output_dir} has no checkpoint that --do_eval could take")
    continues_own_run = wanted == "latest" or (checkpoint and checkpoint.resolve().parent == output_dir.resolve())
    if args.do_train and not continues_own_run and (checkpoints(output_dir) or (output_dir / "arguments.json").exists()):
        raise UserError(
            f"--output_dir {output_dir}: already holds a run; resume it with --resume_from_checkpoint latest or choose another directory"
        )
    return checkpoint
