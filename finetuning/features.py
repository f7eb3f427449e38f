"""Examples of a task -> features: one dict per row of a batch; features -> batches of tensors.

A feature has ``input_ids`` (int32, [length]), ``second``, the position where the second segment begins, and for training the labels:
one number, or for labelling one a token (int64, [length]).
"""

from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from finetuning.examples import Example
from finetuning.labelling import IGNORED, make_tag_windows, tag_labels
from finetuning.reading import Window, make_windows
from finetuning.task_definitions import Task

BLOCK = 1000  # examples that are tokenised in one call


def make_features(
    task: Task, examples: list, tokenizer: Any, max_seq_length: int, training: bool, progress: bool = True
) -> tuple[list[dict], list]:
    """Makes the features, with labels for training; for reading and labelling also returns the window of each feature, else no windows."""
    if task.is_labelling:
        tag_windows = make_tag_windows(examples, tokenizer, max_seq_length, progress)
        features: list[dict] = [{"input_ids": window.input_ids, "second": len(window.input_ids)} for window in tag_windows]
        if training:
            features = [{**each, "labels": tag_labels(w, examples[w.sentence].tags)} for each, w in zip(features, tag_windows)]
        return features, tag_windows
    if not task.is_reading:
        return sentence_features(examples, tokenizer, max_seq_length, training, progress), []
    windows, left_out = make_windows(examples, tokenizer, max_seq_length, training, progress)
    if left_out:
        print(f"{task.name}: {left_out} of {len(examples)} training questions are left out, their answer is not in the context")
    return window_features(windows, training), windows


def sentence_features(examples: list[Example], tokenizer: Any, max_seq_length: int, with_labels: bool, progress: bool = True) -> list[dict]:
    """Tokenises sentences and pairs; a pair that is too long loses tokens at the end of its longer sentence."""
    features = []
    with tqdm(total=len(examples), desc="tokenise", unit=" examples", disable=not progress) as bar:
        for start in range(0, len(examples), BLOCK):
            block = examples[start : start + BLOCK]
            texts = [list(column) for column in zip(*(example.texts for example in block))]
            encoded = tokenizer(*texts, truncation=True, max_length=max_seq_length)
            for example, ids, types in zip(block, encoded["input_ids"], encoded["token_type_ids"]):
                feature = {"input_ids": np.array(ids, dtype=np.int32), "second": len(types) - sum(types)}
                features.append({**feature, "labels": example.label} if with_labels else feature)
            bar.update(len(block))
    return features


def window_features(windows: list[Window], with_labels: bool) -> list[dict]:
    """The windows as features; the context is the second segment."""
    features = []
    for window in windows:
        feature = {"input_ids": window.input_ids, "second": window.context_start}
        if with_labels:
            feature |= {"start_positions": window.start, "end_positions": window.end}
        features.append(feature)
    return features


def collate(features: list[dict]) -> dict[str, torch.Tensor]:
    """Pads a batch to its longest row.

    Returns:
        ``input_ids``, ``attention_mask``, ``token_type_ids`` (batch, length) int64, and the labels int64: (batch,), or for labelling
        (batch, length).
    """
    shape = (len(features), max(len(feature["input_ids"]) for feature in features))
    batch = {name: torch.zeros(shape, dtype=torch.long) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, feature in enumerate(features):
        length = len(feature["input_ids"])
        batch["input_ids"][row, :length] = torch.from_numpy(feature["input_ids"])
        batch["attention_mask"][row, :length] = 1
        batch["token_type_ids"][row, feature["second"] : length] = 1
    for name in set(features[0]) - {"input_ids", "second"}:
        values = [feature[name] for feature in features]
        if isinstance(values[0], np.ndarray):
            batch[name] = pad_sequence([torch.from_numpy(value) for value in values], batch_first=True, padding_value=IGNORED)
        else:
            batch[name] = torch.tensor(values)
    return batch
