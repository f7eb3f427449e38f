"""Compares exported ONNX files with PyTorch: outputs, time and size."""

import os
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import BertTokenizer

from pretraining.exporting.onnx_export import INPUTS, ExportModule
from pretraining.reporting.tables import markdown_table
from pretraining.reporting.timing import TURN_SECONDS, time_in_turn
from pretraining.utils import UserError

TOLERANCE = 1e-3  # float32 rounding of a deep model stays far below it, a wrong graph is far above it
TIMED_LENGTH = 128
ROUNDS = 10
SENTENCES = [
    "好。",
    "今天的天气真好，我们出去走走。",
    "下午三点以后，图书馆二楼的阅览室就坐满了人。",
    "请把这份文件打印20份，再用Email发给办公室的同事们！",
    "春茶刚刚上市，茶农们天不亮就上了山，赶在太阳出来以前把最嫩的叶子采下来。",
    "“你什么时候回来？”妈妈在电话里问。“等这场雨停了，火车通了，我就回来。”",
    "这台旧机器已经用了十五年，声音越来越大，师傅拆开一看，里面的齿轮磨得只剩一半，难怪转起来总是一顿一顿的。",
    "为了弄清楚河水为什么变浑，几个学生沿着河岸走了两天，每隔五百米取一瓶水样，贴上标签，写明时间、地点和水温，"
    "回到学校以后又在显微镜下一瓶一瓶地看，最后发现泥沙全是从上游新修的公路旁边冲下来的。",
]

Seconds = dict[tuple[str, int], float]  # (runtime, CPU cores) -> seconds for one text


class Difference(NamedTuple):
    """Absolute difference from PyTorch's outputs: the largest and the mean."""

    largest: float
    mean: float


def open_session(path: Path, cores: int) -> Any:
    """Loads an ONNX file into onnxruntime, to run on this number of CPU cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def difference(module: ExportModule, path: Path, tokenizer: BertTokenizer) -> Difference:
    """Compares an exported file with PyTorch on real texts: one by itself, all in one padded batch, and in pairs."""
    exported = open_session(path, cores=1)
    cut = {"padding": True, "truncation": True, "max_length": module.model.config.max_position_embeddings, "return_tensors": "pt"}
    batches = [tokenizer(SENTENCES[1:2], **cut), tokenizer(SENTENCES, **cut), tokenizer(SENTENCES[:4], SENTENCES[4:], **cut)]
    parts = []
    for batch in batches:
        inputs = {name: batch[name] for name in INPUTS}
        with torch.inference_mode():
            expected = module(**inputs)
        got = exported.run(list(module.outputs), _arrays(inputs))
        parts += [np.abs(array - tensor.numpy()).ravel() for array, tensor in zip(got, expected)]
    differences = np.concatenate(parts)
    return Difference(largest=float(differences.max()), mean=float(differences.mean()))


def check_difference(found: Difference, model_dir: Path) -> None:
    """Refuses an exported float32 model that differs from PyTorch by more than rounding."""
    if not found.largest <= TOLERANCE:
        raise UserError(f"{model_dir}: the exported model differs from PyTorch by {found.largest:.2g}; nothing was written")


def time_runtimes(module: ExportModule, files: dict[str, Path], tokenizer: BertTokenizer) -> Seconds:
    """Times PyTorch and each exported file on one text, on one and on two CPU cores in turn; medians over the rounds."""
    text = "".join(SENTENCES[::-1] * 2)
    batch = tokenizer(text, truncation=True, max_length=_timed_length(module), return_tensors="pt")
    inputs = {name: batch[name] for name in INPUTS}
    runners: dict[tuple[str, int], Callable[[], object]] = {}
    for cores in core_counts():
        runners["PyTorch", cores] = _pytorch_runner(module.model, inputs, cores)
    for kind, file in files.items():
        for cores in core_counts():
            runners[kind, cores] = _onnx_runner(open_session(file, cores), inputs)
    threads_before = torch.get_num_threads()
    turns = time_in_turn(runners, ROUNDS, TURN_SECONDS, "timing")
    torch.set_num_threads(threads_before)
    return {name: median(seconds) for name, seconds in turns.items()}


def _pytorch_runner(model: Any, inputs: dict[str, torch.Tensor], cores: int) -> Callable[[], object]:
    def run() -> None:
        torch.set_num_threads(cores)
        with torch.inference_mode():
            model(**inputs)

    return run


def _onnx_runner(session: Any, inputs: dict[str, torch.Tensor]) -> Callable[[], object]:
    arrays = _arrays(inputs)
    return lambda: session.run(None, arrays)


def _arrays(inputs: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in inputs.items()}


def core_counts() -> list[int]:
    """The numbers of CPU cores that are timed: one, and two where there are two."""
    return [cores for cores in (1, 2) if cores <= (os.cpu_count() or 1)]


def _timed_length(module: ExportModule) -> int:
    return min(TIMED_LENGTH, module.model.config.max_position_embeddings)


def weight_bytes(model_dir: Path) -> int:
    """The size of the weights of a model directory."""
    return sum(file.stat().st_size for file in model_dir.iterdir() if file.suffix in (".safetensors", ".bin"))


def result_table(model_dir: Path, files: dict[str, Path], differences: dict[str, Difference], seconds: Seconds) -> str:
    """Size, difference and milliseconds of PyTorch and of each exported file as Markdown."""
    counts = core_counts()
    core_headers = [f"{cores} core{'s' * (cores > 1)}" for cores in counts]
    rows = [["Runtime", "File", "Size", "Largest difference", "Mean difference", *core_headers]]
    times = [f"{seconds['PyTorch', cores] * 1e3:.1f} ms" for cores in counts]
    rows.append(["PyTorch float32", "weights", f"{weight_bytes(model_dir) / 1e6:.1f} MB", "–", "–", *times])
    for kind, file in files.items():
        size, found = file.stat().st_size, differences[kind]
        times = [f"{seconds[kind, cores] * 1e3:.1f} ms" for cores in counts]
        cells = [f"{size / 1e6:.1f} MB", f"{found.largest:.1e}", f"{found.mean:.1e}"]
        rows.append([f"onnxruntime {kind}", file.name, *cells, *times])
    return markdown_table(rows)


def how_measured(module: ExportModule) -> str:
    """The lines that belong below the table."""
    return (
        f"Difference: from PyTorch's {', '.join(module.outputs)} on {len(SENTENCES)} sentences and their pairs, padded to several lengths.\n"
        f"Time: median of {ROUNDS} rounds in turn, one text of {_timed_length(module)} tokens; "
        "other work on the machine distorts it, two cores above all."
    )
