"""LTP directories for the benchmarks: a legacy model trained on the sample's segmented sentences, a neural one with random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from ltp.nerual import LTP
from transformers import BertTokenizer

from benchmarks.processes import PRETRAINING
from pretraining.scripts.train_segmenter import read_sentences, save_model, train_model


def write_legacy_ltp(directory: Path) -> None:
    segmented = PRETRAINING / "dataset/segmented"
    train = read_sentences(str(segmented / "segmented.txt"))
    dev = read_sentences(str(segmented / "segmented_dev.txt"))
    save_model(train_model(train, dev), directory)


def write_neural_ltp(directory: Path, bert: Path, lines: list[str]) -> None:
    """Writes a neural LTP directory of the published small size with random weights.

    The two tags ("begins a word", "inside a word") are about equally frequent in ``lines``, so words have usual lengths.

    Args:
        bert: the directory of the vocabulary.
    """
    tokenizer = BertTokenizer.from_pretrained(str(bert))
    config = _neural_config(len(tokenizer))
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(bert / "vocab.txt", directory)
    torch.manual_seed(1)
    model = LTP(config=config).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        middle = _tag_scores(model, tokenizer, lines).sort().values.chunk(5)[2]
        widest = middle.diff().argmax()  # padding changes scores a little; in the widest gap it changes no tag
        bias = list(model.task_heads["cws"].parameters())[-1]
        bias[0] += middle[widest : widest + 2].mean()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def _neural_config(vocabulary: int) -> dict[str, Any]:
    size = {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024}
    backbone = {"model_type": "electra", "vocab_size": vocabulary, "max_position_embeddings": 512, **size}
    package = "ltp_core.models."
    head = {"_ltp_target_": package + "components.token.MLPTokenClassifier", "input_size": 256, "num_labels": 2, "dropout": 0.1}
    model = {
        "_ltp_target_": package + "ltp_model.LTPModule",
        "backbone": {"_ltp_target_": package + "utils.transformer.load_transformers", "config": backbone},
        "processor": {"cws": {"_ltp_target_": package + "processor.TokenOnly"}},
        "heads": {"cws": head},
    }
    return {"nerual": True, "vocabs": {"cws": ["I-W", "B-W"]}, "model": model}  # LTP's spelling


def _tag_scores(model: Any, tokenizer: BertTokenizer, lines: list[str]) -> torch.Tensor:
    """For every token of the lines: by how much "begins a word" scores above "inside a word"; (tokens,) float32."""
    scores = []
    for line in lines:
        inputs = tokenizer([line], return_tensors="pt")
        hidden, mask = model.processor["cws"](model.backbone(**inputs), inputs["attention_mask"])
        inside, begins = model.task_heads["cws"](hidden).logits[mask].T
        scores.append(begins - inside)
    return torch.cat(scores)
