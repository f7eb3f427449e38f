"""The tiny files and models that the tests write themselves: a vocabulary, a corpus with references, a teacher, a student."""

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer
from transformers.utils import logging

from pretraining import train
from pretraining.corpus.rows import Rows
from pretraining.reporting.scalars import read_scalars

logging.disable_progress_bar()
torch.set_num_threads(1)  # for models this small a second thread only waits, and it waits busily
os.environ["OMP_NUM_THREADS"] = "1"  # the processes that tests start, too

WORDS = "今天 天气 我们 他们 公园 老师 学校 图书馆 明白 火车 火车站 北京 喜欢 慢慢 一起 早上 晚上 朋友 自行车 没有 因为 所以".split()
SENTENCES = """今天天气很好,我们一起去公园.
老师说学校的图书馆早上八点开门。
他们在火车站等朋友,朋友没有来。
因为下雨,所以晚上我们没有骑自行车。
我喜欢北京,也喜欢慢慢走路。
我明白了:model 和 token 都是 training 的词。
他买了一辆自行车和一本 2026 年的书。
火车慢慢开进北京,天气一点也不冷。""".split("\n")
PIECES = "model token train 2026 ##ing ##s ##26 ##t ##r 20".split()
SPECIAL = ["[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_vocabulary(directory: Path, extra: list[str] | None = None) -> BertTokenizer:
    """``vocab.txt`` with every character of the sentences, a few Latin words and ## pieces; returns its tokenizer."""
    characters = sorted(set("".join(SENTENCES)) - {" "})
    directory.mkdir(parents=True, exist_ok=True)
    tokens = [*SPECIAL, *characters, *PIECES, *(extra or [])]
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in dict.fromkeys(tokens)), encoding="utf-8")
    return BertTokenizer.from_pretrained(str(directory))


def references(line: str, tokenizer) -> list[int]:
    """Positions, [CLS] being 0, of the Chinese characters that continue one of ``WORDS``; the longest word wins."""
    tokens, found, place = tokenizer.tokenize(line), [], 0
    while place < len(tokens):
        length = max((len(word) for word in WORDS if "".join(tokens[place : place + len(word)]) == word), default=1)
        found += range(place + 2, place + length + 1)
        place += length
    return found


def paragraphs(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(SENTENCES, k=draw.randint(1, 4))) for _ in range(count)]


def write_text(path: Path, lines: list[str], tokenizer) -> None:
    """A text file and beside it ``<name>.refs``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    refs = "".join(json.dumps(references(line, tokenizer)) + "\n" for line in lines)
    path.with_suffix(".refs").write_text(refs, encoding="utf-8")


def write_data_json(path: Path, train_texts: list[Path], dev_texts: list[Path]) -> None:
    entries = {
        split: {
            f"{split}_files": [str(text) for text in texts],
            f"{split}_ref_files": [str(text.with_suffix(".refs")) for text in texts],
        }
        for split, texts in (("train", train_texts), ("dev", dev_texts))
    }
    path.write_text(json.dumps(entries), encoding="utf-8")


def config(vocabulary: int, layers: int, hidden: int, heads: int, dropout: float = 0.1) -> dict:
    return {
        "model_type": "bert",
        "vocab_size": vocabulary,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 2 * hidden,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }


def model(values: dict, seed: int, attentions: bool = False) -> BertForMaskedLM:
    """A model with random weights, also for the biases and LayerNorms that start at 0 and 1; in eval mode."""
    torch.manual_seed(seed)
    built = BertForMaskedLM(BertConfig(**values, attn_implementation="eager" if attentions else "sdpa")).eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return built


class Corpus:
    """A directory with all that a run of ``train.py`` reads.

    Attributes:
        teacher: 4 layers of size 32. student_json, calm_json: 2 layers of size 16, with dropout 0.1 and 0.
        data_json: three train files, two of them shorter than a row, and a dev file.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self.vocabulary = directory / "vocabulary"
        self.tokenizer = write_vocabulary(self.vocabulary)
        texts = {
            "long": paragraphs(14, seed=1),
            "short": ["他明白"],
            "middle": [SENTENCES[5], "", SENTENCES[2]],
            "dev": paragraphs(3, seed=2),
        }
        for name, lines in texts.items():
            write_text(directory / f"{name}.txt", lines, self.tokenizer)
        self.texts = [directory / f"{name}.txt" for name in ("long", "short", "middle")]
        self.data_json = directory / "data.json"
        write_data_json(self.data_json, self.texts, [directory / "dev.txt"])
        self.student_json, self.calm_json = directory / "student.json", directory / "calm.json"
        for path, dropout in ((self.student_json, 0.1), (self.calm_json, 0.0)):
            path.write_text(json.dumps(config(len(self.tokenizer), 2, 16, 2, dropout)))
        self.teacher = directory / "teacher"
        model(config(len(self.tokenizer), 4, 32, 4), seed=3).save_pretrained(str(self.teacher))
        write_vocabulary(self.teacher)

    def arguments(self, output_dir: Path, **changes) -> list[str]:
        """The command line of a short distillation; ``changes`` replace arguments or, where they are None, take them out."""
        values = {
            "teacher_name_or_path": self.teacher,
            "student_config": self.student_json,
            "matches": "L2h16_L4h32_hidden_mse",
            "data_files_json": self.data_json,
            "data_cache_dir": self.directory / "shards",
            "max_seq_length": 32,
            "do_train": "true",
            "num_train_steps": 8,
            "ckpt_steps": 2,
            "train_batch_size": 8,
            "learning_rate": 4e-4,
            "preprocessing_num_workers": 1,
            "no_cuda": "true",
            "output_dir": output_dir,
            **changes,
        }
        return [part for name, value in values.items() if value is not None for part in (f"--{name}", str(value))]


def run_train(arguments: list[str], **callbacks: Any) -> None:
    """``train.main()`` with these arguments and callbacks, in this process."""
    train.main(arguments, **callbacks)


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return BertForMaskedLM.from_pretrained(str(directory)).state_dict()


def largest_difference(left: Path, right: Path) -> float:
    """Between the weights of two checkpoints."""
    left, right = weights(left), weights(right)
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """A run's TensorBoard scalars: for each tag the steps and values, as TensorBoard shows them."""
    return {tag: list(zip(found.steps, found.values)) for tag, found in read_scalars(directory).items()}


def snapshot(directory: Path) -> dict[str, bytes]:
    """Every file below a directory with its content, but for locks."""
    files = (path for path in sorted(directory.rglob("*")) if path.is_file() and not is_lock(path))
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def is_lock(path: Path) -> bool:
    """True for the file of a lock."""
    return path.name.startswith(".") and path.suffix == ".lock" or path.name == ".lock"


def all_rows(rows: Rows) -> dict[str, list[list]]:
    """Every row of a corpus: ``input_ids`` and ``continues``."""
    read = rows[list(range(len(rows)))]
    return {name: [row.tolist() for row in column] for name, column in read.items()}


def masked_tokens(batch: dict) -> np.ndarray:
    """How many tokens each row has masked."""
    return (batch["labels"] >= 0).sum(-1).numpy()


def full_batch(batch: dict) -> dict:
    """The batch as stock TextBrewer and BertForMaskedLM want it: labels (batch, length), -100 where nothing is masked."""
    labels = torch.full_like(batch["input_ids"], -100)
    rows, places = torch.nonzero(batch["labels"] >= 0, as_tuple=True)
    labels[rows, batch["masked_positions"][rows, places]] = batch["labels"][rows, places]
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
    return {"input_ids": batch["input_ids"], "attention_mask": mask, "labels": labels}


def stock_adaptor(batch: dict, outputs) -> dict:
    return {
        "logits": outputs.logits,
        "logits_mask": batch["labels"] >= 0,
        "hidden": outputs.hidden_states,
        "attention": outputs.attentions,
    }
