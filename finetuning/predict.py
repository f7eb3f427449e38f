"""Predicts with a fine-tuned model: labels with probabilities, answers with scores, or entities with their places.

    python finetuning/predict.py results/reviews/model new_reviews.txt
    python finetuning/predict.py results/reviews/model-onnx/model_int8.onnx new_reviews.csv --output predictions.jsonl
    cat new_reviews.txt | python finetuning/predict.py results/reviews/model

The input has one text per line; for pairs, and for question and context, two with a tab between them. A .jsonl has the task's fields as
keys, a .csv or .tsv as columns of its header. Prints one JSON object per line, in the order of the input. A model that run.py saved has all
that is needed; the directory of an ONNX file has what export.py wrote.
"""

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

from finetuning.examples import Example, Question, Sentence
from finetuning.row_files import blank_line, read_rows, to_tokens
from finetuning.task_definitions import Task, find_task, to_task
from finetuning.tasks import mark_spans, to_texts
from finetuning.units import TASK_FILE
from pretraining.corpus.files import atomic_write, read_json, read_lines, require_file
from pretraining.corpus.tokenizer import load_tokenizer
from pretraining.utils import ArgumentParser, UserError, positive_int, progress_bar, run_script

STDIN = "/dev/stdin"
FORMATS = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "table", ".tsv": "table"}
BLOCK = 2000  # texts that are predicted before the next ones are read


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("model", help="a model directory of run.py, or an ONNX file of export.py")
    add("input", nargs="?", default="-", help="a file; -: standard input")
    add("--input_format", choices=["text", "jsonl", "table"], help="default: by the ending of the file, else text")
    add("--output", help="a file; default: standard output")
    add("--output_format", choices=["jsonl", "tsv"], default="jsonl", help="tsv: a table with a header")
    add("--batch_size", type=positive_int, default=32)
    add("--task", help="for models without a task.json: the name of a task of the project, or a JSON file")
    return parser.parse_args(argv)


def find_model(text: str) -> tuple[Path, Path | None]:
    """The directory of a model, and its ONNX file if it is one.

    Raises:
        UserError: no such directory or file, or onnxruntime is not installed.
    """
    path = Path(text)
    if path.is_dir():
        return path, None
    require_file(path, "a model directory of run.py, or an ONNX file of export.py")
    if path.suffix != ".onnx":
        raise UserError(f"{path}: is no ONNX file; give a model directory of run.py, or an ONNX file of export.py")
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(f"{path}: needs onnxruntime; run: pip install -r pretraining/requirements-export.txt")
    return path.parent, path


def task_of(directory: Path, given: str | None, input_format: str) -> Task:
    """The task of a model, with the fields and the layout of what is predicted.

    Raises:
        UserError: the model has no task.json and ``--task`` is not given, or the file is wrong.
    """
    path = directory / TASK_FILE
    if given:
        task = find_task(given)
    elif path.is_file():
        task = to_task(path, read_json(path, "the task of the model"))
    else:
        raise UserError(f"{directory}: has no {TASK_FILE}; is it a model that run.py saved? A model of an older version needs --task")
    fields = {"squad": ("question", "context"), "conll": ("text",)}.get(task.layout, task.fields)
    layout = task.layout if task.layout == "cluewsc" and input_format == "jsonl" else input_format
    return replace(task, fields=fields, layout=layout, columns=(), position=0)  # position 0: blank lines are errors


def read_examples(task: Task, path: str) -> Iterator[Any]:
    """The examples of an input.

    Raises:
        UserError: anything that is wrong with the input; the message has the line.
    """
    if task.layout == "text":
        rows = text_rows(task, path)
    else:
        rows = read_rows(task, path, with_label=False)
    if task.layout == "cluewsc":
        rows = mark_spans(path, rows)
    for number, row in rows:
        if task.is_labelling:
            yield Sentence(str(number), to_tokens(path, number, task, row), ())
            continue
        texts = to_texts(task, path, number, row)
        if task.is_reading:
            question, context = texts
            yield Question(str(number), question, context, (), -1)
        else:
            yield Example(str(number), texts, 0)


def text_rows(task: Task, path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Lines of text; the fields of a task with two have a tab between them."""
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            raise blank_line(path, number)
        texts = line.split("\t") if len(task.fields) > 1 else [line]
        if len(texts) != len(task.fields):
            names = " and ".join(task.fields)
            raise UserError(f"{path}:{number}: has {len(texts)} parts instead of {len(task.fields)}; write {names} with a tab between them")
        yield number, dict(zip(task.fields, texts))


# ---------------------------------------------------------------- output


def to_line(prediction: dict[str, Any], output_format: str) -> str:
    """A prediction as a line; in a table the entities are TYPE:text[start,end) and there are no probabilities of other labels."""
    if output_format == "jsonl":
        return json.dumps(prediction, ensure_ascii=False)
    if "entities" in prediction:
        marked = [f"{each['type']}:{each['text']}[{each['start']},{each['end']})" for each in prediction["entities"]]
        prediction = {**prediction, "entities": " ".join(marked)}
    cells = [str(value) for name, value in prediction.items() if name != "probabilities"]
    return "\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in cells)


def write_predictions(predictor: Any, args: argparse.Namespace, path: str, total: int | None, output: IO[str]) -> int:
    """Predicts block by block and writes each as soon as it is done; returns the number of texts."""
    done = 0
    examples = read_examples(predictor.task, path)
    with progress_bar(total=total, desc="predict", unit=" texts", disable=total is None) as bar:
        while block := list(islice(examples, BLOCK)):
            predictions = predictor.predict(block)
            if not done and args.output_format == "tsv":
                print("\t".join(name for name in predictions[0] if name != "probabilities"), file=output)
            for prediction in predictions:
                print(to_line(prediction, args.output_format), file=output)
            output.flush()
            done += len(block)
            bar.update(len(block))
    if not done:
        raise UserError(f"{path}: has no text")
    return done


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    directory, onnx = find_model(args.model)
    from_stdin = args.input == "-"
    path = STDIN if from_stdin else str(require_file(args.input, "the texts to predict"))
    task = task_of(directory, args.task, args.input_format or FORMATS.get(Path(path).suffix, "text"))
    tokenizer = load_tokenizer(directory)
    total = None
    if not from_stdin:  # standard input can be read only once
        total = sum(1 for _ in read_examples(task, path))

    from finetuning.predictor import load_predictor  # torch and the models take seconds to import; wrong input is refused before

    predictor = load_predictor(directory, onnx, task, tokenizer, args.batch_size)
    start = time.perf_counter()
    with atomic_write(args.output) if args.output else nullcontext(sys.stdout) as output:
        done = write_predictions(predictor, args, path, total, output)
    seconds = time.perf_counter() - start
    print(f"{done} sentences in {seconds:.1f} s: {done / seconds:.1f} sentences/s", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
