"""Random faults in every command that writes something: each time a plain rerun ends with the files of an undisturbed run, byte by byte.

FAULTS is their number over all commands (default 24), FAULT_SEED decides kinds and moments. RESULTS.md beside this file has the longer run.
"""

import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

import pytest
from ltp_extension.perceptron import CWSModel

from finetuning import training
from pretraining.reporting import timing
from tests import tiny, workplace
from tests.faults.disks import CannotMountError, Tmpfs
from tests.faults.forking import Run
from tests.finetuning.helpers import write_task
from tests.workplace import command_line

pytestmark = pytest.mark.slow

FAULTS, SEED = int(os.environ.get("FAULTS", 24)), int(os.environ.get("FAULT_SEED", 0))
STOPS = {"SIGKILL": (-9,), "SIGTERM": (-15, 143), "SIGINT": (-2, 130)}  # and the statuses that they may end with
KINDS = [*STOPS, "SIGSTOP, SIGCONT", "full disk"]
SMALL = {"data_files_json": "small.json"}
TRAINING = {"num_train_steps": 12, "ckpt_steps": 2, "resume_from_checkpoint": "latest", **SMALL}
LAST = ("gs12", "gs4")
RECIPE = {**workplace.RECIPE, "json_files": "./small.json"}

# What is not compared byte by byte, and why.
LEFT_OUT = {
    "training_state.pt": "torch.save notes its own file name in it",
    "checksums.json": "has the checksum of training_state.pt",
    "events.out.tfevents.*": "has times; the scalars are compared by value",
    "files.json": "what is known of files: their times and inodes",
    "cws_model.bin": "LTP writes the weights in random order; the words that it finds are compared",
}  # and the files of locks, which name the process


class Command(NamedTuple):
    """A command and its share of 200 faults.

    Attributes:
        removed: patterns of files that the work directory has already; the command makes them.
        in_place: ``python NAME`` in the work directory does the same as the forked run, whose clock stands still.
        workers: of the executor; for the label.
    """

    name: str
    share: int
    arguments: list[str]
    removed: tuple[str, ...] = ()
    in_place: bool = False
    workers: int = 1

    @property
    def label(self) -> str:
        return self.name if self.workers == 1 else f"{self.name}, {self.workers} workers"


FINE_TUNING = ["--model_name_or_path", "teacher", "--task", "chnsenticorp", "--data_dir", "task", "--learning_rate", "1e-2"]
FINE_TUNING += ["--num_train_epochs", "1", "2", "--seeds", "5", "--per_device_train_batch_size", "8", "--allow_other_size"]
SENTENCE = "今天天[MASK]很好"
PREPARE = "--sources documents.jsonl --output_dir corpus --file_megabytes 0.1 --dev_documents 20 --deduplicate".split()
TWO_WORKERS = ["--workers", "2", "--part_megabytes", "0.1"]
COMMANDS = [
    Command("scripts/prepare_corpus.py", 10, PREPARE, in_place=True),
    Command("run_chinese_ref.py", 20, command_line("run_chinese_ref.py"), ("*.refs",), in_place=True),
    Command("run_chinese_ref.py", 10, [*command_line("run_chinese_ref.py"), *TWO_WORKERS], ("*.refs",), workers=2),
    Command("my_datasets.py", 20, command_line("my_datasets.py"), in_place=True),
    Command("my_datasets.py", 10, [*command_line("my_datasets.py"), *TWO_WORKERS], workers=2),
    Command("train.py", 25, command_line("train.py", **TRAINING), in_place=True),
    Command("scripts/init_checkpoint_TA.py", 15, command_line("scripts/init_checkpoint_TA.py"), in_place=True),
    Command("scripts/train_segmenter.py", 7, command_line("scripts/train_segmenter.py"), in_place=True),
    Command("finetuning/run.py", 25, [*FINE_TUNING, "--output_dir", "results"]),
    Command("finetuning/predict.py", 8, ["measured/model", "third.txt", "--output", "predictions.jsonl"]),
    Command("finetuning/table.py", 8, ["teacher=measured/results.json", "--output_dir", "tables"]),
    Command(
        "scripts/report.py",
        8,
        "--models teacher=teacher student=trained/gs4 --runs student=trained --data_files_json small.json --data_cache_dir shards "
        f"--max_seq_length 32 --sentences {SENTENCE} --output_dir report".split(),
    ),
    Command(
        "scripts/compare_models.py",
        8,
        "--models teacher=teacher student=student.json --sequence_lengths 16 --batch_size 1 --rounds 1 --output_dir comparison".split(),
    ),
    Command("scripts/prune_vocabulary.py", 10, "trained/gs4 student.json --texts first.txt second.txt --keep 20".split()),
    Command("scripts/export.py", 8, ["trained/gs4", "--output_dir", "onnx"]),
]
DISTILL = Command("distill.sh", 8, [])


def prepare() -> None:
    """For the forked runs: no measured time stands in their files, and fine-tuning writes a checkpoint after each step."""

    def call(run, turn_seconds: float) -> float:
        run()
        return 0.001

    timing._seconds_per_call = call
    training.SAVE_EVERY_SECONDS = 0


def fork(command: Command, directory: Path, **changes) -> Run:
    return Run(command.name, command.arguments, directory, log_of(directory), prepare, **changes)


def log_of(directory: Path) -> Path:
    """A file on the machine's disk, not on the full one."""
    return directory.parent / f"{directory.name}.log"


@pytest.fixture(scope="module")
def place(template, tmp_path_factory) -> Path:
    """The work directory with texts that take the commands a second or so, small ones for training, a trained and a fine-tuned model."""
    directory = Path(shutil.copytree(template, tmp_path_factory.mktemp("faults") / "place"))
    tokenizer = tiny.write_vocabulary(directory / "vocabulary")
    (directory / "data.json").rename(directory / "small.json")
    for name, seed in (("first", 4), ("second", 5), ("third", 6)):
        tiny.write_text(directory / f"{name}.txt", tiny.paragraphs(3000, seed), tokenizer)
    workplace.write_data_json(directory, ["first.txt", "second.txt"], ["third.txt"])
    write_task(directory / "task", "chnsenticorp")
    documents = "".join(f"{json.dumps({'text': text})}\n" for text in tiny.paragraphs(3000, seed=7))
    (directory / "documents.jsonl").write_text(documents)
    for command in (
        Command("train.py", 0, command_line("train.py", **SMALL, output_dir="trained", data_cache_dir="made")),
        Command("finetuning/run.py", 0, [*FINE_TUNING, "--output_dir", "measured"]),
    ):
        run = fork(command, directory)
        assert run.status() == 0, run.log.read_text()
    return directory


@pytest.fixture(scope="module")
def report(request):
    """Prints in the end how many faults there were, and the seconds that each command took with all of them."""
    counts: dict[str, dict[str, int]] = {}
    seconds: dict[str, float] = {}
    yield counts, seconds
    reporter = request.config.pluginmanager.get_plugin("terminalreporter")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        reporter.write_line(f"\n| command | {' | '.join(KINDS)} | seconds |\n|---|{'---:|' * (len(KINDS) + 1)}")
        for name, count in counts.items():
            reporter.write_line(f"| {name} | {' | '.join(str(count.get(kind, 0)) for kind in KINDS)} | {seconds.get(name, 0):.0f} |")
        reporter.write_line(f"faults with seed {SEED}: {sum(sum(count.values()) for count in counts.values())}")


# ---------------------------------------------------------------- what is compared


def files(directory: Path) -> dict[str, object]:
    """The files that a command leaves, with what is compared of each; of the checkpoints of train.py the last alone.

    Others depend on where a signal came: the training loop writes one there.
    """
    found: dict[str, object] = {}
    for path in sorted(directory.rglob("*")):
        names = path.relative_to(directory).parts
        if path.is_dir() or tiny.is_lock(path) or any(re.fullmatch(r"gs\d+", name) and name not in LAST for name in names):
            continue
        if path.name == "cws_model.bin":
            found["/".join(names)] = CWSModel.load(str(path)).batch_predict(tiny.SENTENCES)
        elif path.name.startswith("events.out.tfevents."):
            found["/".join(names[:-1]) + "/scalars"] = tiny.scalars(path.parent)
        elif not any(fnmatch(path.name, pattern) for pattern in LEFT_OUT):
            found["/".join(names)] = path.read_bytes()
    return found


def assert_same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []


def kilobytes(directory: Path) -> int:
    """What its files take of a tmpfs."""
    return sum(-(-path.stat().st_size // 4096) * 4 for path in directory.rglob("*") if path.is_file())


# ---------------------------------------------------------------- one fault


class Trial:
    """A command that meets one fault after the other, each in a fresh copy of the work directory; ``undisturbed`` is the run that meets none."""

    def __init__(self, command: Command, place: Path, draw: random.Random):
        self.command, self.place, self.draw = command, place, draw
        self.undisturbed = self.fresh("undisturbed")
        before, begin = kilobytes(self.undisturbed), time.perf_counter()
        self.rerun(self.undisturbed)
        self.seconds = time.perf_counter() - begin  # the moments of the faults
        self.kilobytes = kilobytes(self.undisturbed) - before  # the sizes of the full disks
        self.expected = files(self.undisturbed)

    def fresh(self, name: str) -> Path:
        directory = self.place.parent / f"{self.command.label.replace('/', '-')} {name}"
        directory.mkdir()
        return directory if name == "full disk" else self.fill(directory)

    def fill(self, directory: Path) -> Path:
        shutil.copytree(self.place, directory, dirs_exist_ok=True)
        for pattern in self.command.removed:
            for path in directory.glob(pattern):
                path.unlink()
        return directory

    def meet(self, kind: str) -> bool:
        """One fault, the rerun, the comparison; False if the command had ended before the fault came."""
        directory, disk = self.fresh(kind), None
        try:
            if kind == "full disk":
                disk = Tmpfs(directory, 100 << 10)
                self.fill(directory)
                disk.resize(kilobytes(directory) + round(self.kilobytes * self.draw.random()))
                met = self.run_on_full_disk(directory)
                disk.make_space()
            else:
                met = self.run_and_signal(kind, directory)
            self.rerun(directory)
            assert_same(files(directory), self.expected)
        finally:
            if disk:
                disk.close()
        shutil.rmtree(directory)
        return met

    def run_on_full_disk(self, directory: Path) -> bool:
        status, said = self.start(directory).end()
        lines = re.findall(r"(?:^|[]\r\n])error: ", said)  # the Trainer's bar has no line break behind it
        assert status in (0, 2) and len(lines) == (status == 2) and "Traceback" not in said, said
        return status == 2

    def run_and_signal(self, kind: str, directory: Path) -> bool:
        run = self.start(directory)
        run.wait(self.seconds * self.draw.random())
        if kind in STOPS:
            run.signal(signal.Signals[kind])
        else:
            run.signal(signal.SIGSTOP)
            time.sleep(self.draw.random())
            run.signal(signal.SIGCONT)
        status, said = run.end()
        assert status in (0, *STOPS.get(kind, ())), said
        importing = isinstance(run, Process) and said.rstrip().endswith("KeyboardInterrupt")  # no code of the project sees that signal
        assert importing or "Traceback" not in said, said
        met = status != 0 or kind not in STOPS
        self.seconds *= 1 if met else 0.9  # it ends sooner than measured
        return met

    def start(self, directory: Path) -> "Run | Process":
        if self.command.in_place and self.draw.random() < 0.1:  # a process as a shell starts it, from its first moment on
            return Process([sys.executable, self.command.name, *self.command.arguments], directory)
        return fork(self.command, directory)

    def rerun(self, directory: Path) -> None:
        if self.command.name == "scripts/export.py" and (directory / "onnx").exists():
            return  # it does not replace a directory, and a directory is there whole or not at all
        status, said = fork(self.command, directory).end()
        assert status == 0, said


class Process:
    """A command in a process group of its own, with the methods of :class:`Run`."""

    def __init__(self, command: list[str], directory: Path, **environment):
        self.log = log_of(directory)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=directory,
                env={**workplace.ENVIRONMENT, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            pass

    def signal(self, number: int) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str]:
        return self.process.wait(600), self.log.read_text()


class DistillTrial(Trial):
    """distill.sh starts a process a stage, none of them forked."""

    def start(self, directory: Path) -> Process:
        return Process(["sh", "distill.sh"], directory, **RECIPE)

    def rerun(self, directory: Path) -> None:
        status, said = self.start(directory).end()
        assert status == 0, said


def meet_all(command: Command, place: Path, report: tuple[dict, dict]) -> None:
    """All faults of a command: each kind in turn, in random order."""
    draw = random.Random(f"{SEED} {command.label}")
    begin, kinds = time.perf_counter(), can_be_met()
    trial = (DistillTrial if command is DISTILL else Trial)(command, place, draw)
    counts, seconds = report
    counts[command.label] = dict.fromkeys(kinds, 0)
    waiting: list[str] = []
    for _ in range(max(1, round(FAULTS * command.share / 200))):
        waiting = waiting or draw.sample(kinds, len(kinds))
        kind = waiting.pop()
        while not trial.meet(kind):
            pass
        counts[command.label][kind] += 1
    seconds[command.label] = time.perf_counter() - begin


def can_be_met() -> list[str]:
    """The kinds of faults; without the full disk where no file system can be mounted (test_full_disk.py limits files there)."""
    place = Path(tempfile.mkdtemp())
    try:
        Tmpfs(place, 4).close()
        return KINDS
    except CannotMountError:
        return KINDS[:-1]
    finally:
        place.rmdir()


# ---------------------------------------------------------------- the tests


@pytest.fixture(scope="module", autouse=True)
def distilling(request, place, report):
    """distill.sh spends its time starting Python, again and again: it does so beside the other tests."""
    if all(item.name != test_any_fault_of_distill_sh.__name__ for item in request.session.items):
        yield None
        return
    failures: list[BaseException] = []

    def distil() -> None:
        try:
            meet_all(DISTILL, place, report)
        except BaseException as failure:
            failures.append(failure)

    thread = threading.Thread(target=distil)
    thread.start()
    yield thread, failures
    thread.join()


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.label)
def test_any_fault_at_any_moment(command, place, report):
    if command.name == "scripts/export.py" and not importlib.util.find_spec("onnxruntime"):
        pytest.skip("onnxruntime is not installed")
    meet_all(command, place, report)


def test_any_fault_of_distill_sh(distilling):
    thread, failures = distilling
    thread.join()
    if failures:
        raise failures[0]
