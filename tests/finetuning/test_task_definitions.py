"""The JSON files that define the tasks."""

import json
import re
import shutil
from pathlib import Path

import pytest

from finetuning.task_definitions import TASKS, TASKS_DIR, TaskFiles, read_task
from finetuning.tasks import Example, load_split
from pretraining.utils import UserError
from tests.finetuning.helpers import jsonl


def test_the_seven_tasks_are_in_the_order_of_the_tables():
    seven, clue = list(TASKS.values())[:7], list(TASKS.values())[7:]
    assert [task.name for task in seven] == ["cmrc2018", "drcd", "ocnli", "lcqmc", "bq", "tnews", "chnsenticorp"]
    assert [task.title for task in seven] == ["CMRC 2018", "DRCD", "OCNLI", "LCQMC", "BQ Corpus", "TNEWS", "ChnSentiCorp"]
    assert [task.metrics for task in seven] == [("f1", "em")] * 2 + [("accuracy",)] * 5
    sizes = {task.title: tuple(task.sizes.values()) for task in clue}
    assert sizes == {
        "AFQMC": (34334, 4316),
        "IFLYTEK": (12133, 2599),
        "CMNLI": (391783, 12241),
        "CLUEWSC2020": (1244, 304),
        "CSL": (20000, 3000),
    }


def change(directory: Path, **changes) -> Path:
    """A copy of ocnli.json with other values; None takes a field out."""
    values = {**json.loads((TASKS_DIR / "ocnli.json").read_text()), **changes}
    path = directory / "ocnli.json"
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not None}))
    return path


def test_a_new_task_needs_its_json_file_alone(tmp_path):
    shutil.copytree(TASKS_DIR, tmp_path / "tasks")
    change(tmp_path, name="mine", title="Mine", position=13, labels=["0", "1"], skipped_labels=["?"])
    (tmp_path / "ocnli.json").rename(tmp_path / "tasks" / "mine.json")
    tasks = TaskFiles(tmp_path / "tasks")
    assert list(tasks) == [*TASKS, "mine"] and tasks["mine"].title == "Mine"
    rows = [{"sentence1": "甲", "sentence2": "乙", "label": label} for label in ("1", "?", "0")]
    (tmp_path / "dev.json").write_text(jsonl(*rows))
    examples = load_split(tasks["mine"], tmp_path / "dev.json", tasks["mine"].labels)
    assert examples == [Example("1", ("甲", "乙"), 1), Example("3", ("甲", "乙"), 0)]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"kind": None}, "has no 'kind'"),
        ({"epochs": 3}, "'epochs' is not a field of a task; the fields are name, kind, layout, files, title, position, sizes"),
        ({"title": ""}, "'title' must be a text"),
        ({"position": 1.5}, "'position' must be a whole number above 0"),
        ({"max_seq_length": True}, "'max_seq_length' must be a whole number above 0"),
        ({"max_seq_length": 15}, "'max_seq_length' must be at least 16"),
        ({"learning_rate_small": "1e-4"}, "'learning_rate_small' must be a number above 0"),
        ({"labels": "yes no"}, "'labels' must be a list of texts"),
        ({"labels": ["yes", "yes"]}, "'labels' must have at least two labels, each once"),
        ({"labels": ["yes"]}, "'labels' must have at least two labels, each once"),
        ({"sizes": {"train": 3, "dev": 0}}, "'sizes' must be an object of whole numbers above 0"),
        ({"files": {"train": ["train.json"], "dev": []}}, "'files' must be an object of file names or lists of them, none of them empty"),
        ({"files": {"train": "train.json"}}, "'files' must have the splits train and dev"),
        ({"sizes": {"train": 3}}, "'files' and 'sizes' must have the same splits"),
        ({"name": "other"}, "'name' is 'other'; it must be the name of the file, 'ocnli'"),
        ({"kind": "ner"}, "'kind' is 'ner'; it must be one of classification, reading, labelling"),
        ({"layout": "xml"}, "'layout' is 'xml'; for classification it must be one of jsonl, table, cluewsc"),
        ({"metric": "f1_em"}, "'metric' is 'f1_em'; for classification it must be one of accuracy, macro_f1"),
        ({"kind": "labelling"}, "'fields' must name the text"),
        ({"kind": "reading", "fields": ["a"]}, "'fields' must name the question and the context"),
        ({"label": "sentence1"}, "'fields' must name one or two texts"),
        ({"title": "\ud800"}, "'title' must be a text"),
        ({"layout": "table", "columns": ["sentence1", "sentence2", "label", "label"]}, "'columns' names one column twice"),
        ({"fields": []}, "'fields' must name one or two texts"),
        ({"layout": "table", "columns": ["sentence1", "label"]}, "'columns' must name the fields and 'label'"),
    ],
)
def test_an_error_names_the_file_and_the_field(tmp_path, changes, message):
    path = change(tmp_path, **changes)
    with pytest.raises(UserError, match=re.escape(f"{path}: {message}")):
        read_task(path)


def test_two_tasks_at_one_position_are_refused(tmp_path):
    shutil.copytree(TASKS_DIR, tmp_path / "tasks")
    change(tmp_path, name="mine").rename(tmp_path / "tasks" / "mine.json")
    message = f"{tmp_path}/tasks/ocnli.json: 'position' is 3, as in {tmp_path}/tasks/mine.json; give each task its own"
    with pytest.raises(UserError, match=re.escape(message)):
        list(TaskFiles(tmp_path / "tasks"))
