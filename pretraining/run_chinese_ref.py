"""Text -> whole-word reference files, with LTP.

    python run_chinese_ref.py --ltp ./pretrained_model_path/ltp --bert ./pretrained_model_path/RoBERTa

Line i of a reference file belongs to line i of its text: a JSON list of the token positions, counting [CLS] as 0, of the Chinese
characters that continue a word, as in Chinese-BERT-wwm (arXiv:1906.08101). A word counts if it has two characters or more, all of
them Chinese and each a token of the BERT vocabulary. Beside each reference file lies ``<its name>.json``, the fingerprint of all that
made it: a file that is up to date is skipped, so a run that was stopped goes on when the same command is given again.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ltp_extension.algorithms import StnSplit
from ltp_extension.perceptron import CWSModel
from tqdm import tqdm
from utils import (
    TextAndRefs,
    UserError,
    file_facts,
    load_tokenizer,
    parse_one_line_errors,
    progress_bar,
    read_data_json,
    read_json,
    read_line_blocks,
    require_file,
    require_writable_place,
    run_script,
    sidecar_of,
    tokenizer_sha256,
    whole_file,
)

FORMAT = 1
MAX_CHARACTERS = 510  # of one part of a line; LTP's neural models see 512 tokens with [CLS] and [SEP]
MAX_TOKENS = 512
BATCH_CHARACTERS = 1 << 17  # an encoded character takes some 600 bytes, so 80 MB a batch

# The CJK ideographs, as BERT's own tokenizer counts them.
CHINESE_RANGES = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
CHINESE_PAIR = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in CHINESE_RANGES) + "]{2}")

# What a neural LTP directory's config.json may have called: the model, its backbone by transformers' AutoConfig, and LTP's own layers.
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
# Keys by which a backbone's config could have transformers fetch and run code from elsewhere (attention kernels of the hub too).
CODE_KEYS = ("auto_map", "trust_remote_code", "attn_implementation", "experts_implementation")
LTP_TOKENIZER_FILES = ("vocab.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")

# Takes the parts of lines, gives (index of the part, its words) in any order; the words, joined, are the part.
Segment = Callable[[list[str]], Iterable[tuple[int, list[str]]]]


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the whole-word reference files of all text files, with LTP.", allow_abbrev=False)
    parser.add_argument("--data_files_json", default="./jsons/data.json", help="the text files, train and dev, and their reference files")
    parser.add_argument("--ltp", default="./pretrained_model_path/ltp", help="directory of a legacy or neural LTP model")
    parser.add_argument("--bert", default="./pretrained_model_path/RoBERTa", help="directory of the BERT model, for its vocab.txt")
    parser.add_argument("--overwrite", action="store_true", help="make all reference files again, also those that are up to date")
    args = parse_one_line_errors(parser)

    files = list(chain.from_iterable(read_data_json(args.data_files_json).values()))
    check_outputs(files, args.overwrite)
    ltp = read_ltp_directory(args.ltp)
    tokenizer = load_tokenizer(args.bert)
    makers = {"format": FORMAT, "ltp_sha256": ltp.sha256(), "tokenizer_sha256": tokenizer_sha256(tokenizer)}

    to_do = []
    for file in tqdm(files, desc="reading the texts", unit=" files", leave=False):
        facts = file_facts(file.text)
        inputs = {**makers, "text_sha256": facts.sha256, "lines": facts.lines}
        if not args.overwrite and is_current(file.refs, inputs):
            tqdm.write(f"{file.refs}: up to date, skipped (--overwrite makes it again)")
            continue
        for _ in read_line_blocks(file.text):  # says now, not after hours of work, that line so-and-so is not valid
            pass
        to_do.append((file, inputs))
    if to_do:
        segment = load_segmenter(ltp)
        find_references = ReferenceFinder(tokenizer)
        for file, inputs in to_do:
            write_references(file, inputs, segment, find_references)


# ---------------------------------------------------------------- reference files and what is noted beside them


def check_outputs(files: list[TextAndRefs], overwrite: bool) -> None:
    """Checks that every reference file can be written and is no one else's."""
    texts = {file.text.resolve() for file in files}
    for _, refs in files:
        sidecar = sidecar_of(refs)
        if texts & {refs.resolve(), sidecar.resolve()}:
            raise UserError(f"{refs}: writing this reference file would overwrite a text file; give it another name")
        if refs.is_dir() or sidecar.is_dir():
            raise UserError(f"{refs}: a reference file is to be written here, but this name or {sidecar.name} is a directory")
        if refs.exists() and not sidecar.exists() and not overwrite:
            raise UserError(f"{refs}: was not made by this script (no {sidecar.name} beside it); move it away or give --overwrite")
        require_writable_place(refs.parent, f"{refs}:")


def is_current(refs: Path, inputs: dict) -> bool:
    if not (refs.is_file() and sidecar_of(refs).is_file()):
        return False
    return read_json(sidecar_of(refs), "the note beside a reference file (--overwrite makes both again)") == {
        **inputs,
        "refs_sha256": file_facts(refs).sha256,
    }


def write_references(file: TextAndRefs, inputs: dict, segment: Segment, find_references: "ReferenceFinder") -> None:
    """Writes one reference file and, just before it takes its place, the note of what made it."""
    begin, digest, read = time.perf_counter(), hashlib.sha256(), 0
    with (
        whole_file(file.refs, "wb") as output,
        progress_bar(total=inputs["lines"], desc=file.text.name, unit=" lines", unit_scale=True) as bar,
    ):
        for lines in chain.from_iterable(map(batches_of_lines, read_line_blocks(file.text))):
            read += len(lines)
            references = find_references(lines, words_of(lines, segment, bar.update))
            block = "".join(f"{reference}\n" for reference in references).encode()
            digest.update(block)
            output.write(block)
            bar.update(read - bar.n)  # lines with nothing to segment
        if read != inputs["lines"]:
            raise UserError(f"{file.text}: was changed while it was read; run again")
        with whole_file(sidecar_of(file.refs)) as sidecar:
            sidecar.write(json.dumps({**inputs, "refs_sha256": digest.hexdigest()}, indent=1) + "\n")
    seconds = time.perf_counter() - begin
    print(f"{file.refs}: {inputs['lines']:,} lines in {seconds:.1f} s, {inputs['lines'] / seconds:,.0f} lines/s")


def batches_of_lines(lines: list[str]) -> Iterator[list[str]]:
    """Cuts a list of lines into lists of about ``BATCH_CHARACTERS`` (an empty line costs memory as well)."""
    first = size = 0
    for number, line in enumerate(lines, start=1):
        size += len(line) + 16
        if size >= BATCH_CHARACTERS:
            yield lines[first:number]
            first, size = number, 0
    if first < len(lines):
        yield lines[first:]


# ---------------------------------------------------------------- lines -> words


def words_of(lines: list[str], segment: Segment, report: Callable[[int], object] = lambda done: None) -> list[str]:
    """Segments a batch of lines.

    Args:
        report: is told of every line that is done, as the number 1.

    Returns:
        the words of all lines, in order. Joined, they are the lines joined; no word reaches over the end of a line.
    """
    words: list[list[str]] = []
    parts, places, is_last = [], [], []
    for line in lines:
        line_parts = parts_of(line)
        for part in line_parts:
            if CHINESE_PAIR.search(part):
                parts.append(part)
                places.append(len(words))
                is_last.append(part is line_parts[-1])
            words.append([part])  # without two Chinese characters in a row there is nothing to mark
    for index, part_words in segment(parts):
        words[places[index]] = part_words
        if is_last[index]:
            report(1)
    return list(chain.from_iterable(words))


def parts_of(line: str) -> list[str]:
    """Cuts a line into parts of at most ``MAX_CHARACTERS``, at the ends of sentences where it can; joined, they are the line."""
    if len(line) <= MAX_CHARACTERS:
        return [line] if line else []
    sentences = StnSplit().split(line)
    if "".join(sentences) != line:  # it drops carriage returns
        sentences = [line]
    return [sentence[first : first + MAX_CHARACTERS] for sentence in sentences for first in range(0, len(sentence), MAX_CHARACTERS)]


def covering(part: str, words: list[str]) -> list[str]:
    """Puts back, as a word of its own, the leading white space or control characters that LTP leaves out."""
    text = "".join(words)
    if not part.endswith(text):
        raise RuntimeError(f"LTP's words {words} are not those of {part!r}")
    return words if len(text) == len(part) else [part[: len(part) - len(text)], *words]


# ---------------------------------------------------------------- words -> positions of tokens


class ReferenceFinder:
    """Maps words to the BERT tokens that continue them.

    Args:
        tokenizer: transformers.BertTokenizer. Its truncation and padding are switched off.
    """

    OTHER, CHINESE, SPACE = range(3)

    def __init__(self, tokenizer):
        self.backend = tokenizer.backend_tokenizer
        self.backend.no_truncation()
        self.backend.no_padding()
        self.kinds = np.full(sys.maxunicode + 1, self.OTHER, np.uint8)
        for first, last in CHINESE_RANGES:
            self.kinds[first : last + 1] = self.CHINESE
        self.kinds[[code for code in range(0x3001) if chr(code).isspace()]] = self.SPACE  # U+3000 is the last there is
        self.is_chinese = np.zeros(self.backend.get_vocab_size(), bool)  # of a token: is one Chinese character, so not [UNK]
        for token, number in self.backend.get_vocab().items():
            self.is_chinese[number] = len(token) == 1 and self.kinds[ord(token)] == self.CHINESE

    def __call__(self, lines: list[str], words: list[str]) -> list[list[int]]:
        """Returns for each line the positions, [CLS] being 0, of the tokens that continue a word.

        Args:
            words: of all the lines, one after the other, covering them wholly, as :func:`words_of` gives them.
        """
        codes = np.frombuffer("".join(lines).encode("utf-32-le"), np.uint32)
        if not len(codes):
            return [[] for _ in lines]
        kinds = self.kinds[codes]
        line_ends = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))
        token_at = self._token_at(lines, np.flatnonzero(kinds == self.CHINESE), line_ends)

        word_ends = np.cumsum(np.fromiter(map(len, words), np.int64, len(words)))
        begins = np.zeros(len(codes), bool)
        begins[0] = True
        begins[word_ends[:-1]] = True
        is_space = kinds == self.SPACE  # LTP leaves white space inside words
        begins[1:] |= is_space[1:] | is_space[:-1]
        first = np.flatnonzero(begins)
        is_whole = np.logical_and.reduceat(token_at >= 0, first)
        continues = np.repeat(is_whole, np.diff(first, append=len(codes))) & ~begins

        positions = token_at[continues].tolist()
        last = np.append(0, np.cumsum(continues))[line_ends].tolist()
        return [positions[start:end] for start, end in zip([0, *last], last)]

    def _token_at(self, lines: list[str], chinese: np.ndarray, line_ends: np.ndarray) -> np.ndarray:
        """For each character the position within its line of the token that is this Chinese character, or -1; int64 (characters,).

        BERT's tokenizer takes each Chinese character by itself, so in a line with as many Chinese tokens as Chinese characters, at
        ``chinese``, these belong together in their order. Only the other lines need the offsets, which take longer.
        """
        encodings = self.backend.encode_batch_fast(lines)
        lengths = np.fromiter(map(len, encodings), np.int64, len(lines))
        ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int64, lengths.sum())
        tokens = np.flatnonzero(self.is_chinese[ids])
        token_ends = np.cumsum(lengths)
        line_of_token = np.searchsorted(token_ends, tokens, side="right")
        line_of_character = np.searchsorted(line_ends, chinese, side="right")
        is_plain = np.bincount(line_of_token, minlength=len(lines)) == np.bincount(line_of_character, minlength=len(lines))

        token_at = np.full(line_ends[-1], -1)
        plain = is_plain[line_of_token]
        token_at[chinese[is_plain[line_of_character]]] = (tokens - (token_ends - lengths)[line_of_token])[plain]
        others = np.flatnonzero(~is_plain)
        for number, encoding in zip(others, self.backend.encode_batch([lines[number] for number in others])):
            positions = np.flatnonzero(self.is_chinese[encoding.ids])
            starts = np.array(encoding.offsets)[positions, 0]
            token_at[line_ends[number] - len(lines[number]) + starts] = positions
        return token_at


# ---------------------------------------------------------------- LTP


class LtpDirectory(NamedTuple):
    """A local LTP model. ``files``: all that decides its words, config.json and the weights first."""

    path: Path
    config: dict
    is_neural: bool
    files: tuple[Path, ...]

    @property
    def weights(self) -> Path:
        return self.files[1]

    def sha256(self) -> str:
        return hashlib.sha256("".join(f"{file.name} {file_facts(file).sha256}\n" for file in self.files).encode()).hexdigest()


def read_ltp_directory(path: str | Path) -> LtpDirectory:
    """Checks a directory of either kind of LTP model, as far as that goes without loading it.

    Raises:
        UserError: it is none, lacks a file or the task "cws", or its config.json names code that is not LTP's own.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(
            f"--ltp {path}: no such directory; give a local LTP directory (LTP 4.2.14 cannot load from the hub with today's hub client: "
            "download the model's files first)"
        )
    config_file = path / "config.json"
    config = read_json(config_file, "the config.json of an LTP model")
    if config.get("nerual") is True:  # LTP's spelling
        model = config.get("model")
        heads = model.get("heads") if isinstance(model, dict) else None
        if not isinstance(heads, dict) or "cws" not in heads:
            raise UserError(f'{config_file}: its model has no head "cws", so it does not segment words; give another LTP directory')
        refuse_foreign_code(config, config_file)
        files = [require_file(path / "pytorch_model.bin", "the weights of the LTP model")]
        if not (path / "tokenizer.json").is_file():
            require_file(path / "vocab.txt", "the vocabulary of the LTP model")  # without one all characters would be unknown, silently
        files += [path / name for name in LTP_TOKENIZER_FILES if (path / name).is_file()]
    elif config.get("nerual") is False:
        tasks = config.get("tasks")
        if not isinstance(tasks, dict) or not isinstance(tasks.get("cws"), str):
            raise UserError(
                f'{config_file}: names no model file for the task "cws", so it does not segment words; give another LTP directory'
            )
        files = [require_file(path / tasks["cws"], "the weights of the LTP model")]
    else:
        raise UserError(f'{config_file}: has no "nerual": true or false (their spelling), so this is no LTP model')
    return LtpDirectory(path, config, config["nerual"], (config_file, *files))


def refuse_foreign_code(value, where: Path) -> None:
    """Raises UserError if a neural LTP config names anything to call but LTP's own layers: LTP would import and call it."""
    if isinstance(value, list):
        for item in value:
            refuse_foreign_code(item, where)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key == "_ltp_target_" and str(item) not in LTP_TARGETS:
            raise UserError(f"{where}: would have {item!r} called, which is no part of an LTP model; refused, do not use this directory")
        if key.lstrip("_") in CODE_KEYS:
            raise UserError(f"{where}: has the key {key!r}, which can have code from elsewhere run; refused, do not use this directory")
        refuse_foreign_code(item, where)


def load_segmenter(ltp: LtpDirectory) -> Segment:
    """Loads an LTP model; raises UserError if its weights do not fit or would run code."""
    return load_neural(ltp) if ltp.is_neural else load_legacy(ltp)


def load_legacy(ltp: LtpDirectory) -> Segment:
    # A damaged model file aborts the process that loads it, so that another one tries first.
    attempt = "import sys; from ltp_extension.perceptron import CWSModel; CWSModel.load(sys.argv[1]).predict(sys.argv[2])"
    if subprocess.run([sys.executable, "-c", attempt, str(ltp.weights), "词"], capture_output=True).returncode:
        raise UserError(f"{ltp.weights}: is no LTP word segmentation model, or a damaged one; get or train it again")
    model = CWSModel.load(str(ltp.weights))
    return lambda parts: enumerate(map(covering, parts, model.batch_predict(parts, parallelism=True)))


def load_neural(ltp: LtpDirectory) -> Segment:
    import torch
    from ltp.nerual import LTP
    from transformers import AutoTokenizer

    try:
        weights = torch.load(ltp.weights, map_location="cpu", weights_only=True)
    except Exception:  # a stranger's file can raise anything
        raise UserError(f"{ltp.weights}: is damaged or holds more than tensors, which could run code; refused, get it again") from None
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
    unexpected = [name for name in misfit.unexpected_keys if not name.endswith("position_ids")]  # older transformers stored these
    if misfit.missing_keys or unexpected:
        name = (misfit.missing_keys + unexpected)[0]
        lacks = "lacks" if misfit.missing_keys else "has, which the model does not,"
        count = len(misfit.missing_keys) + len(unexpected)
        raise UserError(f"{ltp.weights}: does not fit its config.json: it {lacks} {name} ({count} such names); get matching files")
    if not hasattr(model.tokenizer, "batch_encode_plus"):  # gone in transformers 5, still called by LTP
        model.tokenizer.batch_encode_plus = model.tokenizer.__call__
    on_gpu = torch.cuda.is_available()
    model.to("cuda" if on_gpu else "cpu").eval()
    print(f"segmenting with neural LTP on the {torch.cuda.get_device_name() if on_gpu else 'CPU'}")
    return NeuralSegmenter(model, budget=1 << 15 if on_gpu else MAX_TOKENS)


class NeuralSegmenter:
    """Batches parts of like length for a neural LTP model.

    Args:
        model: ltp.nerual.LTP.
        budget: tokens of a batch, padding included. On a CPU the batch of one long part is the fastest.
    """

    def __init__(self, model, budget: int):
        self.model = model
        self.budget = budget
        self.counter = type(model.tokenizer.backend_tokenizer).from_str(model.tokenizer.backend_tokenizer.to_str())
        self.counter.no_truncation()  # a copy, since LTP switches both on at every call
        self.counter.no_padding()

    def __call__(self, parts: list[str]) -> Iterator[tuple[int, list[str]]]:
        lengths = [len(encoding) for encoding in self.counter.encode_batch_fast(parts)]
        batch: list[int] = []
        for length, index in sorted(zip(lengths, range(len(parts)))):
            if length > MAX_TOKENS:  # Hangul, say, is up to three tokens a syllable
                middle = len(parts[index]) // 2
                halves = sorted(self([parts[index][:middle], parts[index][middle:]]))
                yield index, [word for _, words in halves for word in words]
                continue
            if batch and (len(batch) + 1) * length > self.budget:
                yield from self._words(parts, batch)
                batch = []
            batch.append(index)
        if batch:
            yield from self._words(parts, batch)

    def _words(self, parts: list[str], batch: list[int]) -> Iterator[tuple[int, list[str]]]:
        texts = [parts[index] for index in batch]
        return zip(batch, map(covering, texts, self.model.pipeline(texts, tasks=["cws"]).cws))


if __name__ == "__main__":
    run_script(main)
