"""The stock sides: TextBrewer's own GeneralDistiller over plain models, and whole word masking in plain Python."""

import random
from contextlib import nullcontext
from typing import Any

import torch
from textbrewer import DistillationConfig, GeneralDistiller, TrainingConfig
from transformers import BertTokenizer

from benchmarks.models import Models
from pretraining.config import TrainingArguments
from pretraining.distillation.optimizer import parameter_groups

# ---------------------------------------------------------------- a training step


class StockSide:
    """TextBrewer's step: full logits and all hidden states of both models, selected and compared afterwards.

    Args:
        models: their teacher is frozen here.
        half: the type of the autocast around the forward, or None for float32.
    """

    def __init__(self, models: Models, device: torch.device, output_dir: str, half: torch.dtype | None = None):
        models.teacher.eval().requires_grad_(False)
        recipe = TrainingArguments(student_config="", output_dir=output_dir)
        self.distiller = GeneralDistiller(
            TrainingConfig(output_dir=output_dir, device=device),
            DistillationConfig(temperature=recipe.temperature, intermediate_matches=models.matches),
            models.teacher,
            models.student,
            _stock_adaptor,
            _stock_adaptor,
        )
        self.student = models.student
        self.autocast = torch.autocast(device.type, half) if half else nullcontext()
        projections = [weight for projection in self.distiller.projs if projection is not None for weight in projection.parameters()]
        groups = [*parameter_groups(models.student, recipe.weight_decay_rate), {"params": projections, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, eps=1e-6)

    def loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.autocast:
            return self.distiller.train_on_batch(batch, {"output_hidden_states": True})[0]

    def step(self, batch: dict[str, torch.Tensor]) -> None:
        """Updates the student on one batch from :func:`stock_batch`."""
        update(self.loss(batch), self.optimizer)


def _stock_adaptor(batch: dict[str, torch.Tensor], outputs: Any) -> dict[str, Any]:
    return {"logits": outputs.logits, "hidden": outputs.hidden_states, "logits_mask": batch["labels"] >= 0}


def stock_batch(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of this project as a stock collator makes it.

    Returns:
        ``input_ids``, ``attention_mask`` where rows are padded, and ``labels``, all (batch, length) int64; a label is -100 where
        nothing is masked.
    """
    labels = torch.full_like(batch["input_ids"], -100)
    row, place = torch.nonzero(batch["labels"] >= 0, as_tuple=True)
    labels[row, batch["masked_positions"][row, place]] = batch["labels"][row, place]
    found = {name: batch[name] for name in batch if name in ("input_ids", "attention_mask")}
    found["labels"] = labels
    return found


def update(loss: torch.Tensor, optimizer: torch.optim.Optimizer) -> None:
    """Backward, clipping and an optimizer step."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_([parameter for group in optimizer.param_groups for parameter in group["params"]], 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


# ---------------------------------------------------------------- masking


class PythonCollator:
    """Whole word masking one example at a time, as DataCollatorForWholeWordMask of transformers 4.57 behaves.

    That class is gone from today's transformers; this one was written from its behaviour, as the peer of corpus/masking.py.

    Collates examples ``{"input_ids": with [CLS] and [SEP], "chinese_ref": positions of tokens that continue a word}``.
    A token continues a word if it begins with ## or chinese_ref names it. Whole words are drawn in random order until
    ``max(1, round(probability * tokens))`` tokens are chosen; a word that exceeds the budget is skipped. 80 % of the chosen tokens
    become [MASK], 10 % a random token, 10 % stay.
    """

    def __init__(self, tokenizer: BertTokenizer, probability: float = 0.15):
        self.tokenizer, self.probability = tokenizer, probability

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Returns ``input_ids`` and ``labels`` (-100 where nothing is masked), (batch, longest) int64; no attention mask."""
        longest = max(len(example["input_ids"]) for example in examples)
        input_ids = torch.full((len(examples), longest), self.tokenizer.pad_token_id)
        chosen = torch.zeros(len(examples), longest, dtype=torch.bool)
        for row, example in enumerate(examples):
            ids = example["input_ids"]
            input_ids[row, : len(ids)] = torch.tensor(ids)
            chosen[row, sorted(self.choose(self.marked_tokens(example)))] = True
        return self.mask_tokens(input_ids, chosen)

    def marked_tokens(self, example: dict) -> list[str]:
        """The example's tokens, each that continues a word beginning with ##."""
        tokens = self.tokenizer.convert_ids_to_tokens(example["input_ids"])
        references = example["chinese_ref"]  # a list, looked through for every token, there as here
        return ["##" + token if position in references else token for position, token in enumerate(tokens)]

    def choose(self, tokens: list[str]) -> set[int]:
        """Positions of the words that are masked."""
        words: list[list[int]] = []
        for position, token in enumerate(tokens):
            if token in ("[CLS]", "[SEP]"):
                continue
            if words and token.startswith("##"):
                words[-1].append(position)
            else:
                words.append([position])
        random.shuffle(words)
        budget = max(1, round(len(tokens) * self.probability))
        chosen: set[int] = set()
        for word in words:
            if len(chosen) >= budget:
                break
            if len(chosen) + len(word) <= budget:
                chosen.update(word)
        return chosen

    def mask_tokens(self, input_ids: torch.Tensor, chosen: torch.Tensor) -> dict[str, torch.Tensor]:
        special = [self.tokenizer.get_special_tokens_mask(row, already_has_special_tokens=True) for row in input_ids.tolist()]
        chosen = chosen & ~torch.tensor(special, dtype=torch.bool)
        labels = torch.where(chosen, input_ids, -100)
        masked = chosen & torch.bernoulli(torch.full(labels.shape, 0.8)).bool()
        replaced = chosen & ~masked & torch.bernoulli(torch.full(labels.shape, 0.5)).bool()
        words = torch.randint(len(self.tokenizer), labels.shape)
        input_ids = torch.where(masked, self.tokenizer.mask_token_id, torch.where(replaced, words, input_ids))
        return {"input_ids": input_ids, "labels": labels}
