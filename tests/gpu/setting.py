"""The real classes of a distillation, with random weights and batches, on any device. All that the cases need to know of them is here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import BertConfig, BertForMaskedLM

from pretraining import matches
from pretraining.config import TrainingArguments
from pretraining.distillation.distiller import Distiller
from pretraining.distillation.modeling import build_student, half_dtype, prepare_models, read_config
from pretraining.distillation.optimizer import make_optimizer, make_scheduler

PRETRAINING = Path(matches.__file__).parent
VOCABULARY, LENGTH, MASKED = 512, 64, 10


class Setting(NamedTuple):
    """A student, its teacher and what is matched. Without a teacher the student is trained by masked-LM."""

    student: BertConfig
    teacher: BertConfig | None
    matches: list[dict]


def config(layers: int, hidden: int, heads: int) -> BertConfig:
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "max_position_embeddings": LENGTH}
    return BertConfig(vocab_size=VOCABULARY, num_hidden_layers=layers, num_attention_heads=heads, **sizes)


def published(student: str, teacher: str, name: str) -> Setting:
    """A published student under a published teacher, by their files in distill_configs; RoBERTa is RBT6 with twelve layers."""
    configs = [
        read_config(PRETRAINING / f"distill_configs/{file}.json", "a config")
        for file in (student, teacher.replace("RoBERTa", "distill_rbt6"))
    ]
    if teacher == "RoBERTa":
        configs[1].num_hidden_layers = 12
    for each in configs:
        each.vocab_size = VOCABULARY
    return Setting(*configs, matches.get_matches([name], *configs))


def of_mapping(name: str) -> Setting:
    """Models that the mapping fits, of its own sizes."""
    entries = matches.matches[name]
    sizes = next((entry["proj"][1:] for entry in entries if "proj" in entry), (768, 768))
    last = [
        max(max(entry[key], default=0) if isinstance(entry[key], list) else entry[key] for entry in entries)
        for key in ("layer_S", "layer_T")
    ]
    layers = [number + (entries[0]["feature"] != "hidden") for number in last]
    configs = [config(count, size, 12 if size % 12 == 0 else 8) for count, size in zip(layers, sizes)]
    return Setting(*configs, matches.get_matches([name], *configs))


def of_kind(feature: str, loss: str, projection: bool, sizes: tuple[int, int] = (32, 48)) -> Setting:
    """Two models of one layer, which is matched; without a projection both have the teacher's size, but for relations."""
    sizes = sizes if projection or feature == "relation" else (sizes[1], sizes[1])
    pairs = matches.evenly(1, 1)
    kinds = {
        "hidden": lambda: matches.hidden(loss, pairs, sizes if projection else None),
        "attention": lambda: matches.attention(loss, 1, 1),
        "relation": lambda: matches.relation(1, 1, heads=4),
    }
    entries = kinds[feature]()
    return Setting(config(1, sizes[0], 4), config(1, sizes[1], 4), entries)


def without_teacher() -> Setting:
    return Setting(config(1, 32, 4), None, [])


# ---------------------------------------------------------------- building and training


def arguments(output_dir: Path, **changes: Any) -> TrainingArguments:
    steps = changes.pop("steps", 2)
    values = {"num_train_steps": steps, "ckpt_steps": steps, "train_batch_size": 4, "gradient_accumulation_steps": 2, **changes}
    return TrainingArguments(student_config="", output_dir=str(output_dir), do_train=True, max_seq_length=LENGTH, **values)


def build_models(setting: Setting) -> tuple[BertForMaskedLM, BertForMaskedLM | None]:
    """Student and teacher, with random weights on the CPU."""
    attentions = any(entry["feature"] == "attention" for entry in setting.matches)
    student = build_student(setting.student, None, attentions)
    return student, build_student(setting.teacher, None, attentions) if setting.teacher is not None else None


def build_distiller(
    setting: Setting, models: Any, args: TrainingArguments, device: torch.device, compiled: bool = False, **options: Any
) -> Distiller:
    """Prepares the models as training.train does; ``options`` are Distiller's: rank, world_size, batches."""
    student, teacher = models
    kernels = args.cpu_kernels and not any(match["feature"] == "attention" for match in setting.matches)
    prepare_models(student, teacher, device=device, half=half_dtype(args), compiled=compiled, cpu_kernels=kernels)
    passes = args.gradient_accumulation_steps or 1
    return Distiller(args, student, teacher, setting.matches, device, forward_passes=passes, compiled=compiled, **options)


def train(
    distiller: Distiller,
    batches: Iterator[dict],
    callback: Callable = lambda step, state: None,
    step_callback: Callable | None = None,
    before_update: Callable | None = None,
) -> torch.optim.Optimizer:
    """``Distiller.train`` to the last step of its arguments; ``before_update`` runs before each update. Returns its optimizer."""
    args = distiller.args
    optimizer = make_optimizer(distiller.module.student, distiller.module.projections, args)
    if before_update is not None:
        optimizer.register_step_pre_hook(before_update)
    scheduler = make_scheduler(optimizer, args)
    options = {"scheduler": scheduler, "num_steps": args.num_train_steps, "max_grad_norm": 1.0, "callback": callback}
    distiller.train(optimizer, batches, step_callback=step_callback, **options)
    return optimizer


def batch(seed: int = 0, size: int = 2, padded: bool = False) -> dict[str, torch.Tensor]:
    """A micro-batch as the masker makes it; the last row of a padded one is half as long."""
    random = torch.Generator().manual_seed(seed)
    half = LENGTH // 2
    places = torch.stack([torch.randperm(half - 2, generator=random)[:MASKED] + 1 for _ in range(size)])
    ids, labels = (torch.randint(5, VOCABULARY, shape, generator=random) for shape in ((size, LENGTH), (size, MASKED)))
    labels[0, MASKED - 1 - seed % 4 :] = -100  # unused places; not as many in each batch
    made = {"input_ids": ids, "masked_positions": places, "labels": labels}
    if padded:
        made["attention_mask"] = torch.ones_like(ids)
        made["attention_mask"][-1, half:] = 0
    return made


def batches(first: int = 0) -> Iterator[dict[str, torch.Tensor]]:
    """Endless."""
    seed = first
    while True:
        yield batch(seed)
        seed += 1
