"""One training run: the models, the batches, the distiller, the optimizer; then the loop of the distiller."""

import shlex
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from transformers import BertForMaskedLM

from pretraining.config import TrainingArguments
from pretraining.corpus.batches import TrainingBatches, make_loader
from pretraining.corpus.files import atomic_write
from pretraining.corpus.masking import WholeWordMasker
from pretraining.distillation.checkpoint import save_checkpoint
from pretraining.distillation.checks import ModelPlan
from pretraining.distillation.distiller import Distiller, StepCallback
from pretraining.distillation.modeling import build_student, half_dtype, load_masked_lm, prepare_models
from pretraining.distillation.optimizer import make_optimizer, make_scheduler
from pretraining.distillation.processes import Run
from pretraining.matches import describe
from pretraining.utils import UserError


def load_models(args: TrainingArguments, plan: ModelPlan, checkpoint: Path | None) -> tuple[BertForMaskedLM, BertForMaskedLM | None]:
    """The student, with the weights of the checkpoint if there is one, and the teacher; both in float32 on the CPU."""
    torch.manual_seed(args.random_seed)
    student = build_student(plan.student, checkpoint or args.student_pretrained_weights, plan.needs_attentions)
    if not args.teacher_name_or_path:
        return student, None
    return student, load_masked_lm(args.teacher_name_or_path, "the teacher", plan.needs_attentions, needs_head=args.kd_weight > 0)


def announce(run: Run, plan: ModelPlan, student: BertForMaskedLM) -> None:
    """Prints the student, what is matched, the directory and the arguments that are not the default; arguments.json keeps all."""
    if run.process.rank != 0:
        return
    args, world_size = run.args, run.process.world_size
    forward = f"samples per forward pass: {args.train_batch_size // run.forward_passes}{'; torch.compile' if run.compiled else ''}"
    print(f"student: {args.student_config}, {student.num_parameters():,} parameters")
    if plan.matches:
        print(f"matches, student<-teacher: {describe(plan.matches)}")
    print(f"device: {run.device}; processes: {world_size}; {forward}")
    print(f"directory: {args.output_dir}")
    print(f"not the default: {' '.join(changed_arguments(args))}", flush=True)
    if args.do_train:
        with atomic_write(Path(args.output_dir) / "arguments.json") as file:
            file.write(args.dump())


def changed_arguments(args: TrainingArguments) -> list[str]:
    """``--name value`` of each argument that has a default and another value, in the order of the fields."""
    words = []
    for field in fields(args):
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        value = getattr(args, field.name)
        if default is not MISSING and value != default:
            values = value if isinstance(value, list) else [str(value)]
            words.append(f"--{field.name} {shlex.join(values)}")
    return words


def train(
    run: Run,
    plan: ModelPlan,
    student: BertForMaskedLM,
    teacher: BertForMaskedLM | None,
    dataset: Any,
    *,
    state: dict[str, Any] | None,
    identity: dict[str, Any],
    step_callback: StepCallback | None = None,
    save_callback: Callable[[Path], None] | None = None,
) -> None:
    """Trains the student to the last step and writes checkpoints.

    Args:
        dataset: from ``shards.load_shards``.
        state: the training state of the checkpoint to resume from, or None.
        identity: of the run (``checkpoint.run_identity``); saved with every checkpoint.

    Raises:
        UserError: as ``Distiller.train``, or out of GPU memory.
    """
    args, device = run.args, run.device
    steps_done, accumulation = state["step"] if state else 0, run.forward_passes
    if steps_done >= args.num_train_steps:
        if run.process.rank == 0:
            print(f"{Path(args.output_dir) / f'gs{steps_done}'}: all {args.num_train_steps} steps are done")
        return
    batches = make_batches(run, dataset)
    loader = make_loader(batches, range(steps_done * accumulation, args.num_train_steps * accumulation), device)
    distiller = make_distiller(run, plan, student, teacher, batches)
    optimizer = make_optimizer(student, distiller.module.projections, args)
    scheduler = make_scheduler(optimizer, args)
    if state:
        distiller.restore(state, optimizer, scheduler)

    def save(step: int, training_state: dict[str, Any]) -> None:
        to_save = {**training_state, "identity": identity}
        directory = save_checkpoint(args.output_dir, student, run.tokenizer, to_save, args.keep_checkpoints)
        print(f"\ncheckpoint: {directory}", flush=True)
        if save_callback is not None:
            save_callback(directory)

    try:
        distiller.train(
            optimizer,
            loader,
            scheduler=scheduler,
            num_steps=args.num_train_steps,
            max_grad_norm=1.0,
            callback=save,
            step_callback=step_callback,
        )
    except torch.OutOfMemoryError:
        message = (
            f"out of GPU memory with {batches.micro_batch_size} samples per forward pass; raise --gradient_accumulation_steps and resume"
        )
        raise UserError(message) from None
    if device.type == "cuda" and run.process.rank == 0:
        print(f"peak GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")


def make_distiller(
    run: Run, plan: ModelPlan, student: BertForMaskedLM, teacher: BertForMaskedLM | None, batches: TrainingBatches
) -> Distiller:
    """Moves the models to the device and hands them to the distiller."""
    args = run.args
    kernels = args.cpu_kernels and not plan.needs_attentions
    prepare_models(student, teacher, device=run.device, half=half_dtype(args), compiled=run.compiled, cpu_kernels=kernels)
    return Distiller(
        args,
        student,
        teacher,
        plan.matches,
        run.device,
        rank=run.process.rank,
        world_size=run.process.world_size,
        forward_passes=run.forward_passes,
        compiled=run.compiled,
        batches=batches,
    )


def make_batches(run: Run, dataset: Any) -> TrainingBatches:
    """The masked batches of this process."""
    args = run.args
    return TrainingBatches(
        dataset,
        WholeWordMasker(run.tokenizer, args.max_seq_length, args.mlm_probability, args.random_seed),
        args.random_seed,
        args.train_batch_size,
        run.forward_passes,
        rank=run.process.rank,
        world_size=run.process.world_size,
    )
