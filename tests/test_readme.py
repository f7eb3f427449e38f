"""README.md and README_ZH.md have the same sections, commands, names and figures; and what the documents name exists."""

import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from finetuning.published import PUBLISHED as PUBLISHED_FIGURES
from finetuning.task_definitions import TASKS
from pretraining.config import TrainingArguments
from pretraining.recipes import ASSISTANT, RECIPES, Settings
from pretraining.reporting.published_models import PUBLISHED

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("pretraining", "finetuning", "benchmarks", "experiments")
HEADINGS = [
    ("# MiniRBT", "# MiniRBT"),
    ("## What the demo does", "## 演示内容"),
    ("## Distil your own model", "## 蒸馏自己的模型"),
    ("## Arguments of `train.py`", "## `train.py` 的参数"),
    ("## If it stops", "## 训练中断时"),
    ("## Models", "## 模型"),
    ("## How good is it: the seven tasks", "## 效果评测：七个任务"),
    ("### Your own data", "### 使用自己的数据"),
    ("### Distil once more while fine-tuning", "### 精调时再次蒸馏"),
    ("### What the figures mean", "### 指标说明"),
    ("### Compare and export", "### 比较与导出"),
    ("## Layout", "## 目录结构"),
    ("## FAQ", "## 常见问题"),
    ("## Licence", "## 许可证"),
]


class Block(NamedTuple):
    """A heading, code block, table row, list item or paragraph. ``kind`` has a heading's level and a code block's language."""

    kind: str
    text: str


def read_blocks(name: str) -> list[Block]:
    """The blocks of a Markdown file; the lines of a paragraph or list item are joined by blanks."""
    blocks: list[Block] = []
    text = (ROOT / name).read_text(encoding="utf-8")
    for index, part in enumerate(re.split(r"^```(.*\n(?:.*\n)*?)```$", text, flags=re.MULTILINE)):
        if index % 2:
            language, _, code = part.partition("\n")
            blocks.append(Block(f"code {language}", code))
            continue
        for paragraph in re.split(r"\n(?=\||- |#)|\n\s*\n", part):
            line = " ".join(paragraph.split())
            marker = re.match(r"#+|\||-", line)
            kinds = {"|": "table row", "-": "list item"}
            if line:
                blocks.append(Block(kinds.get(marker[0], marker[0]) if marker else "paragraph", line))
    return blocks


def cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip("|").split("|")]


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def commands(code: str) -> list[str]:
    """The lines of a code block without comments."""
    return [line for line in (re.sub(r"(^|\s+)# .*", "", line) for line in code.splitlines()) if line]


def facts(text: str) -> Counter[str]:
    """What no translation changes: names and commands in backticks, links, figures."""
    prose = re.sub(r"`[^`]+`|\]\([^)]*\)", " ", text)
    figures = re.findall(r"(?<![A-Za-z0-9.])\d+(?:[.,]\d+)*(?:e-\d+)?", prose)
    links = [link.replace("README_ZH", "README") for link in re.findall(r"\]\(([^)]*)\)", text)]
    return Counter([*code_spans(text), *links, *figures])


ENGLISH, CHINESE = read_blocks("README.md"), read_blocks("README_ZH.md")


def section(heading: str) -> list[Block]:
    """The blocks of README.md below a heading, up to the next heading."""
    start = ENGLISH.index(Block(heading.split()[0], heading)) + 1
    length = next((index for index, block in enumerate(ENGLISH[start:]) if block.kind.startswith("#")), None)
    return ENGLISH[start:][:length]


def table(heading: str, number: int = 0) -> list[list[str]]:
    """The rows of a table of a section, without its header; ``number`` counts the tables of the section from 0."""
    tables: list[list[list[str]]] = []
    blocks = section(heading)
    for block, before in zip(blocks, [Block("", ""), *blocks]):
        if block.kind == "table row":
            if before.kind != "table row":
                tables.append([])
            tables[-1].append(cells(block.text))
    return tables[number][2:]


# ---------------------------------------------------------------- the two READMEs


def test_headings_are_paired():
    headings = [[block.text for block in blocks if block.kind.startswith("#")] for blocks in (ENGLISH, CHINESE)]
    assert headings == [list(texts) for texts in zip(*HEADINGS)]


def test_blocks_are_of_the_same_kinds_in_the_same_order():
    assert [block.kind for block in ENGLISH] == [block.kind for block in CHINESE]


def test_code_blocks_have_the_same_commands():
    english, chinese = ([commands(block.text) for block in blocks if block.kind.startswith("code")] for blocks in (ENGLISH, CHINESE))
    assert len(english) >= 8
    assert english == chinese


def test_blocks_have_the_same_names_links_and_figures():
    for english, chinese in zip(ENGLISH, CHINESE):
        if english.kind.startswith("code"):
            continue
        parts = [cells(block.text) if block.kind == "table row" else [block.text] for block in (english, chinese)]
        assert [facts(text) for text in parts[0]] == [facts(text) for text in parts[1]], f"\n{english.text}\n{chinese.text}"


# ---------------------------------------------------------------- the README and the code


def test_paths_of_the_layout_exist():
    for path_cell, contents in table("## Layout"):
        paths = [ROOT / path for path in code_spans(path_cell) + re.findall(r"\]\(([^)]*)\)", path_cell)]
        assert paths and [path for path in paths if not path.exists()] == []
        folders = [path if path.is_dir() else path.parent for path in paths]
        for name in code_spans(contents):
            if re.fullmatch(r"[\w/]+(/|\.\w+)", name):
                assert any((folder / name).exists() for folder in folders), name


def test_links_lead_to_files():
    links = [link for block in ENGLISH + CHINESE for link in re.findall(r"\]\(([^)]*)\)", block.text)]
    assert links and [link for link in links if not (ROOT / link).is_file()] == []


def test_arguments_are_those_of_train_py():
    aliases = [alias for field in fields(TrainingArguments) for alias in field.metadata.get("aliases", [])]
    known = {field.name for field in fields(TrainingArguments)} | {alias.removeprefix("--") for alias in aliases}
    named = [name for row in table("## Arguments of `train.py`") for name in code_spans(row[0])]
    assert len(named) > 20 and set(named) <= known


def test_every_option_exists():
    sources = "".join(path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    known = set(re.findall(r'"--(\w+)"', sources)) | {field.name for field in fields(TrainingArguments)}
    options = [name for block in ENGLISH for name in re.findall(r"(?<![\w-])--(\w+)", block.text)]
    assert len(options) > 30 and set(options) <= known | {"help"}


def test_every_script_exists():
    scripts = [script for block in ENGLISH for script in re.findall(r"python ([\w/]+\.py)", block.text)]
    assert len(scripts) > 10
    assert [script for script in scripts if not any((ROOT / folder / script).is_file() for folder in (".", "pretraining"))] == []


def test_every_make_target_exists():
    lines = [line for block in ENGLISH for line in (commands(block.text) if block.kind.startswith("code") else code_spans(block.text))]
    targets = [line.split()[-1] for line in lines if line.startswith("make ")]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(targets) > 5 and [target for target in targets if f"\n{target}:" not in makefile] == []


def test_variables_are_those_of_distill_sh():
    script = (ROOT / "pretraining" / "distill.sh").read_text(encoding="utf-8")
    named = [name for row in table("## Distil your own model", 2) for name in code_spans(row[0])]
    assert sorted(named) == sorted({field.name for field in fields(Settings)} - {"recipe"})
    assert [name for name in named if f"\n{name}=${{{name}:-" not in script] == []
    calls = [call for block in ENGLISH for call in re.findall(r"sh distill\.sh(?: [\w-]+)?((?: \w+=[^\s`]+)+)", block.text)]
    assert len(calls) == 5 and set(re.findall(r"(\w+)=", "".join(calls))) <= set(named)


def test_recipes_are_those_of_recipes_py():
    rows = [[code_spans(cell) for cell in row] for row in table("## Distil your own model", 1)]
    expected = []
    for recipe in RECIPES:
        names = [ASSISTANT, recipe.student] if recipe.two_stage else [recipe.student]
        mappings = ["L6_hidden_mse"] * recipe.two_stage + recipe.matches.split()
        expected.append([[recipe.name], [], mappings, [f"saves/{name}/" for name in names]])
    assert rows == expected


def test_published_models_are_those_of_the_code():
    for name, *shape, parameters, without_embeddings, speedup in table("## Models"):
        model = PUBLISHED[name]
        assert ("/".join(shape), speedup) == (model.shape, model.speedup)
        assert parameters.replace(" M ", "M ").split()[0] == model.parameters
        assert without_embeddings.replace(" M ", "M ").split()[0] == model.without_embeddings
    assert [row[0] for row in table("## Models")] == list(PUBLISHED)


def test_tasks_are_those_of_finetuning():
    rows = table("## How good is it: the seven tasks")
    assert [row[0] for row in rows] == [f"`{name}`" for name in PUBLISHED_FIGURES["RoBERTa"]]
    for name, files, metric, tokens in rows:
        task = TASKS[name.strip("`")]
        names = {name for name in code_spans(files) if re.fullmatch(r".+\.\w+", name)}
        assert names <= {*task.files["train"], *task.files["dev"], "labels.json"}
        assert metric == ("F1 / EM" if task.is_reading else "accuracy") and tokens.split(",")[0] == str(task.max_seq_length)


def test_messages_are_those_of_the_code():
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pretraining").rglob("*.py"))
    messages = [code_spans(row[0])[0].strip("… ") for row in table("## If it stops")]
    assert len(messages) == 8 and [message for message in messages if message not in sources] == []


def test_paths_of_contributing_exist():
    spans = [span for block in read_blocks("CONTRIBUTING.md") for span in code_spans(block.text)]
    paths = [span for span in spans if re.fullmatch(rf"({'|'.join(PACKAGES)}|tests)/[\w./-]*", span) and "NAME" not in span]
    assert len(paths) > 20 and [path for path in paths if not (ROOT / path).exists()] == []


def test_git_ignores_a_corpus_of_ones_own():
    """README asks for dataset/corpus/, and a list by hand goes into jsons/; nobody needs to edit a tracked file."""
    assert "dataset/corpus/data.json" in (ROOT / "README.md").read_text(encoding="utf-8")
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8")
    assert "/pretraining/jsons/*\n!/pretraining/jsons/data.json\n" in ignored and "/pretraining/dataset/corpus/\n" in ignored
