"""Trains a student: by distillation from a teacher, or without a teacher by masked-LM only.

    python train.py --teacher_name_or_path ./pretrained_model_path/RoBERTa --student_config ./distill_configs/MiniRBT-h256.json \\
        --matches L6h256_roberta_hidden_mse --output_dir ./saves/my_run --do_train

Several GPUs: ``torchrun --nproc_per_node=8`` instead of ``python``, one process per GPU. distill.sh holds the published recipes.
"""

import time
from typing import TYPE_CHECKING, Any

from pretraining.config import parse
from pretraining.corpus.files import TextAndRefs, read_training_files
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import run_script, set_torch_variables

if TYPE_CHECKING:
    import torch.distributed as dist

    from pretraining.distillation.checks import ModelPlan
    from pretraining.distillation.processes import Run


def main(argv: list[str] | None = None, step_callback: Any = None, save_callback: Any = None) -> None:
    """Checks arguments, files and models, then runs what they ask for.

    Args:
        step_callback: ``step_callback(step, distiller)`` runs at the start of each step, on every process.
        save_callback: ``save_callback(directory)`` runs on rank 0 after each checkpoint is written.
    """
    args = parse(argv)
    files = read_training_files(args.data_files_json, do_train=args.do_train, do_eval=args.do_eval)
    tokenizer = load_tokenizer(args.tokenizer_directory)

    # torch, BERT's models and TextBrewer take seconds to import; the checks above need none of them.
    set_torch_variables()
    from pretraining.distillation.checks import check_run, locked_output_dir
    from pretraining.distillation.processes import watched

    run, plan = check_run(args, tokenizer)
    if args.check_only:
        return
    with watched(run) as store, locked_output_dir(run, store):
        start(run, plan, files, store, step_callback=step_callback, save_callback=save_callback)


def start(
    run: "Run",
    plan: "ModelPlan",
    files: dict[str, list[TextAndRefs]],
    store: "dist.Store | None",
    *,
    step_callback: Any,
    save_callback: Any,
) -> None:
    """Resumes or builds, trains, evaluates; the arguments are what :func:`main` has checked."""
    from pretraining.corpus.shards import ShardSpec, data_fingerprint, describe_shards, load_shards
    from pretraining.distillation.checkpoint import check_identity, load_state, run_identity
    from pretraining.distillation.checks import check_resume
    from pretraining.distillation.evaluation import evaluate_run
    from pretraining.distillation.processes import require_same_inputs, start_process_group
    from pretraining.distillation.training import announce, load_models, train

    # ---- check what lies on the disk
    args, process = run.args, run.process
    checkpoint = check_resume(args)
    spec = ShardSpec(args.data_cache_dir, args.max_seq_length, run.tokenizer, read_since=time.time() if args.verify_data else 0.0)
    descriptions = {split: describe_shards(files[split], spec) for split in files}
    identity, state = {}, None
    if args.do_train:
        identity = run_identity(args, process.world_size, plan.student, run.tokenizer, data_fingerprint(descriptions["train"]))
    if args.do_train and checkpoint:
        state = load_state(checkpoint)
        check_identity(checkpoint, state["identity"], identity, args.ignore_data_fingerprint)

    # ---- build: the models first, because their weights may not fit and the shards may take hours
    student, teacher = load_models(args, plan, checkpoint)
    building: dict[str, Any] = {"num_workers": args.preprocessing_num_workers, "progress": process.rank == 0}
    datasets = {split: load_shards(files[split], spec, descriptions[split], **building, fill_last_row=split == "train") for split in files}
    start_process_group(run, store)
    require_same_inputs(run, checkpoint, identity)
    announce(run, plan, student)

    # ---- train, evaluate
    if args.do_train:
        callbacks = {"step_callback": step_callback, "save_callback": save_callback}
        train(run, plan, student, teacher, datasets["train"], state=state, identity=identity, **callbacks)
    if args.do_eval:
        evaluate_run(run, student, teacher, datasets["dev"])


if __name__ == "__main__":
    run_script(main)
