"""Measures the memory of real training steps on the CPU by the process's resident pages: a program for test_memory_trace.py.

    python -m tests.pretraining.distillation.step_memory '[{"student": {...}, "teacher": {...}, "matches": [...], "batch_size": 8, ...}]'

It prints one JSON list: measured and traced peak bytes of each step.
"""

import gc
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM

from pretraining.config import TrainingArguments
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.memory_trace import trace_step
from pretraining.distillation.modeling import build_student, half_dtype, prepare_models
from pretraining.distillation.optimizer import make_optimizer
from pretraining.matches import get_matches

SMALL = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def resident(field: str) -> int:
    """Bytes of this process in memory: now ("VmRSS"), or at most since the last reset ("VmHWM")."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def measured_peak(args: TrainingArguments, student: BertConfig, teacher: BertConfig | None, matches: list[dict], size: int) -> int:
    """Bytes at the peak of one micro-batch and update, above those before the models were built."""
    gc.collect()
    before = resident("VmRSS")
    models = build_student(student, None).train(), BertForMaskedLM(teacher) if teacher else None
    prepare_models(*models, device=torch.device("cpu"), half=half_dtype(args), compiled=False)
    distiller = Distiller(args, *models, matches, torch.device("cpu"))
    optimizer = make_optimizer(distiller.module.student, distiller.module.projections, args)
    for samples in (1, size):  # the first step makes the optimizer's state
        batch = make_batch(args, student.vocab_size, samples)
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        with distiller.float32_products():
            distiller.loss(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(distiller.module.parameters(), 1.0)
        optimizer.step()
    return resident("VmHWM") - before


def make_batch(args: TrainingArguments, vocabulary: int, size: int) -> dict[str, torch.Tensor]:
    length = args.max_seq_length
    masked = round(args.mlm_probability * length)
    return {
        "input_ids": torch.randint(vocabulary, (size, length)),
        "masked_positions": torch.stack([torch.randperm(length)[:masked] for _ in range(size)]),
        "labels": torch.randint(vocabulary, (size, masked)),
        "mean_masked": torch.tensor(float(size * masked)),
    }


def main(cases: list[dict[str, Any]], output_dir: str) -> None:
    torch.set_num_threads(1)
    found = []
    for case in [
        {**cases[0], "student": SMALL, "teacher": SMALL, "matches": ["L2h32_L2h32_hidden_mse"]},
        *cases,
    ]:  # the first loads libraries
        student, teacher = BertConfig(**case["student"]), BertConfig(**case["teacher"])
        matches = get_matches(case["matches"], student, teacher)
        for bf16 in (False, True):
            args = TrainingArguments(student_config="", output_dir=output_dir, max_seq_length=case["length"], bf16=bf16)
            measured = measured_peak(args, student, teacher, matches, case["batch_size"])
            traced = trace_step(args, student, teacher, matches, case["batch_size"], device="cpu").peak
            found.append({"measured": measured, "traced": traced})
    print(json.dumps(found[2:]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), sys.argv[2])
