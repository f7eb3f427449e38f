"""train_segmenter.py: what it writes, the words that its model finds, its one-line errors."""

import json
import re
from pathlib import Path

import pytest
from ltp_extension.perceptron import CWSModel

from pretraining.corpus.segmenter import load_segmenter, read_ltp_directory, words_of
from pretraining.scripts import train_segmenter
from tests import workplace

SCRIPT = "scripts/train_segmenter.py"
SEGMENTED = workplace.PRETRAINING / "dataset" / "segmented"


def arguments(place: Path, **changes) -> list[str]:
    (place / "train.txt").write_text("我们 喜欢 北京\n\n他们  喜欢\u3000学校 \n" * 5, encoding="utf-8")
    (place / "dev.txt").write_text("我们 喜欢 学校\n", encoding="utf-8")
    return workplace.command_line(SCRIPT, train="train.txt", dev="dev.txt", output_dir="ltp", **changes)


def test_train_segmenter(tmp_path, capfd):
    ended = workplace.run_here(SCRIPT, arguments(tmp_path), tmp_path, capfd)
    assert ended.status == 0 and ended.out.endswith("ltp: trained on 10 sentences; word F1 on the 1 of dev.txt: 1.0000\n")
    assert sorted(path.name for path in (tmp_path / "ltp").iterdir()) == ["config.json", "cws_model.bin"]
    assert json.loads((tmp_path / "ltp" / "config.json").read_text()) == {"nerual": False, "tasks": {"cws": "cws_model.bin"}}
    assert dict(load_segmenter(read_ltp_directory(tmp_path / "ltp"))(["他们喜欢北京"])) == {0: ["他们", "喜欢", "北京"]}
    again = workplace.run_here(SCRIPT, arguments(tmp_path), tmp_path, capfd)
    assert again.out == ended.out


@pytest.fixture(scope="module")
def sentences() -> dict[str, list[list[str]]]:
    """The repository's segmented sentences."""
    return {name: train_segmenter.read_sentences(str(SEGMENTED / f"{name}.txt")) for name in ("segmented", "segmented_dev")}


@pytest.fixture(scope="module")
def trained(sentences, tmp_path_factory) -> list[Path]:
    """Two LTP directories, trained on the same sentences."""
    directories = [tmp_path_factory.mktemp("trained") / name for name in ("first", "second")]
    for directory in directories:
        model = train_segmenter.train_model(sentences["segmented"], sentences["segmented_dev"])
        train_segmenter.save_model(model, directory)
    return directories


def test_training_again_gives_the_same_words(sentences, trained):
    plain = ["".join(words) for words in sentences["segmented"] + sentences["segmented_dev"]]
    lines = [a + b for a, b in zip(plain, plain[7:])]
    first, second = (words_of(lines, load_segmenter(read_ltp_directory(directory))) for directory in trained)
    assert first == second


def test_the_repositorys_sentences_make_a_usable_segmenter(sentences, trained):
    model = CWSModel.load(str(trained[0] / "cws_model.bin"))
    assert train_segmenter.word_f1(model, sentences["segmented_dev"]) > 0.85


def test_word_f1_counts_spans():
    class Model:
        def batch_predict(self, lines):
            assert lines == ["北京大学", "我们"]
            return [["北京大学"], ["我们"]]

    assert train_segmenter.word_f1(Model(), [["北京", "大学"], ["我们"]]) == 2 * 1 / (2 + 3)


@pytest.mark.parametrize(
    "what, message",
    [
        ("no train", "nowhere: no such file"),
        ("no spaces", "train.txt: no line with two words in it"),
        ("utf-8", "dev.txt:2: not valid UTF-8"),
        ("another model", "ltp: holds another LTP model; choose another --output_dir"),
        ("a file", "ltp"),
    ],
)
def test_train_segmenter_refuses(tmp_path, capfd, what, message):
    line = arguments(tmp_path)
    if what == "no train":
        line[line.index("train.txt")] = "nowhere"
    elif what == "no spaces":
        (tmp_path / "train.txt").write_text("我们喜欢北京\n", encoding="utf-8")
    elif what == "utf-8":
        (tmp_path / "dev.txt").write_bytes("我们 喜欢\n".encode() + b"\xff\n")
    elif what == "another model":
        (tmp_path / "ltp").mkdir()
        (tmp_path / "ltp" / "config.json").write_text('{"nerual": true}')
    else:
        (tmp_path / "ltp").write_text("")
    before = workplace.entries(tmp_path)
    ended = workplace.run_here(SCRIPT, line, tmp_path, capfd)
    assert ended.status == 2 and ended.err.splitlines()[-1].startswith("error: ") and message in ended.err
    assert workplace.entries(tmp_path) == before


@pytest.mark.parametrize("line", ["今天天气很好我们一起去公园", "今天天气很好， 我们一起去公园。"])
def test_sentences_whose_words_are_not_separated_are_refused(line, tmp_path, capfd):
    """Also where blanks stand after the punctuation only: a clause would become a word."""
    arguments_ = arguments(tmp_path)
    (tmp_path / "train.txt").write_text(f"{line}\n" * 5 + "他们 喜欢 学校\n", encoding="utf-8")
    ended = workplace.run_here(SCRIPT, arguments_, tmp_path, capfd)
    assert ended.status == 2 and not (tmp_path / "ltp").exists()
    assert re.fullmatch(r"error: train.txt: \d\.\d Chinese characters per word; are its words separated\? Write .*\n", ended.err)
