"""Whole word masking in plain Python, one example at a time, as DataCollatorForWholeWordMask of transformers 4.57 behaves.

That class is gone from today's transformers; this is written afresh from its behaviour, as the peer of masking.py.
"""

import random

import torch


class PythonCollator:
    """Collates examples ``{"input_ids": with [CLS] and [SEP], "chinese_ref": positions of tokens that continue a word}``.

    A token continues a word if it begins with ## or chinese_ref names it. Whole words are drawn in random order until
    ``max(1, round(probability * tokens))`` tokens are chosen; a word that would overshoot is skipped. Of the chosen tokens 80 % become
    [MASK], 10 % a random token, 10 % stay.
    """

    def __init__(self, tokenizer, probability: float = 0.15):
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
