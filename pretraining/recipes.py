"""The published recipes as data: checks the settings and every stage, then runs the stages. ``distill.sh`` calls this file.

``distill.sh`` documents the variables. It hands all of them over as ``--name=value``, and behind ``--`` the words that the user gave.
"""

import os
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from pretraining.corpus.locks import exclusive
from pretraining.launching.machines import Machines, require_address
from pretraining.launching.runner import CommandRunner, torchrun_arguments
from pretraining.launching.variables import (
    SettingError,
    convert_texts,
    count,
    count_or_auto,
    count_or_unset,
    flags_of,
    listing,
    mapping_names,
    read_words,
    refuse_unused,
    settings_table,
    text_of,
    variable,
)
from pretraining.utils import ArgumentParser, network_port, non_negative_int, positive_float, random_seed, run_script, sequence_length


@dataclass(frozen=True)
class Recipe:
    """A way from the teacher to a student. ``student_config`` and ``student_matches`` of distill.sh override two fields."""

    name: str  # the word after ``sh distill.sh``
    student: str  # the run's directory in ``saves``
    config: str  # the student's config JSON, a file of distill_configs/
    matches: str = ""  # names from matches.py; empty: no teacher, masked-LM only
    two_stage: bool = False  # the teacher trains the teacher assistant RBT6(KD), which then trains the student
    first_layers: str = ""  # layers of the teacher that are the student's first weights; empty: they are random

    @property
    def unused(self) -> tuple[str, ...]:
        """The variables of distill.sh that would change nothing."""
        assistant = () if self.two_stage else ("ta_config", "ta_layers", "ta_matches")
        distillation = () if self.matches else ("student_matches", "temperature")
        return (*assistant, *distillation)


RECIPES = (
    Recipe("h256", student="minirbt_h256", config="MiniRBT-h256.json", matches="L6h256_rbt6_hidden_mse", two_stage=True),
    Recipe("h288", student="minirbt_h288", config="MiniRBT-h288.json", matches="L6h288_rbt6_hidden_mse", two_stage=True),
    Recipe("one-stage", student="minirbt_h256_one_stage", config="MiniRBT-h256.json", matches="L6h256_roberta_hidden_mse"),
    Recipe("rbt4", student="rbt4_h312", config="distill_rbt4_312.json", matches="L4t_hidden_mse"),
    Recipe("rbt3", student="rbt3", config="distill_rbt3.json", first_layers="0 1 2"),
    Recipe("h256-relation", student="minirbt_h256_relation", config="MiniRBT-h256.json", matches="L6h256_rbt6_relation", two_stage=True),
    Recipe("h288-relation", student="minirbt_h288_relation", config="MiniRBT-h288.json", matches="L6h288_rbt6_relation", two_stage=True),
    Recipe("rbt4-relation", student="rbt4_h312_relation", config="distill_rbt4_312.json", matches="L4h312_roberta_relation"),
)

ASSISTANT = "rbt6_kd"  # the teacher assistant's directory in ``saves``; all two-stage recipes share it


# ---------------------------------------------------------------- settings


def read_recipe(text: str) -> Recipe:
    """The recipe of that name."""
    recipes = {recipe.name: recipe for recipe in RECIPES}
    if text not in recipes:
        raise SettingError(f"{text}: no such recipe; choose {listing(list(recipes))}")
    return recipes[text]


@dataclass(frozen=True)
class Settings:
    """The recipe, then the variables of distill.sh in its order. train.py and the other commands check the paths and the plain texts.

    The default texts are the published values, which distill.sh has too; an empty one depends on the machine, the recipe or another variable.
    """

    recipe: Recipe = variable(read_recipe, "h256")
    # ---- models and data
    teacher: str = variable(str, "./pretrained_model_path/RoBERTa")
    json_files: str = variable(str, "./jsons/data.json")
    data_cache_dir: str = variable(str, "./dataset/shards")
    saves: str = variable(str, "./saves")
    # ---- machines
    ngpu: int = variable(count_or_unset, "")
    nnodes: int = variable(count, "1")
    node_rank: int = variable(non_negative_int, "0")
    master_addr: str = variable(str, "127.0.0.1")
    master_port: int = variable(network_port, "29500")
    # ---- training
    train_steps: int = variable(count, "100000")
    save_steps: int = variable(count, "10000")
    global_batch: int = variable(count, "4096")
    forward_batch: int = variable(count_or_auto, "auto")
    length: int = variable(sequence_length, "512")
    lr: str = variable(partial(text_of, positive_float), "4e-4")
    temperature: str = variable(partial(text_of, positive_float), "8")
    seed: str = variable(partial(text_of, random_seed), "10236797")
    precision: list[str] = variable(partial(flags_of, {"bf16": ["--bf16"], "fp16": ["--fp16"], "fp32": []}), "bf16")
    compile: list[str] = variable(partial(flags_of, {"auto": [], "yes": ["--compile", "yes"], "no": ["--compile", "no"]}), "auto")
    workers: int = variable(count, str(os.cpu_count() or 1))
    python: str = variable(str, "python")
    # ---- the recipe's models
    ta_config: str = variable(str, "./distill_configs/distill_rbt6.json")
    ta_layers: list[str] = variable(str.split, "0 2 4 7 9 11")
    ta_matches: list[str] = variable(mapping_names, "L6_hidden_mse")
    student_config: str = variable(str, "")
    student_matches: list[str] = variable(mapping_names, "")

    @property
    def processes(self) -> int:
        """Processes on all machines."""
        return self.ngpu * self.nnodes

    @property
    def process_batch(self) -> int:
        """Samples per optimizer step and process."""
        return self.global_batch // self.processes

    @property
    def accumulation(self) -> dict[str, int]:
        """The argument for the forward passes of an optimizer step; one if ``forward_batch`` is larger than ``process_batch``."""
        return {"gradient_accumulation_steps": max(1, self.process_batch // self.forward_batch)} if self.forward_batch else {}


def read_texts(argv: list[str] | None = None) -> dict[str, str]:
    """The text of every variable: ``--name=value`` of all of them, replaced by the words behind ``--``, the recipe and ``name=value``.

    Raises:
        UserError: a variable is missing, or a word is wrong (``variables.read_words``).
    """
    parser = ArgumentParser(__doc__)
    names = [entry.name for entry in fields(Settings)]
    for name in names[1:]:
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("words", nargs="*", default=[], help="the recipe and name=value")
    texts = vars(parser.parse_args(argv))
    words = read_words(texts.pop("words"), names)
    handed_over = {name: text or "" for name, text in texts.items()}  # older versions of argparse read "--name=--" as an empty list
    return {"recipe": "h256", **handed_over, **words}


def read_settings(texts: dict[str, str]) -> Settings:
    """Converts the texts, fills in what is not set, and checks the variables against each other.

    Raises:
        UserError: the value of a variable is wrong.
    """
    settings = convert_texts(Settings, texts)
    refuse_unused(settings, settings.recipe.unused, texts)
    settings = with_defaults(settings)
    check_numbers(settings)
    return settings


def with_defaults(settings: Settings) -> Settings:
    """Fills in the variables whose default depends on the machine, the recipe or another variable."""
    recipe = settings.recipe
    return replace(
        settings,
        ngpu=settings.ngpu or visible_gpus(),
        student_config=settings.student_config or f"./distill_configs/{recipe.config}",
        student_matches=settings.student_matches or recipe.matches.split(),
    )


def visible_gpus() -> int:
    """GPUs that this process sees; 1 where there is none, for training on the CPU."""
    import torch  # takes over a second; not needed where ngpu is set

    return max(1, torch.cuda.device_count())


def check_numbers(settings: Settings) -> None:
    """Refuses machines that are not counted from 0, and a batch that the processes and forwards do not divide."""
    started = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if started > 1 and settings.nnodes == 1:
        raise SettingError(
            f"nnodes=1: srun started {started} of these; set nnodes={started} and node_rank=$SLURM_PROCID, one task a machine"
        )
    if settings.node_rank >= settings.nnodes:
        raise SettingError(f"node_rank={settings.node_rank}: must be less than nnodes={settings.nnodes}; the machines count from 0")
    if settings.recipe.two_stage and settings.processes > 1 and settings.master_port == 65535:
        raise SettingError("master_port=65535: the second stage uses the port after it; give a smaller one")
    if settings.global_batch % settings.processes:
        raise SettingError(f"global_batch={settings.global_batch}: not divisible by ngpu={settings.ngpu} times nnodes={settings.nnodes}")
    if settings.forward_batch and settings.process_batch % settings.forward_batch and settings.forward_batch < settings.process_batch:
        raise SettingError(
            f"forward_batch={settings.forward_batch}: does not divide the {settings.process_batch} samples of a process and step"
        )


# ---------------------------------------------------------------- commands


class Stage(NamedTuple):
    """One training run, as commands."""

    directory: str
    check: list[str]  # checks arguments, files and sizes, then ends
    first_weights: list[str]  # writes the student's first weights; empty: they are random
    train: list[str]  # trains, or resumes from the newest checkpoint


def build_stages(settings: Settings) -> list[Stage]:
    """The stages of the recipe, in order."""
    recipe = settings.recipe
    stages: list[Stage] = []
    teacher = teacher_in_check = settings.teacher
    if recipe.two_stage:
        arguments = ["--teacher_name_or_path", teacher, "--matches", *settings.ta_matches]
        stages.append(make_stage(settings, ASSISTANT, settings.ta_config, check=arguments, train=arguments, layers=settings.ta_layers))
        teacher = f"{settings.saves}/{ASSISTANT}/gs{settings.train_steps}"
        teacher_in_check = settings.ta_config  # the assistant is not trained yet
    check = train = ["--tokenizer", settings.teacher]
    if recipe.matches:
        matches = ["--matches", *settings.student_matches]
        check = [*check, *matches, "--teacher_name_or_path", teacher_in_check]
        train = [*train, *matches, "--teacher_name_or_path", teacher]
    layers = recipe.first_layers.split() if recipe.first_layers else None
    settings = replace(settings, master_port=settings.master_port + len(stages))  # not that of the first stage, which may still be ending
    return [*stages, make_stage(settings, recipe.student, settings.student_config, check=check, train=train, layers=layers)]


def make_stage(settings: Settings, name: str, config: str, check: list[str], train: list[str], layers: list[str] | None) -> Stage:
    """A run in ``saves/name``.

    Args:
        check, train: arguments of train.py, beside those of every run, for the check and for the run.
        layers: layers of the teacher that are the student's first weights; None: they are random.
    """
    directory = f"{settings.saves}/{name}"
    common = train_arguments(settings, config, directory)
    flags = settings.precision + settings.compile
    python = [settings.python]  # torchrun for several processes
    if settings.processes > 1:
        python += torchrun_arguments(settings.ngpu, settings.nnodes, settings.node_rank, settings.master_addr, settings.master_port)
    first_weights: list[str] = []
    if layers is not None:
        weights = f"{directory.removesuffix('_kd')}_init"  # rbt6_init, rbt3_init
        first_weights = [settings.python, "scripts/init_checkpoint_TA.py"]
        first_weights += options(model_name_or_path=settings.teacher, dump_checkpoint=weights, student_config=config)
        first_weights += ["--layers", *layers]
        train = [*train, "--student_pretrained_weights", weights]
    return Stage(
        directory=directory,
        check=[settings.python, *common, *check, *flags, "--check_only"],
        first_weights=first_weights,
        train=[*python, *common, *train, *flags],
    )


def options(**values: object) -> list[str]:
    """``--name value`` of each."""
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def train_arguments(settings: Settings, config: str, directory: str) -> list[str]:
    """What every run of train.py gets."""
    return ["train.py", "--do_train"] + options(
        resume_from_checkpoint="latest",
        student_config=config,
        output_dir=directory,
        data_files_json=settings.json_files,
        data_cache_dir=settings.data_cache_dir,
        preprocessing_num_workers=settings.workers,
        max_seq_length=settings.length,
        num_train_steps=settings.train_steps,
        ckpt_steps=settings.save_steps,
        train_batch_size=settings.process_batch,
        **settings.accumulation,
        learning_rate=settings.lr,
        official_schedule="linear",
        temperature=settings.temperature,
        random_seed=settings.seed,
    )


def shards_command(settings: Settings) -> list[str]:
    """Tokenises the texts."""
    return [settings.python, "my_datasets.py"] + options(
        data_files_json=settings.json_files,
        data_cache_dir=settings.data_cache_dir,
        tokenizer=settings.teacher,
        max_seq_length=settings.length,
        preprocessing_num_workers=settings.workers,
    )


# ---------------------------------------------------------------- running


def require_assistant(settings: Settings) -> None:
    """Refuses to train a new teacher assistant while the student has checkpoints from another."""
    student, assistant = Path(settings.saves, settings.recipe.student), Path(settings.saves, ASSISTANT)
    if settings.recipe.two_stage and any(student.glob("gs*")) and not assistant.exists():
        raise SettingError(
            f"{student} has checkpoints, but the teacher assistant {assistant} is missing; move one away or restore the other"
        )


def run_recipe(settings: Settings) -> None:
    """Checks every stage before the first begins, then runs the stages, unless another process does so already."""
    stages = build_stages(settings)
    runner = CommandRunner()
    machines = Machines(Path(settings.saves, ".machines", settings.recipe.name), settings.node_rank, settings.nnodes)
    result = stages[-1].directory
    with machines.running():
        if settings.processes > 1:
            require_address(settings.master_addr)
        for stage in stages:
            runner.run(stage.check, machines.note_error)
        require_assistant(settings)
        with exclusive(Path(result, ".distill.lock"), result) if settings.node_rank == 0 else nullcontext():
            run_stages(settings, stages, runner, machines)
    checkpoint = f"{result}/gs{settings.train_steps}"
    print(f"==== {checkpoint}: load it with BertModel.from_pretrained and BertTokenizer.from_pretrained")


def run_stages(settings: Settings, stages: list[Stage], runner: CommandRunner, machines: Machines) -> None:
    """Writes the first weights and the shards, then trains."""
    if settings.node_rank == 0:  # machine 0 writes what all machines read; the others wait for it
        for stage in stages:
            if stage.first_weights:
                runner.run(stage.first_weights, machines.note_error)
        runner.run(shards_command(settings), machines.note_error)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # else C++ frames follow the line of a lost process or machine
    if settings.ngpu > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # torchrun sets it too, with a notice of three lines
    for place, stage in enumerate(stages, 1):
        machines.meet(place, runner.exit_if_stopped)
        print(f"==== {stage.directory}", flush=True)
        runner.run(stage.train)


def main(argv: list[str] | None = None) -> None:
    settings = read_settings(texts := read_texts(argv))
    print(settings_table(settings, texts), flush=True)
    run_recipe(settings)


if __name__ == "__main__":
    run_script(main)
