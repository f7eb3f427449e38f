"""The stock tools the benchmarks compare with: TextBrewer's own training step, and whole word masking in plain Python."""

import random

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig


def stock_distiller(student, teacher, intermediate_matches: list[dict], temperature: float, device, output_dir: str) -> GeneralDistiller:
    """TextBrewer's GeneralDistiller over plain BertForMaskedLM models; logits are compared where there are labels."""
    return GeneralDistiller(
        TrainingConfig(output_dir=output_dir, device=device),
        DistillationConfig(temperature=temperature, intermediate_matches=intermediate_matches),
        teacher.eval().requires_grad_(False),
        student,
        _adaptor,
        _adaptor,
    )


def _adaptor(batch: dict, outputs) -> dict:
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "logits_mask": batch["labels"] >= 0}


def stock_batch(batch: dict) -> dict:
    """This project's batch as the stock collator would give it: a label, or -100, at every position."""
    labels = torch.full_like(batch["input_ids"], -100)
    row, place = torch.nonzero(batch["labels"] >= 0, as_tuple=True)
    labels[row, batch["masked_positions"][row, place]] = batch["labels"][row, place]
    return {"input_ids": batch["input_ids"], "labels": labels}
