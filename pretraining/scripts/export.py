"""Exports a model for deployment, checks it against PyTorch on real sentences, and times it.

    python scripts/export.py ./saves/minirbt_h256/gs100000 --format onnx --int8

A checkpoint of train.py becomes an encoder (``last_hidden_state``, and ``pooler_output`` if it has a trained pooler); a model that was
fine-tuned for classification gives ``logits``, one for reading ``start_logits`` and ``end_logits``. All take ``input_ids``,
``attention_mask`` and ``token_type_ids``, int64 of shape (batch, length), for any batch and length. The tokenizer is copied beside.
Needs: pip install -r requirements-export.txt
"""

import argparse
import importlib.util
import logging
import os
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from compare_models import markdown_table, time_in_turn
from utils import UserError, first_line, load_tokenizer, parse_one_line_errors, run_script, save_tokenizer, whole_directory

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ENCODERS = ("BertModel", "BertForMaskedLM", "BertForPreTraining")
HEADS = {"BertForSequenceClassification": ("logits",), "BertForQuestionAnswering": ("start_logits", "end_logits")}
TOLERANCE = 1e-3  # float32 rounding of a deep model stays far below it, a wrong graph lies far above
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("model_dir", help="a checkpoint of train.py or a model fine-tuned by finetuning/run.py")
    parser.add_argument("--format", choices=["onnx"], default="onnx")
    parser.add_argument("--int8", action="store_true", help="also write model_int8.onnx, with weights of 8 bits (dynamic quantisation)")
    parser.add_argument("--output_dir", help="a new directory; default: MODEL_DIR-onnx")
    args = parse_one_line_errors(parser)
    model_dir = Path(args.model_dir)
    output_dir = Path(args.output_dir or f"{model_dir.resolve()}-{args.format}")
    if output_dir.exists():
        raise UserError(f"--output_dir {output_dir}: is already there; remove it or choose another directory")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        requirements = Path(__file__).resolve().parents[1] / "requirements-export.txt"
        raise UserError(f"export.py needs {', '.join(missing)}; run: pip install -r {os.path.relpath(requirements)}")
    tokenizer = load_tokenizer(model_dir)

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    model, outputs = load_model(model_dir)
    files = {"float32": "model.onnx", **({"int8": "model_int8.onnx"} if args.int8 else {})}
    with whole_directory(output_dir) as partial:
        with quiet():
            print(f"exporting {model_dir} …", flush=True)
            export(model, outputs, partial / files["float32"])
            if args.int8:
                quantise(partial / files["float32"], partial / files["int8"])
        model.set_attn_implementation("sdpa")  # what is exported is held against PyTorch as it usually runs
        differences = {kind: difference(model, outputs, partial / file, tokenizer) for kind, file in files.items()}
        if not differences["float32"][0] <= TOLERANCE:
            raise UserError(f"{model_dir}: the exported model differs from PyTorch by {differences['float32'][0]:.2g}; nothing was written")
        model.config.save_pretrained(str(partial))
        save_tokenizer(tokenizer, partial)
    rows = results(model, model_dir, output_dir, files, differences, tokenizer)
    print(f"{type(model).__name__}: {', '.join(INPUTS)} -> {', '.join(outputs)}\n")
    print(markdown_table(rows))
    print(f"\nDifference: from PyTorch's {', '.join(outputs)} on {len(SENTENCES)} sentences and their pairs, padded to several lengths.")
    print(
        f"Time: median of {ROUNDS} rounds in turn, one text of {timed_length(model)} tokens; other work on the machine distorts it, two cores above all."
    )
    print(f"\nwritten: {output_dir}")


@contextmanager
def quiet():
    """Keeps the exporter's and quantiser's advice to developers off the screen."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


# ---------------------------------------------------------------- the model


def load_model(directory: Path):
    """Loads the encoder or fine-tuned model that the config names, in float32 and eval mode.

    Returns:
        (model, names of its outputs)
    """
    import torch
    import transformers
    from modeling import require_model_directory

    config = require_model_directory(directory, "the model to export")
    architecture = (config.architectures or ["BertModel"])[0]
    if architecture not in (*ENCODERS, *HEADS):
        raise UserError(f"{directory}: is a {architecture}; export.py knows {', '.join((*ENCODERS, *HEADS))}")
    model_class = getattr(transformers, architecture if architecture in HEADS else "BertModel")
    try:
        model, info = model_class.from_pretrained(
            str(directory), output_loading_info=True, dtype=torch.float32, attn_implementation="eager"
        )
    except Exception as error:  # unreadable, truncated or unsafe weights: the library raises a different exception for each
        raise UserError(f"{directory}: the weights cannot be loaded ({first_line(error)})") from None
    missing = sorted(info["missing_keys"])
    if architecture in ENCODERS and any(name.startswith("pooler.") for name in missing):
        model.pooler = None  # masked-LM training has none, and random numbers are no use
        missing = [name for name in missing if not name.startswith("pooler.")]
    if missing:
        raise UserError(f"{directory}: the weights lack {len(missing)} tensors of {architecture}, first {missing[0]}")
    encoder_outputs = ("last_hidden_state", "pooler_output") if getattr(model, "pooler", None) else ("last_hidden_state",)
    return model.eval(), HEADS.get(architecture, encoder_outputs)


def as_function(model, outputs: tuple[str, ...]):
    """The model as a module from the three inputs to a tuple of the named outputs."""
    import torch

    class Function(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            results = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return tuple(results[name] for name in outputs)

    return Function().eval()


def export(model, outputs: tuple[str, ...], path: Path) -> None:
    """Writes the model as one ONNX file with free batch and length.

    torch.export's graph is used: the older tracing exporter builds today's attention mask wrongly, without an error.
    """
    import torch

    input_ids = torch.ones(2, 9, dtype=torch.int64)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 6:] = 0
    shape = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=model.config.max_position_embeddings)}
    program = torch.onnx.export(
        as_function(model, outputs),
        (input_ids, attention_mask, torch.zeros_like(input_ids)),
        input_names=INPUTS,
        output_names=outputs,
        dynamic_shapes={name: shape for name in INPUTS},
        dynamo=True,
        verbose=False,
    )
    for node in program.model.graph:
        node.metadata_props.clear()  # source lines and paths of this machine
    program.save(str(path), external_data=False)


def quantise(source: Path, target: Path) -> None:
    """Weights of 8 bits, one scale a column; activations are quantised as they come.

    ``reduce_range`` takes 7 of the 8 bits: CPUs without VNNI would otherwise overflow 16-bit sums, which no error tells of.
    """
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    model = onnx.load(source)
    del model.graph.value_info[:]  # noted shapes, which onnxruntime 1.23 holds against the weights it transposes
    quantize_dynamic(model, str(target), per_channel=True, reduce_range=True)


# ---------------------------------------------------------------- checked and timed


def session(path: Path, threads: int):
    """An onnxruntime session on so many CPU cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def difference(model, outputs: tuple[str, ...], path: Path, tokenizer) -> tuple[float, float]:
    """Largest and mean absolute difference from PyTorch over real texts: one alone, all together, and in pairs."""
    import numpy as np
    import torch

    function, exported = as_function(model, outputs), session(path, threads=1)
    cut = {"padding": True, "truncation": True, "max_length": model.config.max_position_embeddings, "return_tensors": "pt"}
    batches = [tokenizer(SENTENCES[1:2], **cut), tokenizer(SENTENCES, **cut), tokenizer(SENTENCES[:4], SENTENCES[4:], **cut)]
    found = []
    for batch in batches:
        inputs = {name: batch[name] for name in INPUTS}
        with torch.inference_mode():
            expected = function(**inputs)
        got = exported.run(list(outputs), {name: tensor.numpy() for name, tensor in inputs.items()})
        found += [np.abs(ours - theirs.numpy()).ravel() for ours, theirs in zip(got, expected)]
    found = np.concatenate(found)
    return float(found.max()), float(found.mean())


def timed_length(model) -> int:
    return min(TIMED_LENGTH, model.config.max_position_embeddings)


def results(model, model_dir: Path, output_dir: Path, files: dict[str, str], differences: dict, tokenizer) -> list[list[str]]:
    """The rows of the printed table: size, difference, and milliseconds on one and two cores, of PyTorch and each exported file."""
    import torch

    batch = tokenizer("".join(SENTENCES[::-1] * 2), truncation=True, max_length=timed_length(model), return_tensors="pt")
    inputs = {name: batch[name] for name in INPUTS}
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    before = torch.get_num_threads()
    cores = [number for number in (1, 2) if number <= (os.cpu_count() or 1)]

    def pytorch(threads: int):
        def run():
            torch.set_num_threads(threads)
            with torch.inference_mode():
                model(**inputs)

        return run

    def onnx(file: str, threads: int):
        loaded = session(output_dir / file, threads)
        return lambda: loaded.run(None, arrays)

    runners = {("PyTorch", threads): pytorch(threads) for threads in cores}
    runners |= {(kind, threads): onnx(file, threads) for kind, file in files.items() for threads in cores}
    seconds = time_in_turn(runners, ROUNDS, "timing")
    torch.set_num_threads(before)

    def times(kind: str) -> list[str]:
        return [f"{seconds[kind, threads] * 1e3:.1f} ms" for threads in cores]

    weights = sum(file.stat().st_size for file in model_dir.iterdir() if file.suffix in (".safetensors", ".bin"))
    rows = [["Runtime", "File", "Size", "Largest difference", "Mean difference", *(f"{n} core{'s' * (n > 1)}" for n in cores)]]
    rows.append(["PyTorch float32", "weights", f"{weights / 1e6:.1f} MB", "–", "–", *times("PyTorch")])
    for kind, file in files.items():
        size = (output_dir / file).stat().st_size
        largest, mean = differences[kind]
        rows.append([f"onnxruntime {kind}", file, f"{size / 1e6:.1f} MB", f"{largest:.1e}", f"{mean:.1e}", *times(kind)])
    return rows


if __name__ == "__main__":
    run_script(main)
