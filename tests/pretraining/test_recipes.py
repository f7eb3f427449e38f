"""distill.sh and its recipes: the exact commands, the settings that are refused, the order of the stages, exit statuses and signals."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import types
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import pytest

from pretraining import recipes
from pretraining.corpus.locks import exclusive
from pretraining.reporting.costs import read_training
from pretraining.utils import UserError

DISTILL_SH = Path(recipes.__file__).with_name("distill.sh")
TWO_STAGE = ("h256", "h288", "h256-relation", "h288-relation")

# Stands for python: runs recipes.py, notes every other command in $LOG, and does to one of them what a test wants.
FAKE_PYTHON = """#!{python} -SE
import json, os, signal, sys, time

words = sys.argv[1:]
if words[0] == "-c" or words[0] == "recipes.py" and "HANDED_OVER" not in os.environ:
    os.execv("{python}", ["{python}", *words])


def note(entry):
    with open(os.environ["LOG"], "a") as log:
        log.write(json.dumps(entry) + "\\n")


def stop(number, frame):
    note(signal.Signals(number).name)
    time.sleep(0.2)  # the checkpoint
    note("checkpoint")
    sys.exit(7)


command = " ".join(words)
if os.environ.get("WAIT_IN", "?") in command:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)
note(words)
if os.environ.get("WAIT_IN", "?") in command:
    time.sleep(float(os.environ["SECONDS_TO_WAIT"]))
if os.environ.get("KILLED_IN", "?") in command:
    os.kill(os.getpid(), signal.SIGKILL)
if os.environ.get("FAILS_IN", "?") in command:
    sys.exit(int(os.environ["STATUS"]))
"""


class Ended(NamedTuple):
    """How distill.sh ended, and what its commands noted."""

    status: int
    out: str
    err: str
    noted: list


class Shell:
    """distill.sh with commands that only note their arguments."""

    def __init__(self, directory: Path):
        self.python, self.log = directory / "python of the test", directory / "log"
        self.python.write_text(FAKE_PYTHON.format(python=sys.executable))
        self.python.chmod(0o755)
        self.log.touch()
        self.saves = directory / "saves"

    def start(self, *words: str, before: str = "", **variables: str) -> subprocess.Popen:
        """Starts ``sh distill.sh`` in a process group of its own; ``before``: shell commands that come first."""
        own = {"LOG": self.log, "python": self.python, "ngpu": "1", "workers": "3", "saves": self.saves}
        environment = {name: str(value) for name, value in {**own, **variables}.items()}
        return subprocess.Popen(
            ["sh", "-c", f'{before} exec sh "$@"', "sh", str(DISTILL_SH), *words],
            cwd="/",
            env={"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def noted(self) -> list:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, process: subprocess.Popen) -> Ended:
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out, err, self.noted())

    def run(self, *words: str, **variables: str) -> Ended:
        return self.end(self.start(*words, **variables))

    def handed_over(self, *words: str, **variables: str) -> list[str]:
        """The arguments that recipes.py gets."""
        ended = self.run(*words, HANDED_OVER="1", **{"saves": "", "python": str(self.python), **variables})
        assert ended.status == 0, ended.err
        assert ended.noted[-1][0] == "recipes.py" and ended.noted[-1][-1 - len(words) :] == ["--", *words]
        return ended.noted[-1][1 : -1 - len(words)]

    def wait_for(self, word: str) -> None:
        """Waits until a command with that word has noted itself."""
        end = time.monotonic() + 30
        while not any(word in entry for entry in self.noted()):
            assert time.monotonic() < end, f"no command with {word}"
            time.sleep(0.01)


@pytest.fixture
def shell(tmp_path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture(scope="module")
def defaults(tmp_path_factory) -> dict[str, str]:
    """The variables as distill.sh hands them over when nothing is set but ngpu, workers and python."""
    shell = Shell(tmp_path_factory.mktemp("defaults"))
    return dict(word.removeprefix("--").split("=", 1) for word in shell.handed_over()) | {"python": "python"}


def texts_of(defaults: dict[str, str], *words: str, **changes: str) -> dict[str, str]:
    """What recipes.py reads if distill.sh gets these words and hands over these variables."""
    return recipes.read_texts([*(f"--{name}={value}" for name, value in {**defaults, **changes}.items()), "--", *words])


def settings_of(defaults: dict[str, str], *words: str, **changes: str) -> recipes.Settings:
    return recipes.read_settings(texts_of(defaults, *words, **changes))


# ---------------------------------------------------------------- the variables


def test_every_variable_is_handed_over_by_name(shell):
    """The variables of distill.sh, what it hands over and the fields of Settings are the same, in the same order."""
    names = [field.name for field in fields(recipes.Settings)][1:]
    documented = re.findall(r"^(\w+)=\$\{\1:-", DISTILL_SH.read_text(), re.MULTILINE)
    assert documented == names
    values = {name: f"the {name}" for name in names if name != "python"}
    handed_over = [word.split("=", 1) for word in shell.handed_over("the recipe", "and more", **values)]
    assert [name for name, _ in handed_over] == [f"--{name}" for name in names]
    assert dict(handed_over) == {f"--{name}": f"the {name}" for name in names} | {"--python": str(shell.python)}


def test_the_published_values_are_the_defaults(defaults):
    assert defaults == {
        "teacher": "./pretrained_model_path/RoBERTa",
        "json_files": "./jsons/data.json",
        "data_cache_dir": "./dataset/shards",
        "saves": "./saves",
        "ngpu": "1",
        "nnodes": "1",
        "node_rank": "0",
        "master_addr": "127.0.0.1",
        "master_port": "29500",
        "train_steps": "100000",
        "save_steps": "10000",
        "global_batch": "4096",
        "forward_batch": "auto",
        "length": "512",
        "lr": "4e-4",
        "temperature": "8",
        "seed": "10236797",
        "precision": "bf16",
        "compile": "auto",
        "workers": "3",
        "python": "python",
        "ta_config": "./distill_configs/distill_rbt6.json",
        "ta_layers": "0 2 4 7 9 11",
        "ta_matches": "L6_hidden_mse",
        "student_config": "",
        "student_matches": "",
    }


def test_the_published_values_of_settings_are_those_of_distill_sh(defaults):
    published = {field.name: field.metadata["default"] for field in fields(recipes.Settings)}
    assert published == {**defaults, "recipe": "h256", "ngpu": "", "workers": str(os.cpu_count())}


@pytest.mark.parametrize(
    ("words", "changes"),
    [
        ([], {}),
        (["h288"], {"recipe": "h288"}),
        (["train_steps=1000"], {"train_steps": "1000"}),
        (["h288", "train_steps=1000", "lr=1e-3"], {"recipe": "h288", "train_steps": "1000", "lr": "1e-3"}),
        (["teacher=a=b c", "rbt4"], {"recipe": "rbt4", "teacher": "a=b c"}),
        (["saves=--x", ""], {"saves": "--x"}),
        (["recipe=rbt3"], {"recipe": "rbt3"}),
    ],
)
def test_words_are_the_recipe_and_variables(words, changes, defaults):
    assert texts_of(defaults, *words) == {"recipe": "h256", **defaults, **changes}


def test_a_word_wins_over_a_variable_from_outside(shell):
    ended = shell.run("h288", "train_steps=6", train_steps="5")
    assert ended.status == 0 and f"{shell.saves}/minirbt_h288/gs6: load it" in ended.out


def test_python_may_be_a_word(shell):
    ended = shell.run("rbt4", f"python={shell.python}", python="no_such_python")
    assert ended.status == 0 and steps_of(ended.noted)[-1] == "train rbt4_h312"


DEFAULTS_OF_H256 = """==== h256, with these settings:
  teacher=./pretrained_model_path/RoBERTa  json_files=./jsons/data.json  data_cache_dir=./dataset/shards  saves=./saves
  ngpu=1  nnodes=1  node_rank=0  master_addr=127.0.0.1  master_port=29500  train_steps=100000  save_steps=10000
  global_batch=4096  forward_batch=auto  length=512  lr=4e-4  temperature=8  seed=10236797  precision=bf16  compile=auto
  workers={cpus}  python=python  ta_config=./distill_configs/distill_rbt6.json  ta_layers='0 2 4 7 9 11'
  ta_matches=L6_hidden_mse  student_config=./distill_configs/MiniRBT-h256.json  student_matches=L6h256_rbt6_hidden_mse
not the default: {changed}"""


def test_the_settings_in_force_are_printed(defaults, monkeypatch):
    monkeypatch.setattr(recipes, "visible_gpus", lambda: 1)
    texts = texts_of(defaults, ngpu="", workers=str(os.cpu_count()))
    table = recipes.settings_table(recipes.read_settings(texts), texts)
    assert table == DEFAULTS_OF_H256.format(cpus=os.cpu_count(), changed="nothing")
    texts = texts_of(defaults, "h288", "train_steps=5", "lr=1e-3", "ta_layers=0 1", "ngpu=2", workers=str(os.cpu_count()))
    table = recipes.settings_table(recipes.read_settings(texts), texts)
    assert table.startswith("==== h288, ") and "  student_matches=L6h288_rbt6_hidden_mse\nnot the default: " in table
    changed = "ngpu=2, train_steps=5 (default 100000), lr=1e-3 (default 4e-4), ta_layers='0 1' (default 0 2 4 7 9 11)"
    assert table.splitlines()[-1] == f"not the default: {changed}"


@pytest.mark.parametrize(("visible", "processes"), [(0, 1), (1, 1), (3, 3)])
def test_ngpu_is_the_number_of_visible_gpus_where_it_is_not_set(visible, processes, defaults, monkeypatch):
    torch = types.SimpleNamespace(cuda=types.SimpleNamespace(device_count=lambda: visible))
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert settings_of(defaults, ngpu="", global_batch="3").ngpu == processes


def test_torch_is_imported_only_to_count_gpus(defaults):
    program = (
        "import sys; from pretraining import recipes; recipes.build_stages(recipes.read_settings(recipes.read_texts(sys.argv[1:]))); "
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    arguments = [f"--{name}={value}" for name, value in defaults.items()]
    assert subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True).stdout == "[]\n"


# ---------------------------------------------------------------- the commands

RUN = (
    "train.py --do_train --resume_from_checkpoint latest --student_config ./distill_configs/{config}.json --output_dir ./saves/{name} "
    "--data_files_json ./jsons/data.json --data_cache_dir ./dataset/shards --preprocessing_num_workers 3 --max_seq_length 512 "
    "--num_train_steps 100000 --ckpt_steps 10000 --train_batch_size 4096 "
    "--learning_rate 4e-4 --official_schedule linear --temperature 8 --random_seed 10236797 "
)
ROBERTA = "./pretrained_model_path/RoBERTa"
ASSISTANT = RUN.format(name="rbt6_kd", config="distill_rbt6") + f"--teacher_name_or_path {ROBERTA} --matches L6_hidden_mse"


def student(name: str, config: str, arguments: str = "") -> str:
    return f"{RUN.format(name=name, config=config)}--tokenizer {ROBERTA}{arguments}"


def init(name: str, config: str, layers: str) -> str:
    return f"scripts/init_checkpoint_TA.py --model_name_or_path {ROBERTA} --dump_checkpoint ./saves/{name} --student_config ./distill_configs/{config}.json --layers {layers}"


H256 = student("minirbt_h256", "MiniRBT-h256", " --matches L6h256_rbt6_hidden_mse --teacher_name_or_path ")
H288 = student("minirbt_h288", "MiniRBT-h288", " --matches L6h288_rbt6_hidden_mse --teacher_name_or_path ")
ONE_STAGE = student("minirbt_h256_one_stage", "MiniRBT-h256", f" --matches L6h256_roberta_hidden_mse --teacher_name_or_path {ROBERTA}")
RBT4 = student("rbt4_h312", "distill_rbt4_312", f" --matches L4t_hidden_mse --teacher_name_or_path {ROBERTA}")
RBT3 = student("rbt3", "distill_rbt3")
RELATIONS = {
    size: student(f"minirbt_{size}_relation", f"MiniRBT-{size}", f" --matches L6{size}_rbt6_relation --teacher_name_or_path ")
    for size in ("h256", "h288")
}
RBT4_RELATION = student("rbt4_h312_relation", "distill_rbt4_312", f" --matches L4h312_roberta_relation --teacher_name_or_path {ROBERTA}")

CHOICES = "h256, h288, one-stage, rbt4, rbt3, h256-relation, h288-relation or rbt4-relation"

# Per stage: the directory, the check, the command that writes the first weights, the run.
ASSISTANT_STAGE = (
    "./saves/rbt6_kd",
    f"{ASSISTANT} --bf16 --check_only",
    init("rbt6_init", "distill_rbt6", "0 2 4 7 9 11"),
    f"{ASSISTANT} --student_pretrained_weights ./saves/rbt6_init --bf16",
)
COMMANDS = {
    "h256": [
        ASSISTANT_STAGE,
        (
            "./saves/minirbt_h256",
            f"{H256}./distill_configs/distill_rbt6.json --bf16 --check_only",
            "",
            f"{H256}./saves/rbt6_kd/gs100000 --bf16",
        ),
    ],
    "h288": [
        ASSISTANT_STAGE,
        (
            "./saves/minirbt_h288",
            f"{H288}./distill_configs/distill_rbt6.json --bf16 --check_only",
            "",
            f"{H288}./saves/rbt6_kd/gs100000 --bf16",
        ),
    ],
    "one-stage": [("./saves/minirbt_h256_one_stage", f"{ONE_STAGE} --bf16 --check_only", "", f"{ONE_STAGE} --bf16")],
    "rbt4": [("./saves/rbt4_h312", f"{RBT4} --bf16 --check_only", "", f"{RBT4} --bf16")],
    "rbt3": [
        (
            "./saves/rbt3",
            f"{RBT3} --bf16 --check_only",
            init("rbt3_init", "distill_rbt3", "0 1 2"),
            f"{RBT3} --student_pretrained_weights ./saves/rbt3_init --bf16",
        )
    ],
    **{
        f"{size}-relation": [
            ASSISTANT_STAGE,
            (
                f"./saves/minirbt_{size}_relation",
                f"{command}./distill_configs/distill_rbt6.json --bf16 --check_only",
                "",
                f"{command}./saves/rbt6_kd/gs100000 --bf16",
            ),
        ]
        for size, command in RELATIONS.items()
    },
    "rbt4-relation": [("./saves/rbt4_h312_relation", f"{RBT4_RELATION} --bf16 --check_only", "", f"{RBT4_RELATION} --bf16")],
}
SHARDS = (
    f"my_datasets.py --data_files_json ./jsons/data.json --data_cache_dir ./dataset/shards --tokenizer {ROBERTA} "
    "--max_seq_length 512 --preprocessing_num_workers 3"
)


def words_of(line: str) -> list[str]:
    return ["python", *shlex.split(line)] if line else []


def test_the_recipes_are_these():
    assert [recipe.name for recipe in recipes.RECIPES] == list(COMMANDS)


@pytest.mark.parametrize("recipe", COMMANDS)
def test_commands_of_a_recipe(recipe, defaults):
    settings = settings_of(defaults, recipe)
    expected = [
        recipes.Stage(directory, words_of(check), words_of(first_weights), words_of(train))
        for directory, check, first_weights, train in COMMANDS[recipe]
    ]
    assert recipes.build_stages(settings) == expected
    assert recipes.shards_command(settings) == words_of(SHARDS)


@pytest.mark.parametrize("recipe", COMMANDS)
def test_the_models_and_mappings_of_a_recipe_fit_each_other(recipe, defaults, monkeypatch):
    """With the files that the repository has, and RoBERTa's sizes."""
    monkeypatch.chdir(DISTILL_SH.parent)
    trainings = [read_training(stage) for stage in recipes.build_stages(settings_of(defaults, recipe))]
    assert [bool(training.matches) for training in trainings] == [bool(training.teacher) for training in trainings]
    expected = {"query", "key", "value"} if recipe.endswith("-relation") else set() if recipe == "rbt3" else {"hidden"}
    assert {match["feature"] for match in trainings[-1].matches} == expected


def test_one_machine_that_srun_starts_twice_is_refused(defaults, monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    with pytest.raises(UserError, match="nnodes=1: srun started 2 of these; set nnodes=2 and node_rank="):
        settings_of(defaults, "h256")
    settings_of(defaults, "h256", nnodes="2")


@pytest.mark.parametrize("recipe", COMMANDS)
def test_several_processes_are_started_by_torchrun(recipe, defaults):
    """The runs alone; their checks, the first weights and the shards take one process."""
    one = recipes.build_stages(settings_of(defaults, recipe, global_batch="1024"))
    machines = {"ngpu": "2", "nnodes": "2", "node_rank": "1", "master_addr": "10.0.0.7", "master_port": "1234"}
    several = recipes.build_stages(settings_of(defaults, recipe, **machines))
    torchrun = words_of(
        "-m pretraining.launching.torchrun --nproc_per_node=2 --nnodes=2 --node_rank=1 --master_addr=10.0.0.7 --master_port=1234 "
        "--shutdown-timeout=1800 --rdzv-conf=timeout=100"
    )
    second = [word.replace("=1234", "=1235") for word in torchrun]  # else it could join the store of the stage that is ending
    assert several == [stage._replace(train=words + stage.train[1:]) for stage, words in zip(one, (torchrun, second))]


@pytest.mark.parametrize(
    ("precision", "compiled", "flags"),
    [
        ("bf16", "auto", ["--bf16"]),
        ("fp16", "no", ["--fp16", "--compile", "no"]),
        ("fp32", "auto", []),
        ("bf16", "yes", ["--bf16", "--compile", "yes"]),
        ("fp32", "yes", ["--compile", "yes"]),
    ],
)
def test_precision_and_compile(precision, compiled, flags, defaults):
    for stage in recipes.build_stages(settings_of(defaults, precision=precision, compile=compiled)):
        assert [word for word in stage.train if word in ("--bf16", "--fp16", "--compile", "yes", "no")] == flags
        assert stage.train[len(stage.train) - len(flags) :] == flags
        assert stage.check[len(stage.check) - len(flags) - 1 :] == [*flags, "--check_only"]


def test_values_reach_the_commands_as_they_are(defaults):
    """Blanks in paths stay; the lists are separated by any number of blanks."""
    own = {"teacher": "my teacher", "saves": "my saves", "ta_config": "my ta.json", "student_config": "my student.json", "python": "a b"}
    own |= {
        "ta_layers": " 0  11",
        "ta_matches": "L3_hidden_mse  L4_hidden_mse",
        "student_matches": "L6h1_L6h2_hidden_mse  L3_hidden_smmd",
        "json_files": "my data.json",
        "data_cache_dir": "c d",
    }
    assistant, student = recipes.build_stages(settings_of(defaults, **own, lr="1E-4", temperature="2.50", seed="007"))
    assert assistant.first_weights[3::2] == ["my teacher", "my saves/rbt6_init", "my ta.json", "0"] and assistant.first_weights[-2:] == [
        "0",
        "11",
    ]
    for stage, config, matches in (
        (assistant, "my ta.json", own["ta_matches"].split()),
        (student, "my student.json", own["student_matches"].split()),
    ):
        at = stage.train.index("--matches")
        assert stage.train[at + 1 : at + 3] == matches and stage.train[at + 3].startswith("--")
        for name, value in (("student_config", config), ("learning_rate", "1E-4"), ("temperature", "2.50"), ("random_seed", "007")):
            assert stage.train[stage.train.index(f"--{name}") + 1] == value
        for name, value in (("data_files_json", "my data.json"), ("data_cache_dir", "c d")):
            assert stage.train[stage.train.index(f"--{name}") + 1] == value
    assert student.directory == "my saves/minirbt_h256" and "my saves/rbt6_kd/gs100000" in student.train
    assert {command[0] for stage in (assistant, student) for command in (stage.check, stage.train)} == {"a b"}


# ---------------------------------------------------------------- the global batch


@pytest.mark.parametrize(
    ("ngpu", "nnodes", "global_batch", "forward_batch", "process_batch", "accumulation"),
    [
        (1, 1, 4096, 64, 4096, 64),
        (8, 1, 4096, 64, 512, 8),
        (8, 8, 4096, 64, 64, 1),
        (8, 16, 4096, 64, 32, 1),  # forward_batch is larger than a process's samples
        (2, 3, 12, 1, 2, 2),
        (1, 1, 1, 64, 1, 1),
        (3, 1, 12, 64, 4, 1),
        (8, 1, 4096, "auto", 512, None),
    ],
)
def test_the_global_batch_is_divided(ngpu, nnodes, global_batch, forward_batch, process_batch, accumulation, defaults):
    numbers = {"ngpu": ngpu, "nnodes": nnodes, "global_batch": global_batch, "forward_batch": forward_batch}
    settings = settings_of(defaults, **{name: str(number) for name, number in numbers.items()})
    for stage in recipes.build_stages(settings):
        assert stage.train[stage.train.index("--train_batch_size") + 1] == str(process_batch)
        name = "--gradient_accumulation_steps"
        assert (stage.train[stage.train.index(name) + 1] if name in stage.train else None) == (str(accumulation) if accumulation else None)


WHOLE = "must be a whole number above 0"
REFUSED = [
    *(({name: "0"}, f"distill.sh: {name}=0: {WHOLE}") for name in ("ngpu", "nnodes", "train_steps", "save_steps")),
    *(({name: "two"}, f"distill.sh: {name}=two: {WHOLE}") for name in ("global_batch", "forward_batch", "workers")),
    ({"train_steps": ""}, f"distill.sh: train_steps=: {WHOLE}"),
    ({"train_steps": "0.5"}, f"distill.sh: train_steps=0.5: {WHOLE}"),
    ({"train_steps": "1000000000"}, "distill.sh: train_steps=1000000000: must be at most 999999999"),
    ({"length": "3"}, "distill.sh: length=3: must be a whole number, 4 or above"),
    ({"node_rank": "-1"}, "distill.sh: node_rank=-1: must be a whole number, 0 or above"),
    ({"node_rank": "2", "nnodes": "2"}, "distill.sh: node_rank=2: must be less than nnodes=2; the machines count from 0"),
    ({"ngpu": "3", "nnodes": "2", "global_batch": "8"}, "distill.sh: global_batch=8: not divisible by ngpu=3 times nnodes=2"),
    ({"ngpu": "8", "global_batch": "4"}, "distill.sh: global_batch=4: not divisible by ngpu=8 times nnodes=1"),
    (
        {"ngpu": "2", "global_batch": "16", "forward_batch": "3"},
        "distill.sh: forward_batch=3: does not divide the 8 samples of a process and step",
    ),
    *(({"master_port": text}, f"distill.sh: master_port={text}: must be a whole number from 1 to 65535") for text in ("0", "65536", "a")),
    *(({name: "fast"}, f"distill.sh: {name}=fast: must be a number above 0") for name in ("lr", "temperature")),
    ({"lr": "-1e-4"}, "distill.sh: lr=-1e-4: must be a number above 0"),
    *(({"seed": seed}, rf"distill.sh: seed={seed}: must be a whole number from 0 to 2\*\*63 - 1") for seed in ("-1", "x", str(1 << 63))),
    ({"precision": "int8"}, "distill.sh: precision=int8: choose bf16, fp16 or fp32"),
    ({"compile": "1"}, "distill.sh: compile=1: choose auto, yes or no"),
]


OWN_SIZES = "matches.py lists all; for your own sizes write a name like L6h320_L12h1024_hidden_mse"


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=str)
def test_refused(changes, message, defaults):
    with pytest.raises(UserError) as refused:
        settings_of(defaults, **changes)
    assert re.fullmatch(message, str(refused.value))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["h312"], f"h312: no such recipe; choose {CHOICES}"),
        (["--help"], f"--help: no such recipe; choose {CHOICES}"),
        (["h256", "h288"], "h288: h256 is given too; give one recipe"),
        (["h256", "train_step=10"], "train_step=10: no such variable; did you mean train_steps=…?"),
        (["trainsteps=10"], "trainsteps=10: no such variable; did you mean train_steps=…?"),
        (["--lr=1e-3"], "--lr=1e-3: no such variable; did you mean lr=…?"),
        (["NGPU=2"], "NGPU=2: no such variable; did you mean ngpu=…?"),
        (["x=1"], "x=1: no such variable; the head of distill.sh lists them"),
        (["=1"], "=1: no such variable; the head of distill.sh lists them"),
        (["lr=1", "lr=2"], "lr=2: lr=1 is given too; give it once"),
        (["train_steps="], "train_steps=: has no value; write train_steps=VALUE or leave it out"),
        (["train_steps=two"], "train_steps=two: must be a whole number above 0"),
    ],
)
def test_wrong_words_are_refused(words, message, defaults):
    with pytest.raises(UserError) as refused:
        settings_of(defaults, *words)
    assert str(refused.value) == f"distill.sh: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("L6_hiden_mse", f"L6_hiden_mse: no such mapping; the nearest is L6_hidden_mse, {OWN_SIZES}"),
        ("L3_hidden_mse x", f"L3_hidden_mse x: x: no such mapping; the nearest is {{near}}, {OWN_SIZES}"),
        ("L0h8_L12h8_hidden_mse", "L0h8_L12h8_hidden_mse: layers and hidden sizes are whole numbers above 0"),
    ],
)
@pytest.mark.parametrize("name", ["ta_matches", "student_matches"])
def test_an_unknown_mapping_is_refused_by_the_name_of_its_variable(name, text, message, defaults):
    """train.py would call the variable --matches."""
    with pytest.raises(UserError) as refused:
        settings_of(defaults, **{name: text})
    near = re.search(r"nearest is (\w+)", str(refused.value))
    assert str(refused.value) == f"distill.sh: {name}={message.format(near=near and near[1])}"


@pytest.mark.parametrize(
    ("recipe", "unused"),
    [
        ("h256", ()),
        ("h288", ()),
        ("one-stage", ("ta_config", "ta_layers", "ta_matches")),
        ("rbt4", ("ta_config", "ta_layers", "ta_matches")),
        ("rbt3", ("ta_config", "ta_layers", "ta_matches", "student_matches", "temperature")),
    ],
)
def test_a_variable_that_the_recipe_does_not_use_is_refused(recipe, unused, defaults):
    """Somebody who sets it expects another result than the one without it."""
    values = {
        "ta_config": "own.json",
        "ta_layers": "0 1",
        "ta_matches": "L3_hidden_mse",
        "student_matches": "L3_hidden_mse",
        "temperature": "2",
    }
    for name, value in values.items():
        if name not in unused:
            settings_of(defaults, recipe, f"{name}={value}")
            continue
        for words, changes in (((f"{name}={value}",), {}), ((), {name: value})):
            with pytest.raises(UserError) as refused:
                settings_of(defaults, recipe, *words, **changes)
            assert str(refused.value) == f"distill.sh: {name}={value}: recipe {recipe} does not use it; leave it out"
    settings_of(defaults, recipe, "temperature=8")  # the default says nothing new


def test_unknown_and_missing_variables_are_refused(defaults):
    with pytest.raises(UserError, match="--train_step=1"):
        settings_of(defaults, train_step="1")
    with pytest.raises(UserError, match="lr"):
        settings_of({name: value for name, value in defaults.items() if name != "lr"})


def test_a_refusal_is_one_line_and_starts_nothing(shell):
    ended = shell.run("h256", ngpu="0")
    assert ended == (2, "", f"error: distill.sh: ngpu=0: {WHOLE}\n", [])
    ended = shell.run("h256", "train_step=10")
    assert ended == (2, "", "error: distill.sh: train_step=10: no such variable; did you mean train_steps=…?\n", [])
    ended = shell.run("h256", python="no_such_python")
    assert ended == (2, "", "error: distill.sh: python=no_such_python: no such command; activate .venv or name another\n", [])


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_head_of_distill_sh_and_its_variables(word, shell):
    ended = shell.run(word)
    assert (ended.status, ended.err, ended.noted) == (0, "", [])
    assert ended.out.startswith("Distils a student by one of the published recipes.") and "$" not in ended.out.replace(
        "$saves", ""
    ).replace("$(", "")
    shown = dict(re.findall(r"^(\w+)=(.*?)(?: +#.*)?$", ended.out, re.MULTILINE))
    published = {field.name: field.metadata["default"] for field in fields(recipes.Settings)[1:]}
    assert {**shown, "workers": ""} == {**published, "workers": ""}


def test_an_environment_without_this_project_is_one_line(tmp_path, shell):
    shell.python.write_text("#!/bin/sh\necho no module named pretraining >&2; exit 1\n")
    ended = shell.run()
    message = f"error: distill.sh: python={shell.python} does not find this project; run pip install -e . in its directory\n"
    assert ended == (2, "", message, [])
    demo = subprocess.run(
        ["sh", DISTILL_SH.parent / "scripts" / "demo.sh"], env={"python": str(shell.python)}, capture_output=True, text=True
    )
    assert (demo.returncode, demo.stdout) == (2, "") and demo.stderr.startswith(
        f"error: demo.sh: {shell.python} does not find this project; "
    )


def test_the_demo_takes_no_variable_of_distill_sh_from_outside():
    """ta_layers of the user's shell, say, would make another demo, or stop it after minutes."""
    demo = (DISTILL_SH.parent / "scripts" / "demo.sh").read_text()
    unset = re.search(r"^unset ((?:.*\\\n)*.*)\n", demo, re.MULTILINE)[1].replace("\\\n", " ").split()
    assert unset == [field.name for field in fields(recipes.Settings)[1:] if field.name != "python"]


# ---------------------------------------------------------------- the order


def steps_of(noted: list) -> list[str]:
    """What the commands were for, in order."""
    steps = []
    for words in noted:
        if "train.py" in words:
            name = Path(words[words.index("--output_dir") + 1]).name
            steps.append(f"check {name}" if "--check_only" in words else f"train {name}")
        elif "--dump_checkpoint" in words:
            steps.append(f"write {Path(words[words.index('--dump_checkpoint') + 1]).name}")
        else:
            steps.append(words[0])
    return steps


TWO_STEPS = ["check rbt6_kd", "check minirbt_h256", "write rbt6_init", "my_datasets.py", "train rbt6_kd", "train minirbt_h256"]


@pytest.mark.parametrize(
    ("words", "steps"),
    [
        ([], TWO_STEPS),
        ([""], TWO_STEPS),
        (["h256"], TWO_STEPS),
        (["h288"], [step.replace("h256", "h288") for step in TWO_STEPS]),
        (["one-stage"], ["check minirbt_h256_one_stage", "my_datasets.py", "train minirbt_h256_one_stage"]),
        (["rbt4"], ["check rbt4_h312", "my_datasets.py", "train rbt4_h312"]),
        (["rbt3"], ["check rbt3", "write rbt3_init", "my_datasets.py", "train rbt3"]),
        (["h288-relation"], [step.replace("minirbt_h256", "minirbt_h288_relation") for step in TWO_STEPS]),
        (["rbt4-relation"], ["check rbt4_h312_relation", "my_datasets.py", "train rbt4_h312_relation"]),
    ],
)
def test_all_checks_come_first_then_the_steps(words, steps, shell):
    ended = shell.run(*words, train_steps="6")
    assert (ended.status, ended.err) == (0, "")
    assert steps_of(ended.noted) == steps
    trained = [step.removeprefix("train ") for step in steps if step.startswith("train ")]
    lines = ended.out.splitlines()
    changed = next(number for number, line in enumerate(lines) if line.startswith("not the default: "))
    assert lines[0].endswith(", with these settings:") and "train_steps=6 (default 100000)" in lines[changed]
    assert lines[changed + 1 :] == [
        *(f"==== {shell.saves}/{name}" for name in trained),
        f"==== {shell.saves}/{trained[-1]}/gs6: load it with BertModel.from_pretrained and BertTokenizer.from_pretrained",
    ]


def test_only_machine_0_writes_what_all_read(shell):
    machine_0 = shell.start("h256", nnodes="2", LOG=str(shell.log.with_name("log of machine 0")))
    ended = shell.run("h256", nnodes="2", node_rank="1")
    assert ended.status == shell.end(machine_0).status == 0
    assert steps_of(ended.noted) == [step for step in TWO_STEPS if step.startswith(("check", "train"))]


@pytest.mark.parametrize("recipe", COMMANDS)
def test_a_student_without_its_assistant_is_refused_before_anything_is_written(recipe, shell):
    for name in (entry.student for entry in recipes.RECIPES):
        (shell.saves / name / "gs2").mkdir(parents=True)
    ended = shell.run(recipe)
    if recipe not in TWO_STAGE:
        assert ended.status == 0
        return
    assert ended.status == 2 and all(step.startswith("check") for step in steps_of(ended.noted))
    assert ended.err == (
        f"error: distill.sh: {shell.saves}/minirbt_{recipe.replace('-', '_')} has checkpoints, but the teacher assistant {shell.saves}/rbt6_kd "
        "is missing; move one away or restore the other\n"
    )
    (shell.saves / "rbt6_kd").mkdir()
    assert shell.run(recipe).status == 0


def test_the_second_of_two_is_refused_before_anything_is_written(shell):
    result = shell.saves / "minirbt_h256"
    with exclusive(result / ".distill.lock", result):
        ended = shell.run("h256")
        assert ended.status == 2 and all(step.startswith("check") for step in steps_of(ended.noted))
        assert ended.err.startswith(f"error: {result}: in use by process {os.getpid()} on ") and ended.err.count("\n") == 1
        assert shell.run("one-stage").status == 0
    assert shell.run("h256").status == 0


@pytest.mark.parametrize(("ngpu", "before", "threads"), [("1", None, None), ("2", None, "1"), ("2", "3", "3")])
def test_torchrun_need_not_say_that_it_sets_the_threads(ngpu, before, threads, defaults, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    runner = types.SimpleNamespace(run=lambda *_: seen.append(os.environ.get("OMP_NUM_THREADS")), exit_if_stopped=None)
    monkeypatch.setattr(recipes, "CommandRunner", lambda: runner)
    monkeypatch.setenv("OMP_NUM_THREADS", before or "")
    if before is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    recipes.run_recipe(settings_of(defaults, ngpu=ngpu))
    assert seen == [before] * 4 + [threads] * 2


# ---------------------------------------------------------------- how it ends


@pytest.mark.parametrize(
    ("fails_in", "status", "last_step"),
    [
        ("--check_only", 2, "check rbt6_kd"),
        ("init_checkpoint_TA", 3, "write rbt6_init"),
        ("my_datasets", 1, "my_datasets.py"),
        ("--student_pretrained_weights", 143, "train rbt6_kd"),
        ("rbt6_kd/gs", 5, "train minirbt_h256"),
    ],
)
def test_a_failed_command_ends_the_run_with_its_status(fails_in, status, last_step, shell):
    ended = shell.run(FAILS_IN=fails_in, STATUS=str(status))
    assert ended.status == status
    assert steps_of(ended.noted) == TWO_STEPS[: TWO_STEPS.index(last_step) + 1]
    assert "load it" not in ended.out


def test_a_killed_command_ends_the_run_with_the_status_of_its_signal(shell):
    ended = shell.run(KILLED_IN="my_datasets")
    assert ended.status == 128 + signal.SIGKILL
    assert steps_of(ended.noted)[-1] == "my_datasets.py"


def without_signals(noted: list) -> list:
    return [entry for entry in noted if isinstance(entry, list)]


@pytest.mark.parametrize("wait_in", ["--check_only", "my_datasets.py", "--student_pretrained_weights"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_running_command_and_ends_the_run(number, wait_in, shell):
    """The command's own status, 7 here, gives way to the signal's."""
    process = shell.start(WAIT_IN=wait_in, SECONDS_TO_WAIT="60")
    shell.wait_for(wait_in)
    process.send_signal(number)
    ended = shell.end(process)
    assert ended.status == 128 + number
    assert ended.noted[-2:] == [number.name, "checkpoint"]
    assert wait_in in without_signals(ended.noted)[-1]
    assert "Traceback" not in ended.err


def test_ctrl_c_in_a_terminal_reaches_the_command_twice_and_does_no_harm(shell):
    """The terminal sends SIGINT to the whole foreground group."""
    process = shell.start(WAIT_IN="--student_pretrained_weights", SECONDS_TO_WAIT="60")
    shell.wait_for("--student_pretrained_weights")
    os.killpg(process.pid, signal.SIGINT)
    ended = shell.end(process)
    assert ended.status == 130 and ended.noted[-1] == "checkpoint"
    assert steps_of(without_signals(ended.noted))[-1] == "train rbt6_kd"


def test_nohup_keeps_the_run_alive(shell):
    """A signal that the caller has ignored stays ignored."""
    process = shell.start("rbt4", before="trap '' HUP;", WAIT_IN="my_datasets.py", SECONDS_TO_WAIT="1")
    shell.wait_for("my_datasets.py")
    os.killpg(process.pid, signal.SIGHUP)
    ended = shell.end(process)
    assert ended.status == 0 and steps_of(ended.noted)[-1] == "train rbt4_h312"


BETWEEN = """
import os, signal, subprocess
from pretraining.launching.runner import CommandRunner

runner = CommandRunner()
runner.run(["true"])
os.kill(os.getpid(), signal.SIGTERM)
subprocess.Popen = None  # no other command may start
runner.run(["true"])
"""
WHILE_STARTING = """
import os, signal, subprocess
from pretraining.launching.runner import CommandRunner


class Popen(subprocess.Popen):
    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        os.kill(os.getpid(), signal.SIGTERM)


subprocess.Popen = Popen
CommandRunner().run(["sleep", "60"])
"""


@pytest.mark.parametrize("program", [BETWEEN, WHILE_STARTING], ids=["between two commands", "while a command is started"])
def test_a_signal_that_no_command_gets_ends_the_run_too(program):
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stderr) == (143, "")
