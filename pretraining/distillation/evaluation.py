"""Masked-LM loss and accuracy of models on held-out text, with masks that never change."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tqdm import tqdm
from transformers import BertForMaskedLM

from pretraining.corpus.batches import masked_batch
from pretraining.corpus.files import atomic_write
from pretraining.corpus.masking import WholeWordMasker
from pretraining.distillation.modeling import load_masked_lm, masked_lm_outputs
from pretraining.distillation.processes import Run
from pretraining.utils import UserError

EVALUATION_SEED = 0  # of the masks; the same for all evaluations, so that they can be compared


def evaluate(
    models: dict[str, BertForMaskedLM],
    dataset: Any,
    masker: WholeWordMasker,
    *,
    batch_size: int,
    device: torch.device,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, dict[str, float]]:
    """Evaluates models on the same masks.

    Returns:
        by model: ``loss`` (mean cross-entropy, nats), ``accuracy`` (0 to 1), ``masked_tokens``.

    Raises:
        UserError: the text is so short that nothing is masked.
    """
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in models}  # loss, hits, tokens
    starts = range(rank * batch_size, len(dataset), world_size * batch_size)
    for start in tqdm(starts, desc="evaluation", unit="batch", disable=rank != 0):
        indices = np.arange(start, min(start + batch_size, len(dataset)))
        batch = masked_batch(dataset, masker, epochs=np.zeros_like(indices), indices=indices)
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        for name, model in models.items():
            sums[name] += loss_hits_tokens(model.eval(), batch)
    results = {}
    for name, total in sums.items():
        if world_size > 1:
            dist.all_reduce(total)
        loss, hits, tokens = total.tolist()
        if not tokens:
            raise UserError("the dev files are so short that no word of theirs may be masked: give --do_eval more text")
        results[name] = {"loss": loss / tokens, "accuracy": hits / tokens, "masked_tokens": int(tokens)}
    return results


@torch.inference_mode()
def loss_hits_tokens(model: BertForMaskedLM, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Summed cross-entropy, right predictions and masked tokens of a batch: (3,) float64 on the CPU."""
    labels = batch["labels"].flatten()
    logits = masked_lm_outputs(model, batch).logits.float()
    loss = F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
    hits = ((logits.argmax(-1) == labels) & (labels >= 0)).sum()
    return torch.stack([loss.double(), hits.double(), (labels >= 0).sum().double()]).cpu()


def evaluate_run(run: Run, student: BertForMaskedLM, teacher: BertForMaskedLM | None, dataset: Any) -> None:
    """Evaluates student and teacher after a run, prints the results and writes them to ``output_dir/eval.json``.

    A teacher without soft labels is not evaluated: it may have no masked-LM head.
    """
    args = run.args
    teacher = teacher if args.kd_weight else None
    if teacher is not None and args.teacher_name_or_path and teacher.dtype != torch.float32:  # training rounded its weights
        teacher = load_masked_lm(args.teacher_name_or_path, "the teacher")
    models = {"student": student} if teacher is None else {"student": student, "teacher": teacher}
    for model in models.values():
        model.to(run.device)
    results = evaluate(
        models,
        dataset,
        WholeWordMasker(run.tokenizer, args.max_seq_length, args.mlm_probability, EVALUATION_SEED),
        batch_size=args.train_batch_size // run.forward_passes,
        device=run.device,
        rank=run.process.rank,
        world_size=run.process.world_size,
    )
    if run.process.rank == 0:
        for name, result in results.items():
            figures = f"masked-LM loss {result['loss']:.4f}, accuracy {result['accuracy']:.2%}"
            print(f"{name}: {figures} on {result['masked_tokens']:,} masked tokens")
        with atomic_write(Path(args.output_dir) / "eval.json") as file:
            json.dump(results, file, indent=1)
