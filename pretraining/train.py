"""Trains a student: by distillation from a teacher, or without a teacher by masked-LM alone.

    python train.py --teacher_name_or_path ./pretrained_model_path/RoBERTa --student_config ./distill_configs/MiniRBT-h256.json \
        --matches L6h256_roberta_hidden_mse --output_dir ./saves/my_run --do_train

Several GPUs: ``torchrun --nproc_per_node=8`` instead of ``python``, one process a GPU. distill.sh holds the published recipes.
"""

import os
from typing import Any

from pretraining.config import parse
from pretraining.corpus.files import read_training_files
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import run_script


def main(argv: list[str] | None = None, step_callback: Any = None, save_callback: Any = None) -> None:
    """Parses, checks, builds, trains, evaluates.

    Args:
        step_callback: ``step_callback(step, distiller)`` runs at the start of each step, on every process.
        save_callback: ``save_callback(directory)`` runs on rank 0 after each checkpoint is written.
    """
    args = parse(argv)
    files = read_training_files(args.data_files_json, do_train=args.do_train, do_eval=args.do_eval)
    tokenizer = load_tokenizer(args.vocabulary)

    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else twenty lines of C++ frames when a process is lost
    # torch, BERT's models and TextBrewer take seconds to import; the checks above need none of them.
    from pretraining.corpus.shards import ShardSpec, data_fingerprint, describe_shards, load_shards
    from pretraining.distillation import checks
    from pretraining.distillation.checkpoint import check_identity, load_state, run_identity
    from pretraining.distillation.evaluation import evaluate_run
    from pretraining.distillation.processes import Process, Run, require_same_inputs, start_process_group, watched
    from pretraining.distillation.training import announce, load_models, train

    # ---- check
    process = Process.from_environment()
    plan = checks.check_models(args, tokenizer)
    device = checks.check_device(args, process)
    checks.check_output_dir(args)
    if args.check_only:
        return
    run = Run(args, tokenizer, device, process)
    with watched(run) as store:
        checkpoint = checks.check_resume(args)
        spec = ShardSpec(args.data_cache_dir, args.max_seq_length, tokenizer)
        descriptions = {split: describe_shards(files[split], spec) for split in files}
        identity, state = {}, None
        if args.do_train:
            identity = run_identity(args, process.world_size, plan.student, tokenizer, data_fingerprint(descriptions["train"]))
        if args.do_train and checkpoint:
            state = load_state(checkpoint)
            check_identity(checkpoint, state["identity"], identity, args.ignore_data_fingerprint)

        # ---- build: the models first, because their weights may not fit and the shards may take hours
        student, teacher = load_models(args, plan, checkpoint)
        datasets = {
            split: load_shards(files[split], spec, descriptions[split], args.preprocessing_num_workers, progress=process.rank == 0)
            for split in files
        }
        start_process_group(run, store)
        require_same_inputs(run, checkpoint, identity)
        announce(run, student)

        # ---- train, evaluate
        if args.do_train:
            callbacks = {"step_callback": step_callback, "save_callback": save_callback}
            train(run, plan, student, teacher, datasets["train"], state=state, identity=identity, **callbacks)
        if args.do_eval:
            evaluate_run(run, student, teacher, datasets["dev"])


if __name__ == "__main__":
    run_script(main)
