"""References: the published algorithm's words at the right tokens, for every part of every line; up to date, refused or made again."""

import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import unicodedata
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from transformers import BertTokenizer

from pretraining import run_chinese_ref
from pretraining.corpus import reference_files, segmenter
from pretraining.corpus.files import file_facts
from pretraining.corpus.references import ReferenceFinder
from pretraining.corpus.segmenter import load_segmenter, read_ltp_directory, split_line, words_of
from pretraining.corpus.tokenizer import tokenizer_sha256
from pretraining.scripts import train_segmenter
from tests import tiny, workplace

SEGMENTED = Path(run_chinese_ref.__file__).parent / "dataset" / "segmented"
RARE = "龘"  # no token of the vocabulary
PECULIAR = [
    "",
    "   ",
    "\u3000\u3000他们在北京大学 学习 汉语 。",
    "\t我们\t喜欢\u00a0图书馆\t",
    "第一行\u2028第二行仍然是\u0085这一行\x0b和\x0c这里",
    "他们用 model 和 token 训练 BERT-wwm，2026 年 12 月",
    "今天天气很好😀我们🏳️‍🌈一起去公园👍🏽吧",
    "请把[MASK]换成词语[MASK]老师",
    "[CLS]老师说[SEP]学校[UNK]的图书馆[PAD]",
    "한국의 단오 와 北京 的 학교",
    f"北京{RARE}学校和老师{RARE}{RARE}",
    "\uf900有此理，\U0002f800\uf9d0朋友",
    "𠀀𠀁北京大学𠮷",
    "café résumé e\u0301 老\u0301师 naïve",
    "\u200b老师\u200b们\ufeff今天\x01没有\x7f来",
    "ＡＢＣ１２３全角，“引号”没有关上的“老师",
    "１，０００万元老师",
]


class Made(NamedTuple):
    """What the tests of this file read: an LTP directory, a vocabulary and its tokenizer, plain sentences."""

    ltp: Path
    neural: Path
    bert: Path
    tokenizer: BertTokenizer
    sentences: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    directory = tmp_path_factory.mktemp("references")
    train, dev = (train_segmenter.read_sentences(str(SEGMENTED / name)) for name in ("segmented.txt", "segmented_dev.txt"))
    train_segmenter.save_model(train_segmenter.train_model(train, dev), directory / "ltp")
    sentences = ["".join(words) for words in train + dev]
    characters = sorted(set(unicodedata.normalize("NFC", "".join(sentences + PECULIAR))) - {" ", RARE})
    letters = [prefix + chr(code) for code in range(0x1100, 0x1200) for prefix in ("", "##")]  # of which Hangul syllables consist
    tiny.write_vocabulary(directory / "bert", [c for c in characters if c.isprintable() and not c.isspace()] + letters)
    write_neural(directory / "neural", directory / "bert" / "vocab.txt", sentences[:100])
    return Made(directory / "ltp", directory / "neural", directory / "bert", BertTokenizer.from_pretrained(directory / "bert"), sentences)


def write_neural(directory: Path, vocabulary: Path, sentences: list[str]) -> None:
    """A neural LTP directory with random weights, so large that a tag hangs on its surroundings, and as many tags of either kind."""
    from ltp.nerual import LTP

    directory.mkdir()
    tokenizer = BertTokenizer.from_pretrained(vocabulary.parent)
    shutil.copy(vocabulary, directory / "vocab.txt")
    config = workplace.neural_config(len(tokenizer))
    (directory / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = LTP(config=config).model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        inputs = tokenizer(sentences, padding=True, return_tensors="pt")
        hidden, mask = model.processor["cws"](model.backbone(**inputs), inputs["attention_mask"])
        head = model.task_heads["cws"]
        continues, begins = head(hidden).logits[mask].T
        list(head.parameters())[-1][0] += (begins - continues).median()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")


@pytest.fixture(scope="module")
def legacy(made):
    return load_segmenter(read_ltp_directory(made.ltp))


@pytest.fixture(scope="module")
def neural(made):
    return load_segmenter(read_ltp_directory(made.neural))


@pytest.fixture(scope="module")
def find(made) -> ReferenceFinder:
    return ReferenceFinder(made.tokenizer)


def is_chinese(character: str) -> bool:
    """Whether Unicode names it an ideograph of the ranges that BERT counts, told by its name and not by a table."""
    return unicodedata.name(character, "").startswith(("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH"))


def by_hand(line: str, words: list[str], tokenizer) -> list[int]:
    """The references of a line, a character at a time; ``words`` may lack the line's beginning."""
    encoding = tokenizer(line, truncation=False)
    found, place = [], len(line) - len("".join(words))
    for word in words:
        for piece in word.split():
            start = line.index(piece, place)
            tokens = [encoding.char_to_token(start + index) for index in range(len(piece))]
            known = all(token is not None and encoding.input_ids[token] != tokenizer.unk_token_id for token in tokens)
            if known and len(piece) > 1 and all(map(is_chinese, piece)):
                found += tokens[1:]
            place = start + len(piece)
    return found


def published(line: str, words: list[str], tokenizer) -> list[int]:
    """The published algorithm, from its description: in the BERT tokens the longest words of LTP's set, from left to right."""
    wanted = {word for word in words if len(word) > 1 and all(map(is_chinese, word))}
    tokens = ["[CLS]", *tokenizer.tokenize(line), "[SEP]"]
    longest, found, place = max(map(len, wanted), default=0), [], 0
    while place < len(tokens):
        step = 1
        if is_chinese(tokens[place][0]):
            for length in range(min(longest, len(tokens) - place), 1, -1):
                if "".join(tokens[place : place + length]) in wanted:
                    found += range(place + 1, place + length)
                    step = length
                    break
        place += step
    return found


def greedy_is_unambiguous(line: str, words: list[str]) -> bool:
    """Whether the words of LTP's set stand in the line where LTP found them and nowhere else."""
    place, spans = 0, set()
    for word in words:
        spans.add((place, place + len(word)))
        place += len(word)
    wanted = {word for word in words if len(word) > 1}
    return all((place, place + len(word)) in spans for word in wanted for place in range(len(line)) if line.startswith(word, place))


# ---------------------------------------------------------------- words and tokens


@pytest.mark.parametrize(
    "line, words, expected",
    [
        ("我们喜欢北京。", "我们|喜欢|北京|。", [2, 4, 6]),
        ("图书馆在学校", "图书馆|在|学校", [2, 3, 6]),
        ("我用model训练", "我|用|model|训练", [5]),
        ("我有tokens和2026年", "我|有|tokens|和|2026|年", []),
        ("在2026年1月训练", "在|2026年|1月|训练", [7]),  # 2026 is one token here
        ("2620训练", "2620|训练", [3]),  # 2620 is [UNK]
        ("trains老师", "trains|老师", [4]),  # train ##s
        ("请看[MASK]老师", "请|看|[MASK]|老师", [5]),
        (f"北{RARE}老师", f"北{RARE}|老师", [4]),  # a word with a character that is [UNK] is not marked
        (f"老师{RARE}", f"老师{RARE}", []),
        ("T恤衫老师", "T恤衫|老师", [5]),
        ("北京 大学", "北京 大学", [2, 4]),  # white space inside LTP's word ends it
        ("他 叫 老师", "他 叫 |老师", [4]),
        ("北\u2028京\u3000老师\t", "北\u2028京\u3000|老师\t", [4]),
        ("\uf900有", "\uf900有", [2]),  # compatibility ideographs become unified ones, which are in the vocabulary
        ("\U0002f800有\uf9d0", "\U0002f800有\uf9d0", [2, 3]),
        ("𠮷𠀀老师", "𠮷𠀀|老师", [2, 4]),
        ("한국老师", "한국|老师", [8]),  # two syllables, six letters
        ("老\u0301师", "老\u0301师", []),
        ("😀老师👍🏽", "😀|老师|👍🏽", [3]),
        ("\u200b老师", "\u200b|老师", [2]),
        ("", "", []),
        (" \t", " \t", []),
    ],
)
def test_positions(find, line, words, expected):
    assert find([line], [word for word in words.split("|") if word]) == [expected]


def test_lines_do_not_touch_each_other(find):
    assert find(["北京", "", "大学", "", ""], ["北京", "大学"]) == [[2], [], [2], [], []]
    assert find(["北", "京", " "], ["北", "京", " "]) == [[], [], []]
    assert find([], []) == []


def test_equal_to_the_published_algorithm_where_greedy_matching_is_unambiguous(made, legacy, find):
    lines = [f"{a}{b}" for a, b in zip(made.sentences, reversed(made.sentences)) if not set(f"{a}{b}") & set(" \t")]
    segmented = dict(legacy(lines))
    clear = [index for index, line in enumerate(lines) if greedy_is_unambiguous(line, segmented[index])]
    assert len(clear) > 200
    references = find(lines, words_of(lines, legacy))
    assert [references[index] for index in clear] == [published(lines[index], segmented[index], made.tokenizer) for index in clear]
    assert sum(map(len, references)) > 4 * len(lines)


def test_peculiar_lines_equal_a_character_by_character_count(made, legacy, find):
    """Each line, and pairs and random mixtures of them, against char_to_token."""
    draw = random.Random(0)
    characters = list("".join(PECULIAR)) + ["[MASK]", "老师", "北京"]
    lines = PECULIAR + [a + b for a in PECULIAR for b in PECULIAR]
    lines += ["".join(draw.choices(characters, k=draw.randint(1, 60))) for _ in range(300)]
    model = segmenter.CWSModel.load(str(made.ltp / "cws_model.bin"))
    expected = [by_hand(line, model.predict(line), made.tokenizer) for line in lines]
    assert find(lines, words_of(lines, legacy)) == expected
    assert sum(map(bool, expected)) > 300


def test_tokens_are_never_truncated_or_padded(made):
    tokenizer = BertTokenizer.from_pretrained(made.bert)
    tokenizer.backend_tokenizer.enable_truncation(16)
    tokenizer.backend_tokenizer.enable_padding()
    references = ReferenceFinder(tokenizer)(["我们喜欢北京。" * 20, "北京"], ["我们", "喜欢", "北京", "。"] * 20 + ["北京"])
    assert references == [[position for place in range(0, 140, 7) for position in (place + 2, place + 4, place + 6)], [2]]


# ---------------------------------------------------------------- parts of lines


@pytest.mark.parametrize(
    "line, lengths",
    [
        ("", []),
        ("他" * 510, [510]),
        ("他" * 511, [510, 1]),
        ("他" * 299 + "。" + "她" * 299 + "！", [300, 300]),
        ("他" * 299 + "。" + "她" * 699 + "。", [300, 510, 190]),
        ("“" + "他" * 299 + "。" + "她" * 299, [510, 90]),  # an unclosed quote keeps the sentences together
        ("他" * 299 + "。\r" + "她" * 299 + "。", [510, 91]),  # a carriage return, which LTP's splitter drops
        ("\u2028" + "他" * 298 + "。" + "\u2028" * 3 + "她" * 299 + "。", [300, 303]),
        ("a" * 1200, [510, 510, 180]),
    ],
)
def test_parts(line, lengths):
    parts = split_line(line)
    assert list(map(len, parts)) == lengths and "".join(parts) == line


@pytest.mark.parametrize("kind", ["legacy", "neural"])
def test_words_cover_the_lines(made, kind, request):
    draw = random.Random(1)
    characters = [*"".join(PECULIAR), *"。！”“\r\u2028 ", *made.sentences]
    lines = PECULIAR + ["".join(draw.choices(characters, k=draw.choice([3, 30, 300]))) for _ in range(60)]
    assert max(map(len, lines)) > 2000
    words = words_of(lines, request.getfixturevalue(kind))
    assert "".join(words) == "".join(lines)
    ends = set(accumulated(words))
    assert ends >= set(accumulated(lines)) - {0}


def accumulated(texts: list[str]) -> list[int]:
    ends = [0]
    for text in texts:
        ends.append(ends[-1] + len(text))
    return ends


@pytest.mark.parametrize("kind, quote", [("legacy", ""), ("legacy", "“"), ("neural", "")])
def test_marked_share_past_token_510_is_that_of_the_first_510(made, find, kind, quote, request):
    """The quote is never closed, so that LTP's splitter leaves the line whole and it is cut at the limit."""
    sentences = random.Random(2).sample(made.sentences, 400)
    line = quote + "".join(sentences)
    assert len(line) > 5000
    segment = request.getfixturevalue(kind)
    references = find([line], words_of([line], segment))[0]
    tokens = len(made.tokenizer.tokenize(line))
    before = sum(position <= 510 for position in references) / 510
    after = sum(position > 510 for position in references) / (tokens - 510)
    assert 0.1 < before < 0.7
    assert after == pytest.approx(before, abs=0.06)


@pytest.mark.parametrize("kind", ["legacy", "neural"])
def test_a_line_of_5000_characters_equals_its_sentences(made, find, kind, request):
    segment = request.getfixturevalue(kind)
    sentences = [sentence for sentence in made.sentences if split_line(sentence * 40)[0] == sentence][:400]
    line = "".join(sentences)
    assert len(line) > 5000
    references, offset, expected = find([line], words_of([line], segment))[0], 0, []
    for sentence, found in zip(sentences, find(sentences, words_of(sentences, segment))):
        expected += [position + offset for position in found]
        offset += len(made.tokenizer.tokenize(sentence))
    assert references == expected


def test_batches_do_not_change_the_references(made, legacy, find, monkeypatch):
    lines = [line for pair in zip(made.sentences, PECULIAR * 100) for line in pair]
    whole = find(lines, words_of(lines, legacy))
    monkeypatch.setattr(reference_files, "BATCH_CHARACTERS", 100)
    batches = list(reference_files.batches_of_lines(lines))
    assert len(batches) > 200 and list(chain.from_iterable(batches)) == lines
    assert [reference for batch in batches for reference in find(batch, words_of(batch, legacy))] == whole


def test_progress_counts_each_line_once(made, legacy):
    lines = [*made.sentences[:50], "", "a", "".join(made.sentences)]
    done = []
    words_of(lines, legacy, done.append)
    assert done == [1] * 51


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_threads_do_not_leak(made, legacy):
    words_of(made.sentences, legacy)
    before = len(os.listdir("/proc/self/task"))
    for _ in range(100):
        words_of(made.sentences[:20], legacy)
    assert len(os.listdir("/proc/self/task")) == before


# ---------------------------------------------------------------- the neural model


def test_bucketed_batches_give_the_words_of_unsorted_ones(made, neural):
    lines = [a + b * 3 for a, b in zip(made.sentences[:300], made.sentences[100:])]
    pipeline, expected = neural.model.pipeline, []
    for first in range(0, len(lines), 50):
        expected += pipeline(lines[first : first + 50], tasks=["cws"]).cws
    words = dict(neural(lines))
    assert [words[index] for index in range(len(lines))] == expected
    assert len({len(word) for sentence in expected for word in sentence}) > 3


def test_batches_keep_to_the_budget_of_padded_tokens(made, neural, monkeypatch):
    sizes, pipeline = [], neural.model.pipeline

    def spy(texts, tasks):
        assert tasks == ["cws"]
        sizes.append(len(texts) * max(len(encoding) for encoding in neural.counter.encode_batch(texts)))
        return pipeline(texts, tasks=tasks)

    monkeypatch.setattr(neural.model, "pipeline", spy)
    list(neural(made.sentences))
    assert max(sizes) <= neural.budget == 512 and sum(sizes) / len(sizes) > 400


def test_nothing_is_glued_together_past_the_models_512_tokens(made, neural, find, monkeypatch):
    """Hangul syllables are up to three tokens each, so that 510 characters are over a thousand tokens."""
    part = ("한국의단오 " * 30 + "한국의단오老师我们喜欢北京。" * 40)[:510]
    assert len(made.tokenizer.tokenize(part)) > 800
    seen, pipeline = [], neural.model.pipeline
    monkeypatch.setattr(neural.model, "pipeline", lambda texts, tasks: seen.extend(texts) or pipeline(texts, tasks=tasks))
    [(index, words)] = neural([part])
    seen.sort(key=part.index)
    assert index == 0 and "".join(words) == "".join(seen) == part
    assert max(len(made.tokenizer(text).input_ids) for text in seen) <= 512
    assert words == [word for text in seen for word in pipeline([text], tasks=["cws"]).cws[0]]
    assert find([part], words_of([part], neural)) == [by_hand(part, words, made.tokenizer)]


def test_neural_references_equal_a_character_by_character_count(made, neural, find):
    lines = [line for line in PECULIAR if line.strip()] + made.sentences[:200]
    words = dict(neural(lines))
    expected = [by_hand(line, words[index], made.tokenizer) for index, line in enumerate(lines)]
    assert find(lines, words_of(lines, neural)) == expected and sum(map(bool, expected)) > 100


# ---------------------------------------------------------------- the script


@pytest.fixture
def place(made, tmp_path) -> Path:
    """A directory with two texts and the list of them."""
    (tmp_path / "a.txt").write_text("".join(f"{line}\n" for line in [*PECULIAR, *made.sentences[:50]]), encoding="utf-8", newline="\n")
    (tmp_path / "b.txt").write_text("\n\r\n我们喜欢北京。\r\n\n老师", encoding="utf-8", newline="\n")
    workplace.write_data_json(tmp_path, ["a.txt"], ["b.txt"])
    return tmp_path


@pytest.fixture
def run(made, place, capfd):
    """Runs the script on that directory; the keywords replace arguments."""

    def call(*more: str, **changes) -> workplace.Ended:
        line = workplace.command_line("run_chinese_ref.py", **{"ltp": made.ltp, "bert": made.bert, **changes})
        return workplace.run_here("run_chinese_ref.py", [*line, *more], place, capfd)

    return call


def test_files(made, place, run, legacy, find):
    ended = run()
    assert ended.status == 0 and ended.out.startswith("a.refs: 67 lines\nb.refs: 5 lines\n72 lines in 2 parts in ")
    lines = [*PECULIAR, *made.sentences[:50]]
    assert read_refs(place / "a.refs") == find(lines, words_of(lines, legacy))
    assert (place / "b.refs").read_text() == "[]\n[]\n[2, 4, 6]\n[]\n[2]\n"
    assert json.loads((place / "b.refs.json").read_text()) == {
        "format": 1,
        "ltp_sha256": read_ltp_directory(made.ltp).sha256(),
        "tokenizer_sha256": tokenizer_sha256(made.tokenizer),
        "text_sha256": file_facts(place / "b.txt").sha256,
        "lines": 5,
        "refs_sha256": file_facts(place / "b.refs").sha256,
    }
    assert sorted(path.name for path in place.iterdir()) == [
        ".lock",
        "a.refs",
        "a.refs.json",
        "a.txt",
        "b.refs",
        "b.refs.json",
        "b.txt",
        "data.json",
    ]


def read_refs(path: Path) -> list[list[int]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def test_positions_point_at_chinese_characters_alone(made, place, run):
    run()
    for line, reference in zip([*PECULIAR, *made.sentences[:50]], read_refs(place / "a.refs")):
        tokens = ["[CLS]", *made.tokenizer.tokenize(line), "[SEP]"]
        assert all(len(tokens[position]) == 1 and is_chinese(tokens[position]) for position in reference)
        assert reference == sorted(set(reference))


def test_neural_directory(made, place, run, neural, find):
    assert "segmenting with neural LTP on the" in run(ltp=made.neural).out
    lines = [*PECULIAR, *made.sentences[:50]]
    assert read_refs(place / "a.refs") == find(lines, words_of(lines, neural))


def test_up_to_date_files_are_skipped_and_overwrite_makes_them_again(place, run, monkeypatch):
    run()
    before = workplace.entries(place)
    monkeypatch.setattr(reference_files, "load_segmenter", None)  # nothing to segment, nothing to load
    ended = run()
    assert ended.out == "".join(f"{name}: up to date, skipped (--overwrite makes it again)\n" for name in ("a.refs", "b.refs"))
    assert workplace.entries(place) == before
    monkeypatch.undo()
    assert "up to date" not in run("--overwrite").out
    after = workplace.entries(place)
    assert {name: entry[2:] for name, entry in after.items()} == {name: entry[2:] for name, entry in before.items()}
    assert after["a.refs"][1] != before["a.refs"][1]


@pytest.mark.parametrize("what", ["text", "references", "no references", "note", "format", "ltp", "vocabulary", "killed"])
def test_any_difference_makes_a_file_again(made, place, run, what, monkeypatch):
    run()
    content, changes, other = (place / "b.refs").read_bytes(), {}, None
    if what == "text":
        with open(place / "b.txt", "a", encoding="utf-8") as file:
            file.write("学校")
        other = b"[]\n[]\n[2, 4, 6]\n[]\n[2, 4]\n"
    elif what == "references":
        (place / "b.refs").write_bytes(b"[]\n[]\n[2, 4]\n[]\n[2]\n")
    elif what == "no references":
        (place / "b.refs").unlink()
    elif what == "note":
        (place / "b.refs.json").write_text("{}")
    elif what == "format":
        monkeypatch.setattr(reference_files, "FORMAT", 2)
    elif what == "ltp":
        changes["ltp"] = shutil.copytree(made.ltp, place / "ltp")
        with open(place / "ltp" / "config.json", "a") as file:
            file.write("\n")
    elif what == "vocabulary":
        tokens = [token for token in made.tokenizer.convert_ids_to_tokens(range(len(made.tokenizer))) if token != "欢"]
        (place / "bert").mkdir()
        (place / "bert" / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
        changes["bert"], other = place / "bert", b"[]\n[]\n[2, 6]\n[]\n[2]\n"
    else:  # between the note and the file, with the file of an earlier text still there
        (place / "b.refs").write_bytes(b"[]\n")
    assert "b.refs: up to date" not in run(**changes).out
    assert (place / "b.refs").read_bytes() == (other or content)
    assert [path.name for path in place.glob(".*")] == [".lock"]
    assert run(**changes).out.count("up to date") == 2


def test_a_strangers_reference_file_is_left_alone(place, run):
    (place / "b.refs").write_text("[1]\n")
    before = workplace.entries(place)
    ended = run()
    assert ended.status == 2
    assert ended.err == "error: b.refs: was not made by this script (no b.refs.json beside it); move it away or give --overwrite\n"
    assert workplace.entries(place) == before
    assert run("--overwrite").status == 0 and (place / "b.refs").read_text() == "[]\n[]\n[2, 4, 6]\n[]\n[2]\n"


def test_a_text_that_changes_meanwhile_is_noticed(place, run, monkeypatch):
    monkeypatch.setattr(run_chinese_ref, "check_lines", lambda path, is_text: path.write_bytes(path.read_bytes()[:-1]))
    ended = run()
    assert ended.status == 2 and ended.err.splitlines()[-1] == "error: a.txt: was changed while it was read; run again"
    assert not (place / "a.refs").exists() and not (place / "a.refs.json").exists()


class Evil:
    """Unpickled, makes a file."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def spoil(place: Path, made: Made, what: str) -> dict:
    """Makes one input wrong; returns the arguments to change."""
    if what in ("no ltp", "hub name"):
        return {"ltp": "nowhere" if what == "no ltp" else "LTP/small"}
    if what == "empty ltp":
        (place / "ltp").mkdir()
        return {"ltp": "ltp"}
    if what == "no bert":
        return {"bert": "nowhere"}
    if what == "no text":
        (place / "b.txt").unlink()
        return {}
    if what == "data":
        (place / "data.json").write_text('{"train":\n{')
        return {}
    if what == "utf-8":
        (place / "b.txt").write_bytes("我们\n\n".encode() + b"\xff\n")
        return {}
    if what == "over a text":
        workplace.write_data_json(place, ["a.txt"], ["b.txt"])
        (place / "data.json").write_text((place / "data.json").read_text().replace("b.refs", "a.txt"))
        return {}
    if what == "references are a directory":
        (place / "b.refs").mkdir()
        return {}
    if what == "no place":
        (place / "data.json").write_text((place / "data.json").read_text().replace("b.refs", "a.txt/b.refs"))
        return {}
    if what == "note is broken":
        (place / "b.refs").write_text("[]\n")
        (place / "b.refs.json").write_text("{")
        return {}
    if what.startswith("legacy"):
        ltp = shutil.copytree(made.ltp, place / "ltp")
        weights = ltp / "cws_model.bin"
        if what == "legacy half":
            weights.write_bytes(weights.read_bytes()[:20000])
        elif what == "legacy garbage":
            weights.write_bytes(bytes(range(256)) * 20)
        elif what == "legacy empty":
            weights.write_bytes(b"")
        elif what == "legacy pickle":
            weights.write_bytes(pickle.dumps(Evil(place / "harm")))
        elif what == "legacy no weights":
            weights.unlink()
        elif what == "legacy no task":
            (ltp / "config.json").write_text('{"nerual": false, "tasks": {"pos": "pos_model.bin"}}')
        elif what == "legacy no kind":
            (ltp / "config.json").write_text('{"neural": false, "tasks": {"cws": "cws_model.bin"}}')
        else:
            (ltp / "config.json").write_text('{"nerual": false,\n')
        return {"ltp": "ltp"}
    ltp = shutil.copytree(made.neural, place / "ltp")
    config, weights = json.loads((ltp / "config.json").read_text()), torch.load(ltp / "pytorch_model.bin", weights_only=True)
    name = "backbone.encoder.layer.0.output.dense.weight"
    if what == "neural lacks a weight":
        del weights[name]
    elif what == "neural other names":
        weights = {f"model.{key}": value for key, value in weights.items()}
    elif what == "neural more weights":
        weights["task_heads.pos.classifier.0.weight"] = weights[name]
    elif what == "neural other size":
        config["model"]["backbone"]["config"]["intermediate_size"] = 32
    elif what == "neural no weights":
        (ltp / "pytorch_model.bin").unlink()
    elif what == "neural half":
        (ltp / "pytorch_model.bin").write_bytes((ltp / "pytorch_model.bin").read_bytes()[:5000])
    elif what == "neural pickle":
        torch.save({name: Evil(place / "harm")}, ltp / "pytorch_model.bin")
    elif what == "neural plain pickle":
        (ltp / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(place / "harm")))
    elif what == "neural no head":
        config["model"]["heads"] = {"pos": config["model"]["heads"]["cws"]}
    elif what == "neural target":
        config["model"]["processor"]["cws"] = {"_ltp_target_": "builtins.open", "file": str(place / "harm"), "mode": "w"}
    elif what == "neural target elsewhere":
        config["vocabs"]["pos"] = [{"_ltp_target_": "subprocess.run", "args": ["touch", str(place / "harm")]}]
    elif what == "neural target list":
        config["model"]["_ltp_target_"] = ["os.system"]
    elif what == "neural auto_map":
        config["model"]["backbone"]["config"]["auto_map"] = {"AutoModel": "evil--module.Model"}
    elif what == "neural kernel":
        config["model"]["backbone"]["config"]["_attn_implementation"] = "someone/kernel"
    elif what == "neural type":
        config["model"]["backbone"]["config"]["model_type"] = "no such"
    elif what == "neural more tokens":
        with open(ltp / "vocab.txt", "a") as file:
            file.write("one more\n")
    elif what == "neural no tokenizer":
        (ltp / "vocab.txt").unlink()
    (ltp / "config.json").write_text(json.dumps(config))
    if (ltp / "pytorch_model.bin").exists() and what in ("neural lacks a weight", "neural other names", "neural more weights"):
        torch.save(weights, ltp / "pytorch_model.bin")
    return {"ltp": "ltp"}


@pytest.mark.parametrize(
    "what, message",
    [
        ("no ltp", "--ltp nowhere: no such directory; give a local LTP directory (LTP 4.2.14 cannot load from the hub"),
        ("hub name", "--ltp LTP/small: no such directory; give a local LTP directory"),
        ("empty ltp", "ltp/config.json: no such file"),
        ("no bert", "nowhere: no such directory"),
        ("no text", "b.txt: no such file"),
        ("data", "data.json:2: "),
        ("utf-8", "b.txt:3: not valid UTF-8"),
        ("over a text", "a.txt: writing this reference file would overwrite a text file"),
        ("references are a directory", "b.refs: a reference file is to be written here"),
        ("no place", "a.txt is no directory that you may write to"),
        ("note is broken", "b.refs.json:1: "),
        ("legacy half", "ltp/cws_model.bin: is no LTP word segmentation model, or a damaged one"),
        ("legacy garbage", "ltp/cws_model.bin: is no LTP word segmentation model"),
        ("legacy empty", "ltp/cws_model.bin: is no LTP word segmentation model"),
        ("legacy pickle", "ltp/cws_model.bin: is no LTP word segmentation model"),
        ("legacy no weights", "ltp/cws_model.bin: no such file (the weights of the LTP model)"),
        ("legacy no task", 'ltp/config.json: names no model file for the task "cws"'),
        ("legacy no kind", 'ltp/config.json: has no "nerual"'),
        ("legacy no json", "ltp/config.json:2: "),
        (
            "neural lacks a weight",
            "ltp/pytorch_model.bin: does not fit its config.json: it lacks backbone.encoder.layer.0.output.dense.weight (1 ",
        ),
        ("neural other names", "ltp/pytorch_model.bin: does not fit its config.json: it lacks "),
        ("neural more weights", "it has, which the model does not, task_heads.pos.classifier.0.weight (1 such names)"),
        ("neural other size", "ltp: LTP cannot load this model (RuntimeError: "),
        ("neural no weights", "ltp/pytorch_model.bin: no such file"),
        ("neural half", "ltp/pytorch_model.bin: is damaged or holds more than tensors"),
        ("neural pickle", "ltp/pytorch_model.bin: is damaged or holds more than tensors"),
        ("neural plain pickle", "ltp/pytorch_model.bin: is damaged or holds more than tensors"),
        ("neural no head", 'ltp/config.json: its model has no head "cws"'),
        ("neural target", "ltp/config.json: would call 'builtins.open'"),
        ("neural target elsewhere", "ltp/config.json: would call 'subprocess.run'"),
        ("neural target list", "ltp/config.json: would call ['os.system']"),
        ("neural auto_map", "ltp/config.json: has the key 'auto_map'"),
        ("neural kernel", "ltp/config.json: has the key '_attn_implementation'"),
        ("neural type", "ltp: LTP cannot load this model (ValueError: "),
        ("neural no tokenizer", "ltp/vocab.txt: no such file (the vocabulary of the LTP model)"),
        ("neural more tokens", "ltp: LTP cannot load this model (ValueError: its tokenizer has "),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_runs_nothing(made, place, run, what, message):
    changes = spoil(place, made, what)
    before = workplace.entries(place)
    ended = run(**changes)
    assert ended.status == 2
    last = ended.err.splitlines()[-1]
    assert last.startswith("error: ") and message in last and "Traceback" not in ended.err
    assert workplace.entries(place) == before


def test_position_ids_of_older_transformers_are_no_misfit(made, place, run):
    ltp = shutil.copytree(made.neural, place / "ltp")
    weights = torch.load(ltp / "pytorch_model.bin", weights_only=True)
    weights["backbone.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(weights, ltp / "pytorch_model.bin")
    assert run(ltp="ltp").status == 0


@pytest.mark.slow
def test_in_a_process_of_its_own(made, place):
    """A damaged legacy model would abort the process that loads it; here one line is all that is said."""
    ltp = shutil.copytree(made.ltp, place / "ltp")
    whole = (ltp / "cws_model.bin").read_bytes()
    (ltp / "cws_model.bin").write_bytes(whole[:-1000])
    arguments = workplace.command_line("run_chinese_ref.py", ltp="ltp", bert=made.bert)

    def run(*arguments: str, **environment) -> tuple[int, bytes, str]:
        command = [sys.executable, run_chinese_ref.__file__, *arguments]
        ended = subprocess.run(command, cwd=place, env={**workplace.ENVIRONMENT, **environment}, capture_output=True)
        return ended.returncode, ended.stdout, workplace.on_a_terminal(ended.stderr.decode())

    message = "error: ltp/cws_model.bin: is no LTP word segmentation model, or a damaged one; download or train it again\n"
    assert run(*arguments) == (2, b"", message)
    (ltp / "cws_model.bin").write_bytes(whole)
    status, out, err = run(*arguments, TQDM_DISABLE="1")
    assert (status, out.count(b" lines/s\n"), err) == (0, 1, "")
    status, out, err = run("--nonsense")
    assert (status, out, err.count("\n")) == (2, b"", 1) and err.startswith("error: unrecognized arguments: --nonsense")
