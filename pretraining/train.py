"""Trains a student: by distillation from a teacher, or without a teacher by masked-LM alone.

    python train.py --teacher_name_or_path ./pretrained_model_path/RoBERTa --student_config ./distill_configs/MiniRBT-h256.json \
        --matches L6h256_roberta_hidden_mse --output_dir ./saves/my_run --do_train

One process a GPU: put ``torchrun --nproc_per_node=8`` in the place of ``python``. distill.sh holds the published recipes.
"""

import json
import os
from pathlib import Path

import config
import numpy as np
from tqdm import tqdm
from utils import UserError, load_tokenizer, read_data_json, require_file, require_writable_place, run_script, whole_file


def main() -> None:
    args = config.parse()
    rank, local_rank, processes = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
    )

    # ---- everything that can be checked is checked before data or models cost time
    splits = read_data_json(args.data_files_json)
    if args.do_eval and not splits["dev"]:
        raise UserError(f'{args.data_files_json}: --do_eval needs text files under "dev"')
    used = [file for split, wanted in (("train", args.do_train), ("dev", args.do_eval)) if wanted for file in splits[split]]
    for file in used:
        require_file(file.refs, f"the reference file of {file.text}; make it with run_chinese_ref.py")
    tokenizer = load_tokenizer(args.tokenizer or args.teacher_name_or_path or args.student_pretrained_weights)

    import torch
    import torch.distributed as dist
    from checkpoint import check_identity, checkpoints, find_checkpoint, load_state, run_identity, save_checkpoint
    from masking import WholeWordMasker
    from matches import get_matches
    from modeling import build_student, load_masked_lm, read_config, require_model_directory
    from my_datasets import TrainingBatches, data_fingerprint, describe_shards, load_shards
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    require_file(args.student_config, "the student's config")
    student_config = read_config(args.student_config, "the student's config")
    teacher_config, intermediate_matches = None, []
    if args.teacher_name_or_path:
        read_teacher = read_config if args.check_only and Path(args.teacher_name_or_path).is_file() else require_model_directory
        teacher_config = read_teacher(args.teacher_name_or_path, "the teacher")
        intermediate_matches = get_matches(args.matches, student_config, teacher_config)
    check_models(args, tokenizer, student_config, teacher_config, intermediate_matches)
    cuda = torch.cuda.is_available() and not args.no_cuda
    if args.fp16 and not cuda:
        raise UserError("--fp16 needs a CUDA device; on the CPU use --bf16 or float32")
    if args.bf16 and cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(f"--bf16: {torch.cuda.get_device_name()} has no bfloat16; use --fp16 (precision=fp16 sh distill.sh)")
    if cuda and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"process {local_rank} has no GPU of its own, {torch.cuda.device_count()} are visible; start as many processes as GPUs"
        )
    output_dir = Path(args.output_dir)
    require_writable_place(output_dir, "--output_dir")
    if args.check_only:
        return
    resumed_from = find_checkpoint(output_dir, args.resume_from_checkpoint) if args.resume_from_checkpoint else None
    if not (args.do_train or resumed_from or args.student_pretrained_weights):
        raise UserError(f"--resume_from_checkpoint {args.resume_from_checkpoint}: {output_dir} has no checkpoint that --do_eval could take")
    goes_on = args.resume_from_checkpoint == "latest" or (resumed_from and resumed_from.resolve().parent == output_dir.resolve())
    if args.do_train and not goes_on and (checkpoints(output_dir) or (output_dir / "arguments.json").exists()):
        raise UserError(
            f"--output_dir {output_dir}: already holds a run; go on with --resume_from_checkpoint latest or choose another directory"
        )

    placed = (args.data_cache_dir, args.max_seq_length, tokenizer)
    train_shards = describe_shards(splits["train"], *placed) if args.do_train else None
    dev_shards = describe_shards(splits["dev"], *placed) if args.do_eval else None

    # ---- is it the same run?
    identity = run_identity(args, processes, student_config, tokenizer, data_fingerprint(train_shards)) if args.do_train else None
    state = load_state(resumed_from) if resumed_from and args.do_train else None
    if state:
        check_identity(resumed_from, state["identity"], identity, args.ignore_data_fingerprint)
    steps_done = state["step"] if state else 0

    # ---- models; before the shards, which may take hours: their weights may not fit
    torch.manual_seed(args.random_seed)
    attentions = any(match["feature"] == "attention" for match in intermediate_matches)
    student = build_student(student_config, str(resumed_from) if resumed_from else args.student_pretrained_weights, attentions)
    teacher = load_masked_lm(args.teacher_name_or_path, "the teacher", attentions) if teacher_config else None

    # ---- data
    building = (*placed, args.preprocessing_num_workers, rank == 0)
    train_dataset = load_shards(splits["train"], *building, train_shards)[0] if args.do_train else None
    dev_dataset = load_shards(splits["dev"], *building, dev_shards)[0] if args.do_eval else None

    # ---- processes and devices
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if processes > 1:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        check_same_run(resumed_from.name if resumed_from else None, identity)

    student.to(device)
    if teacher:
        teacher.to(device)
    if rank == 0:
        arguments = args.dump()
        print(arguments, end="")
        print(f"student: {student.num_parameters():,} parameters; device: {device}; processes: {processes}")
        if args.do_train:
            with whole_file(output_dir / "arguments.json") as file:
                file.write(arguments)

    # ---- training
    masker = WholeWordMasker(tokenizer, args.max_seq_length, args.mlm_probability, args.random_seed)
    if steps_done >= args.num_train_steps and args.do_train:
        if rank == 0:
            print(f"{resumed_from}: all {args.num_train_steps} steps are done")
    elif args.do_train:
        from distiller import Distiller, leave_signals_to_the_parent, parameter_groups
        from torch.utils.data import DataLoader
        from transformers import get_constant_schedule_with_warmup, get_linear_schedule_with_warmup

        batches = TrainingBatches(
            train_dataset, masker, args.random_seed, args.train_batch_size, args.gradient_accumulation_steps, rank, processes
        )
        distiller = Distiller(args, student, teacher, intermediate_matches, device, rank, processes, batches, state)
        due = range(steps_done * args.gradient_accumulation_steps, args.num_train_steps * args.gradient_accumulation_steps)
        # A step takes all its micro-batches before it begins, so a step's worth must be ready while the one before is computed.
        ahead = {"num_workers": 2, "pin_memory": True, "prefetch_factor": max(8, args.gradient_accumulation_steps)} if cuda else {}
        loader = DataLoader(batches, batch_size=None, sampler=due, worker_init_fn=leave_signals_to_the_parent, **ahead)
        optimizer = torch.optim.AdamW(parameter_groups(student, args.weight_decay_rate), lr=args.learning_rate, eps=1e-6, fused=True)
        warmup = {"num_warmup_steps": int(args.warmup_proportion * args.num_train_steps)}
        linear = args.official_schedule == "linear"

        def save(step: int, training_state: dict) -> None:
            directory = save_checkpoint(output_dir, student, tokenizer, {**training_state, "identity": identity}, args.keep_checkpoints)
            print(f"\ncheckpoint: {directory}", flush=True)

        try:
            distiller.train(
                optimizer,
                loader,
                num_steps=args.num_train_steps,
                max_grad_norm=1.0,
                scheduler_class=get_linear_schedule_with_warmup if linear else get_constant_schedule_with_warmup,
                scheduler_args={**warmup, "num_training_steps": args.num_train_steps} if linear else warmup,
                callback=save,
            )
        except torch.OutOfMemoryError:
            raise UserError(
                f"out of GPU memory with {batches.micro_batch_size} samples a forward; raise --gradient_accumulation_steps and resume"
            ) from None
        if cuda and rank == 0:
            print(f"peak GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")

    # ---- evaluation
    if args.do_eval:
        if teacher and (args.bf16 or args.fp16) and args.do_train:  # training may have rounded its weights
            teacher = load_masked_lm(args.teacher_name_or_path, "the teacher").to(device)
        models = {"student": student, **({"teacher": teacher} if teacher else {})}
        fixed = WholeWordMasker(tokenizer, args.max_seq_length, args.mlm_probability, seed=0)
        size = args.train_batch_size // args.gradient_accumulation_steps
        results = evaluate(models, dev_dataset, fixed, size, device, rank, processes)
        if rank == 0:
            for name, result in results.items():
                print(
                    f"{name}: masked-LM loss {result['loss']:.4f}, accuracy {result['accuracy']:.2%} on {result['masked_tokens']:,} masked tokens"
                )
            with whole_file(output_dir / "eval.json") as file:
                json.dump(results, file, indent=1)
    if processes > 1:
        dist.destroy_process_group()


def check_same_run(resumed_from: str | None, identity: dict | None) -> None:
    """Refuses processes that would not do the same: each machine must see the same checkpoints, data and models."""
    import torch.distributed as dist

    others = [None] * dist.get_world_size()
    dist.all_gather_object(others, json.dumps([resumed_from, identity], sort_keys=True))
    if len(set(others)) > 1:
        raise UserError(
            "the machines see different checkpoints, data or models; put output_dir and the data on a disk that all of them share"
        )


def check_models(args, tokenizer, student_config, teacher_config, intermediate_matches: list[dict]) -> None:
    """Refuses models that do not go together, or not with the vocabulary or the length."""
    if student_config.vocab_size < len(tokenizer):
        raise UserError(f"{args.student_config}: vocab_size is {student_config.vocab_size}, but the vocabulary has {len(tokenizer)} tokens")
    if teacher_config and teacher_config.vocab_size != student_config.vocab_size:
        raise UserError(
            f"{args.student_config}: the vocabularies differ: vocab_size is {student_config.vocab_size}, the teacher's {teacher_config.vocab_size}"
        )
    for directory in (args.teacher_name_or_path, args.student_pretrained_weights):
        vocabulary = Path(directory or "") / "vocab.txt"
        if directory and vocabulary.is_file() and load_tokenizer(directory).get_vocab() != tokenizer.get_vocab():
            raise UserError(f"{vocabulary}: the vocabularies differ: this is not the one the text is tokenised with")
    for config_, path in ((student_config, args.student_config), (teacher_config, args.teacher_name_or_path)):
        if config_ and args.max_seq_length > config_.max_position_embeddings:
            raise UserError(f"--max_seq_length {args.max_seq_length}: {path} has only {config_.max_position_embeddings} positions")
    if not args.output_encoded_layers and any(match["feature"] == "hidden" for match in intermediate_matches):
        raise UserError("--output_encoded_layers false: the matches need hidden states; drop one of the two")


def evaluate(models: dict, dataset, masker, batch_size: int, device, rank: int, processes: int) -> dict[str, dict[str, float]]:
    """Masked-LM loss (mean cross-entropy, nats) and accuracy of each model on the same masks."""
    import torch
    import torch.distributed as dist
    from modeling import masked_lm_outputs
    from my_datasets import masked_batch

    sums = {name: torch.zeros(3, dtype=torch.float64) for name in models}  # loss, hits, tokens
    starts = range(rank * batch_size, len(dataset), processes * batch_size)
    for start in tqdm(starts, desc="evaluation", unit="batch", disable=rank != 0):
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        batch = {name: tensor.to(device) for name, tensor in masked_batch(dataset, masker, np.zeros_like(indices), indices).items()}
        labels = batch["labels"].flatten()
        for name, model in models.items():
            with torch.inference_mode():
                logits = masked_lm_outputs(model.eval(), batch).logits.float()
                loss = torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
                hits = ((logits.argmax(-1) == labels) & (labels >= 0)).sum()
            sums[name] += torch.stack([loss.double(), hits.double(), (labels >= 0).sum().double()]).cpu()
    for total in sums.values():
        if processes > 1:
            dist.all_reduce(total)
        if not total[2]:
            raise UserError("the dev files are so short that no word of theirs may be masked: give --do_eval more text")
    return {
        name: {"loss": loss / tokens, "accuracy": hits / tokens, "masked_tokens": int(tokens)}
        for name, (loss, hits, tokens) in ((name, total.tolist()) for name, total in sums.items())
    }


if __name__ == "__main__":
    run_script(main)
