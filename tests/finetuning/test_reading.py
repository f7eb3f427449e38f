"""Reading comprehension: the metric of CMRC 2018, windows, and the best answers."""

import numpy as np
import pytest

from finetuning import reading
from finetuning.reading import f1_and_em, locate_answer, make_windows, reading_metrics, segments
from finetuning.tasks import Question
from tests import tiny

# ---------------------------------------------------------------- the metric


@pytest.mark.parametrize(
    "prediction, answers, f1, em",
    [
        ("红楼梦", ("西游记", "《红楼梦》。"), 1.0, 1.0),  # several answers: the best; punctuation does not count
        ("曹雪芹的红楼梦", ("红楼梦", "曹雪芹的红"), 2 * 5 / 12, 0.0),  # 5 of 7 and 5 of 5 beat 3 of 7 and 3 of 3
        ("“1-2”", ("12",), 1.0, 1.0),  # punctuation goes before the words are split
        ("红楼 梦", ("红楼梦",), 1.0, 0.0),  # white space splits, but a Chinese character stands alone anyway
        ("甲乙五丁戊", ("甲乙丙丁戊",), 0.4, 0.0),  # the longest run has no gap: 2 of 5
        ("Python 语言", ("使用PYTHON 3语言",), 2 * 2 / (3 + 6), 0.0),  # python, 语, 言 against 使, 用, python, 3, 语, 言
        ("python", ("Python",), 1.0, 1.0),
        ("Pythons", ("Python",), 0.0, 0.0),  # a Latin word counts whole
        ("3.5%", ("约3.5%",), 2 * 2 / 5, 0.0),  # 3.5 and %
        ("1,200 U.S. dollars.", ("1,200 u.s. dollars",), 2 * 3 / 7, 0.0),  # ASCII stops are words of their own
        ("", ("北京",), 0.0, 0.0),
        ("，", ("北京",), 0.0, 0.0),
        ("中華民國", ("中華民國政府",), 0.8, 0.0),
        ("中华民国", ("中華民國",), 0.25, 0.0),  # Simplified is not Traditional
    ],
)
def test_f1_and_em_equal_hand_computed_cases(prediction, answers, f1, em):
    assert f1_and_em(prediction, answers) == (pytest.approx(f1), em)


def test_mixed_segmentation():
    assert segments(" 在《NBA》打了20年… It's 3:30, OK? ") == [*"在", "nba", *"打了", "20", "年", "…", "it", "'s", "330", ",", "ok", "?"]


def test_a_question_without_prediction_counts_zero():
    questions = [Question(str(n), "", "", ("北京",), 0) for n in range(4)]
    assert reading_metrics(questions, {"0": "北京", "1": "北", "2": ""}) == {"f1": pytest.approx(100 * (1 + 2 / 3) / 4), "em": 25.0}


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "context, answer, start, expected",
    [
        ("甲乙甲乙", "乙", 3, 3),
        ("甲乙甲乙", "乙", 0, 1),
        ("甲乙甲乙", "乙", -1, 1),
        ("甲乙甲乙", "乙", 4, 3),
        ("甲", "丙", 0, None),
        ("aaa", "aa", 2, 1),
    ],
)
def test_answers_are_found_by_text(context, answer, start, expected):
    assert locate_answer(context, answer, start) == expected


@pytest.fixture(scope="module")
def questions():
    long = "".join(tiny.SENTENCES) * 3
    return [
        Question("short", "谁?", "老师说train很好", ("train", "老师"), 0),
        Question("long", "他们在哪?" * 20, long, ("火车站",), long.rindex("火车站")),
        Question("lost", "谁?", "老师说", ("学校",), 0),
    ]


def test_windows_cover_the_context_and_hold_the_answer(tiny_tokenizer, questions):
    windows, left_out = make_windows(questions, tiny_tokenizer, 48, with_answers=True)
    assert left_out == 1 and [w.question for w in windows] == [0] + [1] * (len(windows) - 1)
    for window in windows:
        question = questions[window.question]
        assert len(window.input_ids) <= 48 and window.input_ids[0] == tiny_tokenizer.cls_token_id
        assert list(np.flatnonzero(window.input_ids == tiny_tokenizer.sep_token_id)) == [
            window.context_start - 1,
            len(window.input_ids) - 1,
        ]
        if window.end:
            begin, end = window.offsets[window.start - window.context_start, 0], window.offsets[window.end - window.context_start, 1]
            assert question.context[begin:end] == question.answers[0]
    assert windows[0].end - windows[0].start == 0  # one token: train
    assert any(window.end for window in windows[1:]) and not all(window.end for window in windows[1:])
    covered = sorted({tuple(offset) for window in windows[1:] for offset in window.offsets.tolist()})
    whole = tiny_tokenizer(questions[1].context, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    assert covered == whole
    assert len(make_windows(questions, tiny_tokenizer, 48, with_answers=False)[0]) == len(windows) + 1


def test_the_best_span_is_taken_over_all_windows(tiny_tokenizer, questions, monkeypatch):
    windows, _ = make_windows(questions, tiny_tokenizer, 48, with_answers=True)
    logits = np.zeros((2, len(windows), 60), dtype=np.float32)
    logits[:, :, 0] = logits[:, :, 48:] = 9  # [CLS] and padding are no answers
    right = next(i for i, window in enumerate(windows) if window.question == 1 and window.end)
    logits[0, right, windows[right].start] = logits[1, right, windows[right].end] = 5
    logits[0, right - 1, windows[right - 1].context_start + 1] = 4
    logits[1, right - 1, windows[right - 1].context_start] = 8  # before the start
    assert reading.best_answers(questions, windows, *logits)["long"] == "火车站"
    logits[1, 0, windows[0].context_start + 3] = logits[0, 0, windows[0].context_start] = 5
    assert reading.best_answers(questions, windows, *logits) == {"short": "老师说train", "long": "火车站", "lost": ""}
    monkeypatch.setattr(reading, "MAX_ANSWER_TOKENS", 3)
    assert reading.best_answers(questions, windows, *logits)["short"] != "老师说train"
