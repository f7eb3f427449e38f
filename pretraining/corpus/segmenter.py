"""Words of lines, from a local LTP model, legacy or neural."""

import hashlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from ltp_extension.algorithms import StnSplit
from ltp_extension.perceptron import CWSModel

from pretraining.corpus.files import CODE_KEYS, file_facts, read_json, require_file
from pretraining.corpus.tokenizer import CHINESE_RANGES
from pretraining.utils import UserError

MAX_CHARACTERS = 510  # of one part of a line; LTP's neural models see 512 tokens with [CLS] and [SEP]
MAX_TOKENS = 512
CHINESE_PAIR = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in CHINESE_RANGES) + "]{2}")

# What the config.json of a neural LTP directory may call: the model, its backbone by transformers' AutoConfig, and LTP's own layers.
LTP_TARGETS = frozenset(
    f"ltp_core.models.{name}"
    for name in (
        "ltp_model.LTPModule",
        "utils.load_transformers",
        "utils.transformer.load_transformers",
        "processor.NOP",
        "processor.TokenOnly",
        "processor.WordsOnly",
        "processor.ClsOnly",
        "processor.WordsWithHead",
        "components.sent.MLPClassifier",
        "components.token.MLPTokenClassifier",
        "components.token.RelTransformerTokenClassifier",
        "components.token.BiaffineTokenClassifier",
        "components.graph.BiaffineClassifier",
    )
)
LTP_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# Takes the parts of lines; yields (index of the part, its words) in any order. The words of a part, joined, are the part.
Segment = Callable[[list[str]], Iterable[tuple[int, list[str]]]]

# ---------------------------------------------------------------- lines -> words


def words_of(lines: list[str], segment: Segment, report: Callable[[int], object] = lambda lines_done: None) -> list[str]:
    """Segments a batch of lines.

    Args:
        report: called with 1 for every line that is finished.

    Returns:
        the words of all lines, in order. Joined, they are the lines joined; no word crosses the end of a line.
    """
    words: list[list[str]] = []
    parts: list[str] = []
    positions, is_last_of_line = [], []
    for line in lines:
        line_parts = split_line(line)
        for part in line_parts:
            if CHINESE_PAIR.search(part):
                parts.append(part)
                positions.append(len(words))
                is_last_of_line.append(part is line_parts[-1])
            words.append([part])  # without two Chinese characters in a row there is nothing to mark
    for index, part_words in segment(parts):
        words[positions[index]] = part_words
        if is_last_of_line[index]:
            report(1)
    return list(chain.from_iterable(words))


def split_line(line: str) -> list[str]:
    """Splits a line into parts of at most ``MAX_CHARACTERS``, at the ends of sentences where it can; joined, they are the line."""
    if len(line) <= MAX_CHARACTERS:
        return [line] if line else []
    sentences = StnSplit().split(line)
    if "".join(sentences) != line:  # it drops carriage returns
        sentences = [line]
    parts = []
    for sentence in sentences:
        parts += [sentence[first : first + MAX_CHARACTERS] for first in range(0, len(sentence), MAX_CHARACTERS)]
    return parts


def restore_leading_space(part: str, words: list[str]) -> list[str]:
    """Restores, as a word of its own, the leading white space or control characters that LTP drops."""
    text = "".join(words)
    if not part.endswith(text):
        raise RuntimeError(f"LTP's words {words} are not those of {part!r}")
    return words if len(text) == len(part) else [part[: len(part) - len(text)], *words]


# ---------------------------------------------------------------- LTP directories


class LtpDirectory(NamedTuple):
    """A local LTP model.

    Attributes:
        files: all files that decide its words; config.json and the weights come first.
    """

    path: Path
    config: dict[str, Any]
    is_neural: bool
    files: tuple[Path, ...]

    @property
    def weights(self) -> Path:
        return self.files[1]

    def sha256(self) -> str:
        """Fingerprint (hex) of all its files."""
        return hashlib.sha256("".join(f"{file.name} {file_facts(file).sha256}\n" for file in self.files).encode()).hexdigest()


def read_ltp_directory(path: str | Path) -> LtpDirectory:
    """Checks a directory of either kind of LTP model without loading the model.

    Raises:
        UserError: no LTP directory, no task "cws", a missing file, or a config.json that names code outside LTP.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"--ltp {path}: no such directory; give a local LTP directory (LTP 4.2.14 cannot load from the hub with today's hub client: "
            "download the model's files first)"
        )
    config_file = path / "config.json"
    config = read_json(config_file, "the config.json of an LTP model")
    is_neural = config.get("nerual")  # LTP's spelling
    if is_neural is True:
        files = _neural_files(path, config_file, config)
    elif is_neural is False:
        files = _legacy_files(path, config_file, config)
    else:
        raise UserError(f'{config_file}: has no "nerual": true or false (their spelling), so this is no LTP model')
    return LtpDirectory(path, config, is_neural, (config_file, *files))


def _neural_files(path: Path, config_file: Path, config: dict[str, Any]) -> list[Path]:
    model = config.get("model")
    heads = model.get("heads") if isinstance(model, dict) else None
    if not isinstance(heads, dict) or "cws" not in heads:
        raise UserError(f'{config_file}: its model has no head "cws", so it does not segment words; give another LTP directory')
    refuse_foreign_code(config, config_file)
    weights = require_file(path / "pytorch_model.bin", "the weights of the LTP model")
    if not (path / "tokenizer.json").is_file():
        require_file(path / "vocab.txt", "the vocabulary of the LTP model")  # without one all characters would be unknown, silently
    return [weights, *(path / name for name in LTP_TOKENIZER_FILES if (path / name).is_file())]


def _legacy_files(path: Path, config_file: Path, config: dict[str, Any]) -> list[Path]:
    tasks = config.get("tasks")
    if not isinstance(tasks, dict) or not isinstance(tasks.get("cws"), str):
        raise UserError(f'{config_file}: names no model file for the task "cws", so it does not segment words; give another LTP directory')
    return [require_file(path / tasks["cws"], "the weights of the LTP model")]


def refuse_foreign_code(value: Any, where: Path) -> None:
    """Raises UserError if a neural LTP config names anything to call but LTP's own layers: LTP would import and call it."""
    if isinstance(value, list):
        for item in value:
            refuse_foreign_code(item, where)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "_ltp_target_" and str(item) not in LTP_TARGETS:
            raise UserError(f"{where}: would call {item!r}, which is no part of an LTP model; refused, do not use this directory")
        if key.lstrip("_") in CODE_KEYS:
            raise UserError(f"{where}: has the key {key!r}, which can run code from elsewhere; refused, do not use this directory")
        refuse_foreign_code(item, where)


# ---------------------------------------------------------------- LTP models


def gpus_for(ltp: LtpDirectory) -> int:
    """How many GPUs of this machine the model can use."""
    if not ltp.is_neural:
        return 0
    import torch  # takes seconds to import, and a legacy model needs none of it

    return torch.cuda.device_count()


def load_segmenter(ltp: LtpDirectory) -> Segment:
    """Loads an LTP model; raises UserError if its weights do not fit or would run code."""
    return _load_neural(ltp) if ltp.is_neural else _load_legacy(ltp)


def _load_legacy(ltp: LtpDirectory) -> Segment:
    # A damaged model file aborts the process that loads it, so another process tries first.
    attempt = "import sys; from ltp_extension.perceptron import CWSModel; CWSModel.load(sys.argv[1]).predict(sys.argv[2])"
    if subprocess.run([sys.executable, "-c", attempt, str(ltp.weights), "词"], capture_output=True).returncode:
        raise UserError(f"{ltp.weights}: is no LTP word segmentation model, or a damaged one; download or train it again")
    model = CWSModel.load(str(ltp.weights))
    return lambda parts: enumerate(map(restore_leading_space, parts, model.batch_predict(parts, parallelism=True)))


def _load_neural(ltp: LtpDirectory) -> Segment:
    # torch, transformers and ltp take four seconds to import, and a legacy model needs none of them.
    import torch
    from ltp.nerual import LTP
    from transformers import AutoTokenizer

    try:
        weights = torch.load(ltp.weights, map_location="cpu", weights_only=True)
    except Exception:  # a stranger's file can raise anything
        raise UserError(f"{ltp.weights}: is damaged or holds more than tensors, which could run code; refused, download it again") from None
    try:
        model = LTP(config=ltp.config)
        model.tokenizer = AutoTokenizer.from_pretrained(
            str(ltp.path), config=model.model.backbone.config, trust_remote_code=False, local_files_only=True
        )
        vocabulary = model.model.backbone.config.vocab_size
        if len(model.tokenizer) > vocabulary:
            raise ValueError(f"its tokenizer has {len(model.tokenizer)} tokens, its config.json {vocabulary}")
        misfit = model.model.load_state_dict(weights, strict=False)
    except Exception as error:
        raise UserError(f"{ltp.path}: LTP cannot load this model ({type(error).__name__}: {str(error)[:300]})") from None
    _check_fit(ltp, misfit.missing_keys, misfit.unexpected_keys)
    if not hasattr(model.tokenizer, "batch_encode_plus"):  # gone in transformers 5, still called by LTP
        model.tokenizer.batch_encode_plus = model.tokenizer.__call__
    on_gpu = torch.cuda.is_available()
    model.to("cuda" if on_gpu else "cpu").eval()
    print(f"segmenting with neural LTP on the {torch.cuda.get_device_name() if on_gpu else 'CPU'}")
    return NeuralSegmenter(model, budget=1 << 15 if on_gpu else MAX_TOKENS)


def _check_fit(ltp: LtpDirectory, missing: list[str], unexpected: list[str]) -> None:
    unexpected = [name for name in unexpected if not name.endswith("position_ids")]  # older transformers stored these
    names = [*missing, *unexpected]
    if names:
        what = "lacks" if missing else "has, which the model does not,"
        raise UserError(f"{ltp.weights}: does not fit its config.json: it {what} {names[0]} ({len(names)} such names); get matching files")


class NeuralSegmenter:
    """Batches parts of similar length for a neural LTP model.

    Args:
        model: ltp.nerual.LTP.
        budget: tokens of a batch, padding included. On a CPU a batch of one long part is the fastest.
    """

    def __init__(self, model: Any, budget: int):
        self.model = model
        self.budget = budget
        self.counter = type(model.tokenizer.backend_tokenizer).from_str(model.tokenizer.backend_tokenizer.to_str())
        self.counter.no_truncation()  # a copy, since LTP switches both on at every call
        self.counter.no_padding()

    def __call__(self, parts: list[str]) -> Iterator[tuple[int, list[str]]]:
        lengths = [len(encoding) for encoding in self.counter.encode_batch_fast(parts)]
        batch: list[int] = []
        for length, index in sorted(zip(lengths, range(len(parts)))):
            if length > MAX_TOKENS:  # a Hangul syllable, for example, is up to three tokens
                yield index, self._words_of_halves(parts[index])
                continue
            if batch and (len(batch) + 1) * length > self.budget:
                yield from self._words(parts, batch)
                batch = []
            batch.append(index)
        if batch:
            yield from self._words(parts, batch)

    def _words_of_halves(self, part: str) -> list[str]:
        middle = len(part) // 2
        halves = sorted(self([part[:middle], part[middle:]]))
        return [word for _, words in halves for word in words]

    def _words(self, parts: list[str], batch: list[int]) -> Iterator[tuple[int, list[str]]]:
        texts = [parts[index] for index in batch]
        return zip(batch, map(restore_leading_space, texts, self.model.pipeline(texts, tasks=["cws"]).cws))
