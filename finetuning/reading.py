"""Reading comprehension: questions -> windows of tokens, logits -> answers, answers -> F1 and EM as CMRC 2018 defines them."""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from finetuning.examples import Question

DOC_STRIDE = 128  # tokens by which the window moves over a long context, as in BERT's own SQuAD code
MAX_QUESTION_TOKENS = 64
MAX_ANSWER_TOKENS = 64


class Window(NamedTuple):
    """One window of a context: the model's input, and the way back from its tokens to the text.

    ``input_ids`` (int32, [length]): [CLS] question [SEP] context tokens [SEP]; the context begins at ``context_start``.
    ``offsets`` (int32, [context tokens, 2]): begin and end of each context token in the context, in characters.
    ``start``, ``end``: first and last answer token, as positions in ``input_ids``; 0 ([CLS]) where the answer is not in the window.
    """

    question: int
    input_ids: np.ndarray
    context_start: int
    offsets: np.ndarray
    start: int
    end: int


# ---------------------------------------------------------------- questions -> windows


def locate_answer(context: str, answer: str, answer_start: int) -> int | None:
    """Where the answer begins in the context, in characters: at ``answer_start``, else its nearest occurrence, else nowhere (None)."""
    if answer_start >= 0 and context.startswith(answer, answer_start):
        return answer_start
    found = [match.start() for match in re.finditer(f"(?={re.escape(answer)})", context)]
    return min(found, key=lambda start: abs(start - answer_start), default=None)


def make_windows(
    questions: list[Question], tokenizer, max_seq_length: int, with_answers: bool, progress: bool = True
) -> tuple[list[Window], int]:
    """Cuts every context into overlapping windows.

    Args:
        tokenizer: transformers.BertTokenizer
        max_seq_length: tokens a window, special tokens included.
        with_answers: find the first answer's tokens, and leave out questions whose answer is not in the context.
        progress: show a bar.

    Returns:
        (windows in the order of the questions, number of questions left out)
    """
    windows, left_out = [], 0
    with tqdm(total=len(questions), desc="tokenise", unit=" questions", disable=not progress) as bar:
        for block_start in range(0, len(questions), 256):
            block = questions[block_start : block_start + 256]
            asked = tokenizer([question.question for question in block], add_special_tokens=False, verbose=False)
            contexts = tokenizer(
                [question.context for question in block], add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            for position, question in enumerate(block):
                offsets = np.array(contexts["offset_mapping"][position], dtype=np.int32).reshape(-1, 2)
                span = _answer_tokens(question, offsets) if with_answers else (-1, -1)
                if span is None:
                    left_out += 1
                    continue
                ids = asked["input_ids"][position], contexts["input_ids"][position]
                windows += _windows(block_start + position, *ids, offsets, span, tokenizer, max_seq_length)
            bar.update(len(block))
    return windows, left_out


def _answer_tokens(question: Question, offsets: np.ndarray) -> tuple[int, int] | None:
    """First and last context token that overlap the first answer; None if there is no such answer."""
    begin = locate_answer(question.context, question.answers[0], question.answer_start)
    if begin is None:
        return None
    end = begin + len(question.answers[0])
    first = int(np.searchsorted(offsets[:, 1], begin, side="right"))
    last = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first, last) if first <= last else None


def _windows(index: int, question_ids, context_ids, offsets, span, tokenizer, max_seq_length: int) -> list[Window]:
    question_ids = question_ids[: min(MAX_QUESTION_TOKENS, max_seq_length // 2)]
    head = [tokenizer.cls_token_id, *question_ids, tokenizer.sep_token_id]
    room = max_seq_length - len(head) - 1
    stride = min(DOC_STRIDE, max(1, room // 2))
    windows, begin = [], 0
    while True:
        end = min(begin + room, len(context_ids))
        input_ids = np.array([*head, *context_ids[begin:end], tokenizer.sep_token_id], dtype=np.int32)
        whole = begin <= span[0] and span[1] < end
        start_end = (len(head) + span[0] - begin, len(head) + span[1] - begin) if whole else (0, 0)
        windows.append(Window(index, input_ids, len(head), offsets[begin:end], *start_end))
        if end == len(context_ids):
            return windows
        begin += stride


# ---------------------------------------------------------------- logits -> answers


class Span(NamedTuple):
    """An answer: ``start`` and ``end`` in characters of the context; ``score``, the sum of the two logits."""

    start: int
    end: int
    score: float


def span_scores(window: Window, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Start logit + end logit of every span of a window: float, [first token, last token]; -inf where there is no span, or a long one."""
    tokens = len(window.offsets)
    inside = slice(window.context_start, window.context_start + tokens)
    distance = np.arange(tokens)[None, :] - np.arange(tokens)[:, None]
    return np.where((distance >= 0) & (distance < MAX_ANSWER_TOKENS), starts[inside, None] + ends[None, inside], -np.inf)


def best_spans(windows: list[Window], start_logits: Iterable[np.ndarray], end_logits: Iterable[np.ndarray]) -> dict[int, Span]:
    """The most likely span of each question over all its windows: the highest start logit + end logit, of at most MAX_ANSWER_TOKENS.

    Args:
        start_logits, end_logits: for each window float, [length]; padding behind a window's tokens is not looked at.

    Returns:
        the span by the number of the question; a question whose context has no token has none.
    """
    best: dict[int, Span] = {}
    for window, starts, ends in zip(windows, start_logits, end_logits):
        tokens = len(window.offsets)
        if not tokens:
            continue
        scores = span_scores(window, starts, ends)
        first, last = divmod(int(scores.argmax()), tokens)
        if window.question not in best or scores[first, last] > best[window.question].score:
            best[window.question] = Span(int(window.offsets[first, 0]), int(window.offsets[last, 1]), scores[first, last])
    return best


def best_answers(questions: list[Question], windows: list[Window], start_logits: np.ndarray, end_logits: np.ndarray) -> dict[str, str]:
    """The text of the best span by question id; "" where a context has no token.

    Args:
        start_logits, end_logits: float, [windows, length]
    """
    spans = best_spans(windows, start_logits, end_logits)
    answers = {}
    for number, question in enumerate(questions):
        span = spans.get(number)
        answers[question.id] = question.context[span.start : span.end] if span else ""
    return answers


# ---------------------------------------------------------------- answers -> F1 and EM

# The definition is that of the evaluation script published with CMRC 2018 (Cui et al., EMNLP 2019, github.com/ymcui/cmrc2018),
# which DRCD is scored by as well; described there, written anew here. These characters do not count:
PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“；’《》·、「」（）－～』『”")
# What is neither Chinese nor punctuation is split into words as NLTK's word_tokenize does, in short: at white space, and around these.
SYMBOL = r"""\.{2,}|…+|[;@#$%&?!()\[\]{}<>"—–‘]|,(?!\d)|\.(?=[\])}>"']*\s*$)|(?:n't|'(?:s|m|d|ll|re|ve))(?!\w)|'(?=\s|$)"""
WORD = re.compile(rf"{SYMBOL}|(?:(?!{SYMBOL})\S)+")
MIXED = re.compile(r"[\u4e00-\u9fa5]|[^\u4e00-\u9fa5]+")


def without_punctuation(text: str) -> str:
    """Lower case, ends stripped, PUNCTUATION removed."""
    return "".join(char for char in text.lower().strip() if char not in PUNCTUATION)


def segments(text: str) -> list[str]:
    """Mixed segmentation: every Chinese character (U+4E00 to U+9FA5) by itself, everything else as words; no punctuation."""
    pieces = MIXED.findall(without_punctuation(text))
    return [word for piece in pieces for word in (WORD.findall(piece))]


def f1_and_em(prediction: str, answers: tuple[str, ...]) -> tuple[float, float]:
    """The best F1 and the best EM over the answers, each between 0 and 1.

    F1 compares the longest run of segments that stands in both, without gaps (the script's "longest common string").
    """
    predicted = segments(prediction)
    best_f1 = 0.0
    for answer in answers:
        expected = segments(answer)
        common = SequenceMatcher(None, predicted, expected, autojunk=False).find_longest_match().size
        if common:
            best_f1 = max(best_f1, 2 * common / (len(predicted) + len(expected)))
    exact = any(without_punctuation(answer) == without_punctuation(prediction) for answer in answers)
    return best_f1, float(exact)


def reading_metrics(questions: list[Question], predictions: dict[str, str]) -> dict[str, float]:
    """F1 and EM in percent, the mean over all questions; one without a prediction counts 0."""
    scores = [f1_and_em(predictions[q.id], q.answers) if q.id in predictions else (0.0, 0.0) for q in questions]
    f1, em = np.mean(scores, axis=0)
    return {"f1": 100 * float(f1), "em": 100 * float(em)}
