"""The data of the downstream tasks: finds and reads their files.

    python finetuning/tasks.py --task lcqmc --data_dir data/lcqmc
    python finetuning/tasks.py --task examples/own_task/reviews.json

prints the splits in a directory, their sizes and, for classification, the share of the most frequent label.
The tasks are defined in ``tasks/``, and by JSON files of your own; see ``task_definitions.py``.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetuning.examples import Example, Question, Sentence
from finetuning.row_files import Rows, json_rows, read_rows, read_tagged
from finetuning.task_definitions import TASKS, Task, find_task, is_text
from pretraining.corpus.files import read_json, require_file
from pretraining.utils import ArgumentParser, UserError, run_script

SHOWN_LABELS = 20  # in an error message

# ---------------------------------------------------------------- the files of a task


def find_data(text: str, data_dir: str | None) -> tuple[Task, Path]:
    """The task of ``--task`` and the directory of its data; that of a task of one's own is the one of its JSON file.

    Raises:
        UserError: as :func:`find_task`, or a task of the project without ``--data_dir``.
    """
    task = find_task(text)
    if data_dir is None and not task.is_own:
        raise UserError(f"--task {task.name} needs --data_dir, the directory with its files")
    return task, Path(data_dir or Path(text).parent)


def find_file(task: Task, data_dir: str | Path, split: str) -> Path:
    """Returns the file of a split.

    Raises:
        UserError: the directory has none of the accepted names.
    """
    for name in task.files[split]:
        if (Path(data_dir) / name).is_file():
            return Path(data_dir) / name
    if not Path(data_dir).is_dir():
        raise UserError(f"{data_dir}: no such directory (--data_dir, the files of {task.name})")
    raise UserError(f"{data_dir}: no {split} file of {task.name}; put {' or '.join(task.files[split])} there")


def task_labels(task: Task, data_dir: str | Path) -> tuple[str, ...]:
    """Returns the labels in the order of their indices; none for reading. For labelling: O, and B- and I- of each type of entity.

    They are those of the definition, else those of its ``labels_file``, else those of the train file, sorted.
    """
    if task.is_reading:
        return ()
    if task.is_labelling:
        types = task.labels or _types_of(task, find_file(task, data_dir, "train"))
        return ("O", *(f"{prefix}-{name}" for name in types for prefix in "BI"))
    if task.labels:
        return task.labels
    if task.labels_file:
        path = require_file(Path(data_dir) / task.labels_file, f"the labels of {task.name}, a JSON object a line")
        labels = tuple(str(row["label"]) for _, row in json_rows(path, ("label",)))
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"{path}: must list at least two labels, each once")
        return labels
    path = find_file(task, data_dir, "train")
    labels = tuple(sorted({_label(task, path, number, row) for number, row in read_rows(task, path)} - {*task.skipped_labels}))
    if len(labels) < 2:
        raise UserError(f"{path}: has {len(labels)} different labels in {task.label!r}; at least two are needed")
    return labels


def _types_of(task: Task, path: Path) -> list[str]:
    """The types of entities in a file, sorted."""
    types = {tag[2:] for sentence in read_tagged(task, path) for _, _, tag in sentence if tag[:2] in ("B-", "I-")} - {""}
    if not types:
        raise UserError(f"{path}: has no entity; tags are O, B-TYPE and I-TYPE")
    return sorted(types)


def load_split(task: Task, path: str | Path, labels: tuple[str, ...]) -> list[Example] | list[Question] | list[Sentence]:
    """Reads one file of a task.

    Raises:
        UserError: anything that is wrong with the file; the message has the line.
    """
    examples: list[Example] | list[Question] | list[Sentence]
    if task.is_labelling:
        examples = list(_to_sentences(task, path, labels))
    elif task.layout == "squad":
        examples = _read_squad(path)
    elif task.is_reading:
        examples = list(_to_questions(task, path))
    else:
        rows = read_rows(task, path)
        if task.layout == "cluewsc":
            rows = mark_spans(path, rows)
        examples = list(_to_examples(task, path, rows, labels))
    if not examples:
        raise UserError(f"{path}: has no examples")
    return examples


def size_line(task: Task, split: str, path: Path, examples: list) -> str:
    """Returns one line to print; it has a note if the size differs from the official one."""
    official = task.sizes.get(split, len(examples))
    note = "" if len(examples) == official else f"; the official {split} set has {official}"
    return f"{task.name} {split}: {len(examples)} examples ({path}{note})"


# ---------------------------------------------------------------- sentences and pairs


def _to_examples(task: Task, path: str | Path, rows: Rows, labels: tuple[str, ...]) -> Iterator[Example]:
    index = {label: position for position, label in enumerate(labels)}
    for number, row in rows:
        label = _label(task, path, number, row)
        if label in task.skipped_labels:
            continue
        if label not in index:
            raise UserError(f"{path}:{number}: label {label!r} is none of {_shown(task, labels)}")
        yield Example(str(number), to_texts(task, path, number, row), index[label])


def _label(task: Task, path: str | Path, number: int, row: dict[str, Any]) -> str:
    """The label of a row; JSON may have a number."""
    label = row[task.label]
    if task.is_own and (type(label) not in (str, int) or not is_text(str(label)) or not str(label).strip()):
        raise UserError(f"{path}:{number}: {task.label} must be a label, a text or a whole number")
    return str(label)


def _shown(task: Task, labels: tuple[str, ...]) -> str:
    """The labels for an error message, and where they come from."""
    more = " …" if len(labels) > SHOWN_LABELS else ""
    source = "" if task.labels or task.labels_file else ", the labels of the train file"
    return ", ".join(labels[:SHOWN_LABELS]) + more + source


def to_texts(task: Task, path: str | Path, number: int, row: dict[str, Any]) -> tuple[str, ...]:
    """The texts of a row; a list of words becomes a text with spaces between them (the keywords of CSL).

    Raises:
        UserError: no text; in an own task's file an empty one.
    """
    texts = tuple(row[field] for field in task.fields)
    texts = tuple(" ".join(text) if isinstance(text, list) and all(map(is_text, text)) else text for text in texts)
    if not all(map(is_text, texts)):
        raise UserError(f"{path}:{number}: {' and '.join(task.fields)} must be text")
    if task.is_own:
        for field, text in zip(task.fields, texts):
            if not text.strip():
                raise UserError(f"{path}:{number}: {field} is empty")
    return texts


def mark_spans(path: str | Path, rows: Rows) -> Rows:
    """CLUEWSC2020: puts [ ] around the noun (span 1) and _ _ around the pronoun (span 2), as CLUE's baselines do."""
    for number, row in rows:
        text, target = row["text"], row.get("target")
        target = target if isinstance(target, dict) else {}
        spans = []
        for span, left, right in (("span1", "[", "]"), ("span2", "_", "_")):
            begin, words = target.get(f"{span}_index"), target.get(f"{span}_text", "")
            if not is_text(text) or not is_text(words) or type(begin) is not int or begin < 0 or not text.startswith(words, begin):
                raise UserError(f"{path}:{number}: {span}_text does not stand at {span}_index of the text")
            spans.append((begin, begin + len(words), left, right))
        for begin, end, left, right in sorted(spans, reverse=True):
            text = text[:begin] + left + text[begin:end] + right + text[end:]
        yield number, {**row, "text": text}


# ---------------------------------------------------------------- sequence labelling


def _to_sentences(task: Task, path: str | Path, labels: tuple[str, ...]) -> Iterator[Sentence]:
    """Checks that the tags are BIO, and of the known types."""
    index = {label: position for position, label in enumerate(labels)}
    for sentence in read_tagged(task, path):
        before = "O"
        for number, _, tag in sentence:
            kind, _, name = tag.partition("-")
            if tag != "O" and (kind not in ("B", "I") or not name):
                raise UserError(f"{path}:{number}: tag {tag!r} is none of BIO: O, B-TYPE, I-TYPE")
            if tag not in index:
                raise UserError(f"{path}:{number}: tag {tag!r} is none of {_shown(task, labels)}")
            if kind == "I" and before not in (tag, f"B-{name}"):
                raise UserError(f"{path}:{number}: tag {tag!r} follows {before!r}; an entity begins with B-{name}")
            before = tag
        tokens = tuple(token for _, token, _ in sentence)
        yield Sentence(str(sentence[0][0]), tokens, tuple(index[tag] for _, _, tag in sentence))


# ---------------------------------------------------------------- reading comprehension


def _to_questions(task: Task, path: str | Path) -> Iterator[Question]:
    """Question, context and answer, or list of answers, in a row; where an answer begins is found by its text."""
    for number, row in read_rows(task, path):
        question, context = to_texts(task, path, number, row)
        given = row[task.label]
        answers = tuple(given) if isinstance(given, list) else (given,)
        if not answers or not all(is_text(answer) and answer.strip() for answer in answers):
            raise UserError(f"{path}:{number}: {task.label} must be the answer, or a list of answers")
        yield Question(str(number), question, context, answers, -1)


def _read_squad(path: str | Path) -> list[Question]:
    """SQuAD-style JSON: data[].paragraphs[].qas[], each with id, question and answers[] of text and answer_start."""
    questions, seen, where = [], set(), "data"
    data = read_json(path, "a SQuAD-style file")
    try:
        for a, article in enumerate(data["data"]):
            for p, paragraph in enumerate(article["paragraphs"]):
                where = f"data[{a}].paragraphs[{p}]"
                for q, entry in enumerate(paragraph["qas"]):
                    where = f"data[{a}].paragraphs[{p}].qas[{q}]"
                    question = _to_question(entry, paragraph["context"])
                    if question.id in seen:
                        raise UserError(f"{path}: {where}: the id {question.id!r} is a duplicate")
                    seen.add(question.id)
                    questions.append(question)
    except (KeyError, IndexError, TypeError):
        raise UserError(f"{path}: {where}: not as in a SQuAD-style file (context; qas with id, question, answers)") from None
    return questions


def _to_question(entry: dict, context: str) -> Question:
    answers = entry["answers"]
    question = Question(
        id=str(entry["id"]),
        question=entry["question"],
        context=context,
        answers=tuple(answer["text"] for answer in answers),
        answer_start=answers[0]["answer_start"],
    )
    if not all(map(is_text, (question.question, question.context, *question.answers))) or type(question.answer_start) is not int:
        raise TypeError
    return question


# ---------------------------------------------------------------- command


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--task", required=True, help=f"one of {', '.join(TASKS)}, or the JSON file of your own")
    parser.add_argument("--data_dir", help="default for a task of your own: the directory of its JSON file")
    args = parser.parse_args(argv)
    task, data_dir = find_data(args.task, args.data_dir)
    labels = task_labels(task, data_dir)
    paths: dict[str, Path] = {}
    for split in task.files:
        try:
            paths[split] = find_file(task, data_dir, split)
        except UserError as missing:
            if split in ("train", "dev"):
                raise
            print(missing)
    for split, path in paths.items():
        examples: list = load_split(task, path, labels)
        print(size_line(task, split, path, examples))
        if task.kind == "classification":
            label, count = Counter(example.label for example in examples).most_common(1)[0]
            print(f"    most frequent label: {labels[label]}, {100 * count / len(examples):.2f} %")


if __name__ == "__main__":
    run_script(main)
