"""Times every stage against its stock peer, both in turn on the same input, and prints one table.

    python benchmarks/bench.py
    python benchmarks/bench.py --corpus zhwiki.txt --vocab vocab.txt --ltp ltp_directory --full

Every group of stages runs in a process of its own. A round runs both sides one after the other; the table has the medians of the
rounds and, of the rounds' ratios, the median, the least and the greatest. The targets are for two CPU cores, length 512 and models of
real size with random weights.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

from rows import PRETRAINING, Row, at_most, faster, print_table, rate, under, write_json
from tqdm import tqdm
from utils import UserError, parse_one_line_errors, read_line_blocks, require_file, run_script

LENGTH, VOCABULARY = 512, 21128
SAMPLE_BYTES = 4 << 20
BYTES_TO_MB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--corpus", help="a text file; its first 4 MB are the input (default: the sample corpus, repeated)")
    parser.add_argument("--vocab", help="a vocab.txt (default: the corpus' characters, filled up to 21128 entries)")
    parser.add_argument("--ltp", help="a legacy LTP directory (default: one trained on the sample's segmented sentences)")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), help="these stages alone")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds a stage, after one that warms up")
    parser.add_argument("--full", action="store_true", help="measure the peak memory on 100 and 200 MB of text, not on 8 and 16 MB")
    parser.add_argument("--output", default=Path(__file__).with_name("bench.json"), help="where the rows are written as JSON")
    args = parse_one_line_errors(parser)
    if args.rounds < 1:
        raise UserError(f"--rounds {args.rounds}: must be at least 1")
    for path, what in ((args.corpus, "the corpus"), (args.vocab, "a BERT vocabulary")):
        if path:
            require_file(path, what)

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="minirbt_bench_") as work:
        apart(prepare, Path(work), args)
        try:
            with tqdm(args.only, unit=" stages") as bar:
                for name in bar:
                    bar.set_description(name)
                    rows += apart(STAGES[name], Path(work), args, one_core=name in ONE_CORE)
        finally:  # a stage that fails costs no other's rows
            print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds; one of neural LTP and of memory")
            print_table(rows)
            write_json(args.output, rows)


def apart(function: Callable, *arguments, one_core: bool = False):
    """Calls a function in a fresh process; what scripts print there is not shown."""
    threads = {"OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"} if one_core else {}
    with mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", **threads}):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(quietly, function, *arguments).result()


def quietly(function: Callable, *arguments):
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    return function(*arguments)


def timed(function: Callable, *arguments) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - begin


def rounds(args, *sides: Callable[[], object]) -> list[list[float]]:
    """Seconds of each side in each round, the sides taking turns; the first round warms up and does not count."""
    seconds = [[timed(side) for side in sides] for _ in range(args.rounds + 1)]
    return [list(column) for column in zip(*seconds[1:])]


# ---------------------------------------------------------------- input


def prepare(work: Path, args) -> None:
    """Writes the sample text, its vocabulary, an LTP model and the references."""
    import train_segmenter
    from make_demo_models import vocabulary

    texts = [Path(args.corpus)] if args.corpus else sorted((PRETRAINING / "dataset/train/train_files").glob("*.txt"))
    lines, size = [], 0
    while size < SAMPLE_BYTES:
        before = size
        for line in chain.from_iterable(chain.from_iterable(map(read_line_blocks, texts))):
            lines.append(line)
            size += len(line.encode()) + 1
            if size >= SAMPLE_BYTES:
                break
        if size == before:
            raise UserError(f"{texts[0]}: no text in it")
    (work / "sample.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")

    (work / "bert").mkdir()
    if args.vocab:
        tokens = Path(args.vocab).read_text(encoding="utf-8").split("\n")[:-1]
    else:
        tokens = vocabulary([work / "sample.txt"])[:VOCABULARY]
        tokens += [f"[unused{number}]" for number in range(VOCABULARY - len(tokens))]
    (work / "bert/vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8", newline="\n")

    if args.ltp:
        (work / "ltp").symlink_to(Path(args.ltp).resolve())
    else:
        segmented = PRETRAINING / "dataset/segmented"
        train, dev = (train_segmenter.read_sentences(str(segmented / name)) for name in ("segmented.txt", "segmented_dev.txt"))
        train_segmenter.save_model(train_segmenter.train_model(train, dev), work / "ltp")
    script(work, "run_chinese_ref.py", data_files_json=data_json(work, "sample"), ltp=work / "ltp", bert=work / "bert")


def data_json(work: Path, name: str) -> Path:
    path = work / f"{name}.json"
    entry = {"train_files": [str(work / f"{name}.txt")], "train_ref_files": [str(work / f"{name}.refs")]}
    path.write_text(json.dumps({"train": entry}))
    return path


def script(work: Path, name: str, **arguments) -> float:
    """Runs one of the project's scripts; returns its peak memory in MB."""
    command = [sys.executable, name, *(part for key, value in arguments.items() for part in (f"--{key}", str(value)))]
    with open(work / "log", "w+") as log:
        process = subprocess.Popen(command, cwd=PRETRAINING, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            raise UserError(f"{name} failed: {log.read().strip().splitlines()[-1]}")
    return maximum_mb(usage)


def maximum_mb(usage: resource.struct_rusage) -> float:
    return usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / BYTES_TO_MB


def sample_lines(work: Path) -> list[str]:
    return list(chain.from_iterable(read_line_blocks(work / "sample.txt")))


def load_data(work: Path):
    """The sample's (tokenizer, dataset, masker) as train.py has them."""
    from masking import WholeWordMasker
    from my_datasets import load_shards
    from utils import load_tokenizer, read_data_json

    tokenizer = load_tokenizer(work / "bert")
    dataset, _ = load_shards(read_data_json(work / "sample.json")["train"], work / "shards", LENGTH, tokenizer, progress=False)
    return tokenizer, dataset, WholeWordMasker(tokenizer, LENGTH, 0.15, seed=1)


def load_batch(work: Path, size: int) -> tuple[int, dict]:
    """(entries of the vocabulary, a masked batch of the sample)."""
    from my_datasets import TrainingBatches

    tokenizer, dataset, masker = load_data(work)
    return len(tokenizer), TrainingBatches(dataset, masker, 1, size)[0]


# ---------------------------------------------------------------- a training step


def step_stage(work: Path, args) -> list[Row]:
    ours, bf16, stock = step_seconds(work, args, "RBT6 -> H256", 2, [{}, {"bf16": True}])
    rows = [
        faster("step RBT6 -> H256, float32", ours, stock, 2.0),
        faster("step RBT6 -> H256, --bf16 against float32", bf16, stock, 4.0),
    ]
    ours, stock = step_seconds(work, args, "RoBERTa -> RBT6", 2, [{}])
    return [*rows, faster("step RoBERTa -> RBT6, float32", ours, stock, 1.4)]


def step_seconds(work: Path, args, pair: str, size: int, settings: list[dict]) -> list[list[float]]:
    """Seconds of a step in each round: ours with each of the settings, then stock TextBrewer's; checks that the losses are the same."""
    import torch
    from sides import OurSide, StockSide, build_models, losses_without_dropout, stock_batch

    device, out = torch.device("cpu"), str(work / "out")
    vocabulary, batch = load_batch(work, size)
    models = build_models(pair, vocabulary, device)
    ours = [OurSide(models.copy(), device, out, train_batch_size=size, **setting) for setting in settings]
    stock = StockSide(models, device, out)
    losses = losses_without_dropout(ours[0], stock, batch)
    if abs(losses[0] - losses[1]) > 2e-6 * losses[1]:
        raise UserError(f"{pair}: the losses differ, ours {losses[0]}, TextBrewer's {losses[1]}")
    steps = [partial(side.step, batch) for side in ours]
    return rounds(args, *steps, partial(stock.step, stock_batch(batch)))


def memory_stage(work: Path, args) -> list[Row]:
    """What a process holds at its highest over two steps of eight samples, less what it held before them with both models loaded."""
    ours, stock = (apart(step_memory, work, side) for side in ("ours", "stock"))
    return [under("peak memory of a step RBT6 -> H256, batch 8", "MB", [ours], [stock], below=0.4)]


def step_memory(work: Path, side: str) -> float:
    import torch
    from sides import OurSide, StockSide, build_models, stock_batch

    vocabulary, batch = load_batch(work, 8)
    models, device = build_models("RBT6 -> H256", vocabulary, torch.device("cpu")), torch.device("cpu")
    if side == "ours":
        trained = OurSide(models, device, str(work / "out"), train_batch_size=8)
    else:
        trained, batch = StockSide(models, device, str(work / "out")), stock_batch(batch)
    before = maximum_mb(resource.getrusage(resource.RUSAGE_SELF))
    for _ in range(2):
        trained.step(batch)
    return maximum_mb(resource.getrusage(resource.RUSAGE_SELF)) - before


def loader_stage(work: Path, args) -> list[Row]:
    """The training loop of train.py with its loader, and with one batch again and again; --bf16, whose steps are the shorter ones."""
    import torch
    from my_datasets import TrainingBatches
    from sides import OurSide, build_models

    tokenizer, dataset, masker = load_data(work)
    steps, size = 6, 4
    device = torch.device("cpu")
    models = build_models("RBT6 -> H256", len(tokenizer), device)
    side = OurSide(models, device, str(work / "out"), train_batch_size=size, bf16=True, num_train_steps=steps, ckpt_steps=steps)
    batches = TrainingBatches(dataset, masker, 1, size)
    ready = [batches[0]] * steps
    seconds = rounds(args, lambda: train_loop(side, batches, steps, ready=None), lambda: train_loop(side, batches, steps, ready))
    return [under("loader: training loop with it / with one ready batch", "s", *seconds, below=1.03)]


def train_loop(side, batches, steps: int, ready: list[dict] | None) -> None:
    from torch.utils.data import DataLoader
    from transformers import get_constant_schedule_with_warmup

    loader = ready or DataLoader(batches, batch_size=None, sampler=range(steps))
    side.distiller.train(
        side.new_optimizer(),
        loader,
        num_steps=steps,
        max_grad_norm=1.0,
        scheduler_class=get_constant_schedule_with_warmup,
        scheduler_args={"num_warmup_steps": 1},
        callback=lambda *state: None,
    )


# ---------------------------------------------------------------- batches


def masking_stage(work: Path, args) -> list[Row]:
    import numpy as np
    from my_datasets import _dense
    from python_collator import PythonCollator

    tokenizer, dataset, masker = load_data(work)
    ours_count, peer_count, size = 2048, 64, 32
    indices = np.arange(ours_count) % len(dataset)
    read = dataset[indices.tolist()]
    lengths = np.fromiter(map(len, read["input_ids"]), np.int64, ours_count)
    ids, continues = (_dense(read[column], lengths, masker.content_length) for column in ("input_ids", "continues"))
    epochs = np.arange(ours_count)

    examples = [
        {"input_ids": [tokenizer.cls_token_id, *row[:n], tokenizer.sep_token_id], "chinese_ref": (np.flatnonzero(flags[:n]) + 1).tolist()}
        for row, flags, n in zip(ids[:peer_count].tolist(), continues, lengths)
    ]
    collate = PythonCollator(tokenizer)

    def ours():
        for start in range(0, ours_count, size):
            part = slice(start, start + size)
            masker(ids[part], continues[part], lengths[part], epochs[part], indices[part])

    def peer():
        for start in range(0, peer_count, size):
            collate(examples[start : start + size])

    ours_seconds, peer_seconds = rounds(args, ours, peer)
    peer_rates = [peer_count / seconds for seconds in peer_seconds]
    return [rate("masking, one core", [ours_count / s for s in ours_seconds], 20_000, peer_rates, 25)]


def shards_stage(work: Path, args) -> list[Row]:
    """Random rows, 32 at a time, as masked_batch reads them; the peer reads the same rows as datasets gives them, as Python lists."""
    import numpy as np
    from datasets import concatenate_datasets

    _, dataset, _ = load_data(work)
    dataset = concatenate_datasets([dataset] * (1 + 20_000 // len(dataset))).with_format("numpy")
    draws = np.random.default_rng(1).integers(len(dataset), size=(300, 32)).tolist()
    plain = dataset.with_format(None)

    ours_seconds, peer_seconds = rounds(args, lambda: [dataset[draw] for draw in draws], lambda: [plain[draw] for draw in draws[:30]])
    peer_rates = [30 * 32 / seconds for seconds in peer_seconds]
    stored = json.loads((work / "shards/sample/shard.json").read_text())
    return [
        rate("shard reading, one core", [300 * 32 / seconds for seconds in ours_seconds], 50_000, peer_rates),
        at_most("shard on disk", "bytes a token", stored["bytes"] / stored["tokens"], 2.2),
    ]


# ---------------------------------------------------------------- text -> shards, text -> references


def my_datasets_stage(work: Path, args) -> list[Row]:
    from my_datasets import load_shards
    from utils import load_tokenizer, read_data_json

    tokenizer, files, lines = load_tokenizer(work / "bert"), read_data_json(work / "sample.json")["train"], sample_lines(work)
    fresh = iter(range(1000))
    seconds = rounds(
        args,
        lambda: load_shards(files, work / f"shards{next(fresh)}", LENGTH, tokenizer, progress=False),
        lambda: tokenizer.backend_tokenizer.encode_batch_fast(lines, add_special_tokens=False),
    )
    return [under("my_datasets / the fast tokenizer alone, one process", "s", *seconds, below=1.4)]


def references_stage(work: Path, args) -> list[Row]:
    """The whole script against the sum of its two floors, each alone, which load their models as well."""
    import run_chinese_ref
    from ltp_extension.perceptron import CWSModel
    from utils import load_tokenizer

    lines, weights = sample_lines(work), str(run_chinese_ref.read_ltp_directory(work / "ltp").weights)
    arguments = ["run_chinese_ref.py", "--overwrite"]
    for name, value in (("data_files_json", work / "sample.json"), ("ltp", work / "ltp"), ("bert", work / "bert")):
        arguments += [f"--{name}", str(value)]

    def ours():
        with mock.patch.object(sys, "argv", arguments):
            run_chinese_ref.main()

    ours_seconds, words, encodings = rounds(
        args,
        ours,
        lambda: CWSModel.load(weights).batch_predict(lines, parallelism=True),
        lambda: load_tokenizer(work / "bert").backend_tokenizer.encode_batch(lines),
    )
    floor = [sum(both) for both in zip(words, encodings)]
    return [under("run_chinese_ref, legacy LTP / LTP + fast tokenizer", "s", ours_seconds, floor, below=1.3)]


def neural_stage(work: Path, args) -> list[Row]:
    """Segmentation with a neural model of 12 layers of size 256, random weights; the peer takes 50 lines at a time in their order."""
    from run_chinese_ref import CHINESE_PAIR, MAX_CHARACTERS, covering, load_segmenter, read_ltp_directory, words_of

    lines = [line for line in sample_lines(work) if len(line) < MAX_CHARACTERS - 10 and CHINESE_PAIR.search(line)]
    lines = random.Random(1).sample(lines, 100)
    write_neural_ltp(work / "neural", work / "bert", lines)
    segment, found = load_segmenter(read_ltp_directory(work / "neural")), {}

    def ours():
        found["ours"] = words_of(lines, segment)

    def peer():
        batches = (lines[first : first + 50] for first in range(0, len(lines), 50))
        words = chain.from_iterable(segment.model.pipeline(batch, tasks=["cws"]).cws for batch in batches)
        found["peer"] = list(chain.from_iterable(map(covering, lines, words)))

    args.rounds = 1 if not args.full else args.rounds  # the peer takes many seconds a round
    ours_seconds, peer_seconds = rounds(args, ours, peer)
    if found["ours"] != found["peer"]:
        raise UserError("neural LTP: the words differ from those of batches of 50 lines")
    return [faster("run_chinese_ref, neural LTP / batches of 50 unsorted lines", ours_seconds, peer_seconds, 3.0)]


def write_neural_ltp(directory: Path, bert: Path, lines: list[str]) -> None:
    """A neural LTP directory of the published small size with random weights, which give the lines about as many tags of either kind."""
    import torch
    from ltp.nerual import LTP
    from transformers import BertTokenizer

    size = {"embedding_size": 128, "hidden_size": 256, "num_hidden_layers": 12, "num_attention_heads": 4, "intermediate_size": 1024}
    tokenizer, target = BertTokenizer.from_pretrained(str(bert)), "ltp_core.models."
    backbone = {"model_type": "electra", "vocab_size": len(tokenizer), "max_position_embeddings": 512, **size}
    head = {"_ltp_target_": target + "components.token.MLPTokenClassifier", "input_size": 256, "num_labels": 2, "dropout": 0.1}
    config = {
        "nerual": True,  # LTP's spelling
        "vocabs": {"cws": ["I-W", "B-W"]},
        "model": {
            "_ltp_target_": target + "ltp_model.LTPModule",
            "backbone": {"_ltp_target_": target + "utils.transformer.load_transformers", "config": backbone},
            "processor": {"cws": {"_ltp_target_": target + "processor.TokenOnly"}},
            "heads": {"cws": head},
        },
    }
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    shutil.copy(bert / "vocab.txt", directory)
    torch.manual_seed(1)
    model = LTP(config=config).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        scores = []
        for line in lines:
            inputs = tokenizer([line], return_tensors="pt")
            hidden, mask = model.processor["cws"](model.backbone(**inputs), inputs["attention_mask"])
            inside, begins = model.task_heads["cws"](hidden).logits[mask].T
            scores.append(begins - inside)
        middle = torch.cat(scores).sort().values.chunk(5)[2]
        widest = middle.diff().argmax()  # no token may lie so near to the boundary that padding turns it
        list(model.task_heads["cws"].parameters())[-1][0] += middle[widest : widest + 2].mean()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


def text_memory_stage(work: Path, args) -> list[Row]:
    """Peak memory of both scripts on a text and on one of half its size."""
    sample, refs = (work / "sample.txt").read_bytes(), (work / "sample.refs").read_bytes()
    megabytes = (100, 200) if args.full else (8, 16)
    peaks = {"my_datasets.py": [], "run_chinese_ref.py": []}
    for size in megabytes:
        times = max(1, round(size * 1e6 / len(sample)))
        for old in work.glob("long.*"):
            old.unlink()
        for name, content in (("long.txt", sample), ("long.refs", refs)):
            with open(work / name, "wb") as file:
                for _ in range(times):
                    file.write(content)
        text = {"data_files_json": data_json(work, "long")}
        peaks["my_datasets.py"].append(script(work, "my_datasets.py", **text, data_cache_dir=work / "long", tokenizer=work / "bert"))
        (work / "long.refs").unlink()
        peaks["run_chinese_ref.py"].append(script(work, "run_chinese_ref.py", **text, ltp=work / "ltp", bert=work / "bert"))
    return [
        under(f"{name[:-3]}, peak memory on {megabytes[1]} MB / on {megabytes[0]} MB", "MB", [peak], [half], below=1.1, limit=limit)
        for (name, (half, peak)), limit in zip(peaks.items(), (1000, 1500))
    ]


STAGES = {
    "step": step_stage,
    "memory": memory_stage,
    "masking": masking_stage,
    "shards": shards_stage,
    "loader": loader_stage,
    "my_datasets": my_datasets_stage,
    "references": references_stage,
    "neural": neural_stage,
    "text_memory": text_memory_stage,
}
ONE_CORE = {"masking", "shards", "my_datasets"}

if __name__ == "__main__":
    run_script(main)
