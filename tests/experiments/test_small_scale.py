"""The small-scale experiment: its settings, its data split, its jobs, and the dry run, killed and resumed."""

import json
import lzma
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.small_scale import configs, history, prepare
from experiments.small_scale.measured import TRAINED
from experiments.small_scale.runner import Job, JobFailed, JobStage, Runner
from experiments.small_scale.settings import SETTINGS_FILE, Shape, read_noted_settings, read_settings
from pretraining import config
from pretraining.corpus.files import read_lines
from pretraining.distillation.modeling import read_config
from pretraining.matches import get_matches
from pretraining.scripts.make_demo_models import vocabulary
from pretraining.utils import UserError

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "experiments" / "small_scale" / "run.py"
DATASET = ROOT / "pretraining" / "dataset"
SHAPES = ("shallow", "teacher", "ta", "narrow_deep", "wide_shallow")

# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("scale", ["gpu", "dry"])
def test_settings_of_a_work_directory_are_those_of_the_file(scale, tmp_path):
    settings = read_settings(scale)
    (tmp_path / "settings.txt").write_text("".join(f"{line}\n" for line in settings.lines()))
    assert read_noted_settings(tmp_path / "settings.txt").lines() == settings.lines()
    assert settings.lines()[0] == f"SCALE={scale}" and "learning_rate=5e-4" in settings.lines()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("positions = 64\n", "", "the setting positions is missing"),
        ("positions = 64\n", "positions = 64\nposition = 64\n", "the setting position is unknown"),
        ("positions = 64\n", "positions = 6.4\n", "positions: invalid literal for int"),
        ("3/48/96/3", "3/48/96", "shallow_shape: 3/48/96: write LAYERS/HIDDEN/FFN/HEADS"),
        ("cmrc2018:16:8", "cmrc2018:16", "tasks: cmrc2018:16: write NAME:TRAIN:DEV"),
        ("[dry]", "[dry", "is not valid TOML"),
    ],
)
def test_wrong_settings_are_one_line(old, new, message, tmp_path):
    (tmp_path / "settings.toml").write_text(SETTINGS_FILE.read_text().replace(old, new))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'settings.toml'}: {message}")):
        read_settings("dry", tmp_path / "settings.toml")


# ---------------------------------------------------------------- data and shapes


@pytest.mark.parametrize("packed", [False, True])
def test_corpus_is_split_by_article(packed, tmp_path):
    text = "".join(f"第{n}篇\n{n}之二\n \n" for n in range(1, 8)).encode()
    corpus = tmp_path / ("corpus.xz" if packed else "corpus.txt")
    corpus.write_bytes(lzma.compress(text) if packed else text)
    prepare.split_corpus(prepare.unpack(corpus, 10_000, tmp_path), 3, tmp_path)
    assert (tmp_path / "dev.txt").read_text() == "第3篇\n3之二\n第6篇\n6之二\n"
    assert (tmp_path / "train.txt").read_text().split() == [part for n in (1, 2, 4, 5, 7) for part in (f"第{n}篇", f"{n}之二")]


def test_corpus_is_cut_at_the_end_of_a_line(tmp_path):
    (tmp_path / "whole").write_text("甲甲\n乙乙\n丙丙\n")  # seven bytes a line
    assert prepare.unpack(tmp_path / "whole", 17, tmp_path).read_text() == "甲甲\n乙乙\n"


def test_bad_corpora_are_one_line(tmp_path):
    (tmp_path / "corpus.xz").write_bytes(lzma.compress(b"text\n" * 100)[:-20])
    with pytest.raises(UserError, match="cannot be unpacked"):
        prepare.unpack(tmp_path / "corpus.xz", 10_000, tmp_path)
    (tmp_path / "one").write_text("甲\n乙\n")
    with pytest.raises(UserError, match="has only 1 articles"):
        prepare.split_corpus(tmp_path / "one", 10, tmp_path)


def test_broken_inputs_of_later_stages_are_found_before_any_time_is_spent(tmp_path):
    inputs = write_inputs(tmp_path)
    (tmp_path / "tasks" / "chnsenticorp" / "dev.tsv").write_text("label\ttext_a\n1\t甲\n7\t乙\n")
    ended = run(**inputs)
    assert ended.returncode == 2 and "chnsenticorp/dev.tsv:3: label '7' is none of 0, 1" in ended.stderr
    assert not list((tmp_path / "work" / "done").iterdir())


@pytest.mark.parametrize("scale", ["gpu", "dry"])
def test_shapes_of_both_scales(scale, tmp_path):
    """The encoders compared agree within 3 %, the assistant has the teacher's size, and every setting is there."""
    settings = read_settings(scale)
    assert all("=" in line and not line.endswith("=") for line in settings.lines())
    assert settings.teacher_save_steps and settings.student_save_steps
    configs.write_configs({name: settings.shape_of(name) for name in SHAPES}, 21128, settings.positions, tmp_path)
    written = {name: read_config(tmp_path / f"{name}.json", name) for name in SHAPES}
    assert [config.num_hidden_layers for config in written.values()] == [3, 12, 6, 6, 4]
    assert written["shallow"].hidden_size == written["ta"].hidden_size == written["teacher"].hidden_size
    sizes = [configs.encoder_parameters(written[name]) for name in ("narrow_deep", "wide_shallow")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    assert len(settings.seeds) >= 2 and len(settings.learning_rates) >= 2


def test_encoders_of_different_size_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"differ by \+"):
        configs.write_configs({"narrow_deep": Shape(6, 128, 512, 4), "wide_shallow": Shape(4, 160, 640, 5)}, 100, 64, tmp_path)


def test_encoder_parameters_by_hand(tmp_path):
    """A layer of size 4 and FFN 8: four 4×4 products with biases, 4×8 and 8×4 with biases, two LayerNorms."""
    configs.write_configs({"narrow_deep": Shape(2, 4, 8, 2), "wide_shallow": Shape(2, 4, 8, 2)}, 100, 64, tmp_path)
    expected = 2 * (4 * (16 + 4) + (32 + 8) + (32 + 4) + 2 * 8)
    assert configs.encoder_parameters(read_config(tmp_path / "narrow_deep.json", "it")) == expected


# ---------------------------------------------------------------- the dry run


def write_inputs(directory: Path) -> dict[str, str]:
    """Corpus, vocabulary, segmenter and task files, out of the sample corpus; as the arguments of run.py."""
    train_files = sorted((DATASET / "train" / "train_files").iterdir())
    lines = [line for path in train_files for line in read_lines(path) if line.strip()]
    text = "".join(line + ("\n\n" if number % 4 == 3 else "\n") for number, line in enumerate(lines))
    (directory / "corpus.txt.xz").write_bytes(lzma.compress(text.encode()))
    (directory / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary(train_files)))
    segmented = [DATASET / "segmented" / name for name in ("segmented.txt", "segmented_dev.txt")]
    command = ["scripts/train_segmenter.py", "--train", segmented[0], "--dev", segmented[1], "--output_dir", directory / "ltp"]
    subprocess.run([sys.executable, *map(str, command)], cwd=ROOT / "pretraining", check=True, capture_output=True)

    long_lines = [line for line in lines if len(line) > 20 and "\t" not in line]
    for name in ("cmrc2018", "chnsenticorp"):
        (directory / "tasks" / name).mkdir(parents=True)
    for split, some in (("train", long_lines[:40]), ("dev", long_lines[40:60])):
        rows = [f"{number % 2}\t{line}\n" for number, line in enumerate(some)]
        (directory / "tasks" / "chnsenticorp" / f"{split}.tsv").write_text("label\ttext_a\n" + "".join(rows))
        questions = [
            {"context": line, "qas": [{"id": f"{n}", "question": "开头是什么？", "answers": [{"text": line[:3], "answer_start": 0}]}]}
            for n, line in enumerate(some)
        ]
        squad = {"version": "v1.0", "data": [{"paragraphs": questions}]}
        (directory / "tasks" / "cmrc2018" / f"{split}.json").write_text(json.dumps(squad, ensure_ascii=False))
    return {
        "scale": "dry",
        "corpus": directory / "corpus.txt.xz",
        "vocabulary": directory / "vocab.txt",
        "ltp": directory / "ltp",
        "tasks_dir": directory / "tasks",
        "work": directory / "work",
        "commit": "0123abc",
    }


def command(**arguments) -> list[str]:
    return [sys.executable, str(RUN), *(f"--{name}={value}" for name, value in arguments.items())]


def run(environment: dict[str, str] | None = None, **arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **(environment or {})}
    return subprocess.run(command(**arguments), env=environment, capture_output=True, text=True)


def test_what_is_missing_or_different_is_one_line(tmp_path):
    paths = {"corpus": "c", "vocabulary": "v", "ltp": "l", "tasks_dir": "t"}
    for arguments, message in (
        ({**paths, "scale": "large"}, "error: --scale: invalid choice: 'large' (choose from "),
        ({"scale": "dry", "corpus": "c", "vocabulary": "v", "tasks_dir": "t"}, "error: the following arguments are required: --ltp "),
    ):
        ended = run(**arguments)
        assert ended.returncode == 2 and ended.stderr.startswith(message) and ended.stderr.count("\n") == 1
    (tmp_path / "settings.txt").write_text("SCALE=gpu\n")
    ended = run(**paths, scale="dry", work=tmp_path)
    assert ended.returncode == 2 and "holds an experiment with other settings" in ended.stderr and ended.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["settings.txt"]


# ---------------------------------------------------------------- the jobs


STUB = """#!/bin/sh
# Stands for python: notes its run's name. Where a file of that name says so, it waits for a signal, or fails once another one waits.
for argument; do
    [ "$before" != --output_dir ] || name=${argument##*/}
    before=$argument
done
case $1 in *train.py | *finetune.py) ;; *) name=$(basename "$1") ;; esac
echo "$name" >>"$PLACE/started"
if [ -e "$PLACE/fail-$name" ]; then
    until [ -e "$PLACE/waiting" ]; do sleep 0.05; done
    echo "error: $name is wrong" >&2
    exit 2
fi
if [ -e "$PLACE/wait-$name" ]; then
    trap 'echo "$name" >>"$PLACE/stopped"; exit 143' TERM
    echo "$name" >>"$PLACE/waiting"
    while :; do sleep 0.05; done
fi
"""


@pytest.fixture
def stubbed(tmp_path):
    """The arguments of a run.py whose every job is the stub above."""
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    paths = {"corpus": "c", "vocabulary": "v", "ltp": "l", "tasks_dir": "t", "work": tmp_path / "work", "python": tmp_path / "stub"}
    return {"environment": {"PLACE": str(tmp_path)}, "scale": "dry", **paths}


ORDER = """prepare.py run_chinese_ref.py my_datasets.py shallow init_checkpoint_TA.py teacher init_checkpoint_TA.py ta-1 ta-2
one_stage-1 one_stage-2 wide_shallow-1 wide_shallow-2 no_teacher-1 no_teacher-2 two_stage-1 two_stage-2""".split()
FINETUNED = ["teacher", "two_stage", "one_stage", "wide_shallow", "no_teacher"]


@pytest.mark.parametrize("failing, other", [("one_stage-1", "one_stage-2"), ("one_stage-2", "one_stage-1")])
def test_a_failed_job_stops_the_others_and_the_same_command_resumes(failing, other, stubbed, tmp_path):
    """The other job would run for ever: the failure is noticed whether the other one is the newer or the older."""
    for name in (f"fail-{failing}", f"wait-{other}"):
        (tmp_path / name).touch()
    ended = run(**stubbed)
    assert ended.returncode == 2
    log = tmp_path / "work" / "logs" / f"{failing}.log"
    message = f"error: {failing} ended with status 2: error: {failing} is wrong (log: {log}); fix it and run the same command again\n"
    assert ended.stderr == message
    assert (tmp_path / "stopped").read_text() == f"{other}\n"
    done = {path.name for path in (tmp_path / "work" / "done").iterdir()}
    assert done == {"prepare", "references", "shards", "shallow", "teacher_init", "teacher", "ta_init", "ta-1", "ta-2"}
    for name in (f"fail-{failing}", f"wait-{other}", "started"):
        (tmp_path / name).unlink()
    assert run(**stubbed).returncode == 0
    started = (tmp_path / "started").read_text().split()
    assert sorted(started[:8]) == sorted(ORDER[9:])  # two at a time
    assert sorted(started[8:-1]) == sorted(f"{kind}-{seed}" for kind in FINETUNED for seed in (1, 2))
    assert started[-1] == "report.py"
    events = history.read_history(tmp_path / "work")
    assert history.repeated_jobs(events) == f"- one_stage-1: began 2 times\n- one_stage-2: began 2 times\n- {failing}: failed"


@pytest.fixture
def runner(tmp_path):
    """A runner of one's own jobs."""
    for name in ("done", "logs"):
        (tmp_path / name).mkdir()
    return Runner(tmp_path, tmp_path)


def test_jobs_run_side_by_side_up_to_the_number_of_their_stage(runner, tmp_path):
    """Each job notes how many run with it; a blocking one runs alone."""
    script = "echo >running-$0; ls running-* | wc -l >count-$0; sleep 1; rm running-$0"
    jobs = [Job(f"{n}", ["sh", "-c", script, f"{n}"], blocking=n == 0) for n in range(4)]
    runner.run([JobStage("s", 2, jobs)], ["true"])
    assert int((tmp_path / "count-0").read_text()) == 1
    assert max(int((tmp_path / f"count-{n}").read_text()) for n in range(4)) == 2
    assert sorted(path.name for path in (tmp_path / "done").iterdir()) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("script, status, last_line", [("echo a; echo b; kill -9 $$", 137, "b"), ("exit 3", 3, "no output")])
def test_the_status_of_a_failed_job_is_that_of_a_shell(script, status, last_line, runner):
    with pytest.raises(JobFailed, match=rf"^job ended with status {status}: {last_line} \(log: ") as failed:
        runner.run([JobStage("s", 1, [Job("job", ["sh", "-c", script])])], ["true"])
    assert failed.value.status == status


def test_a_failed_report_is_a_failure(runner):
    with pytest.raises(JobFailed, match="^the report ended with status 4"):
        runner.run([], ["sh", "-c", "exit 4"])


def test_the_gpu_scale_starts_every_run_with_valid_arguments(stubbed, tmp_path):
    """What the experiment would start; its arguments are those of train.py, its mappings fit its models."""
    assert run(**{**stubbed, "scale": "gpu", "work": tmp_path / "work"}).returncode == 0
    started = (tmp_path / "started").read_text().split()
    students = [f"{kind}-{seed}" for kind in ("two_stage", "one_stage", "wide_shallow", "no_teacher", "ta") for seed in (1, 2, 3)]
    tuned = [f"{kind}-{seed}" for kind in FINETUNED for seed in (1, 2, 3)]
    assert sorted(started) == sorted(
        [*students, *tuned, "shallow", "teacher", *(name for name in ORDER if name.endswith(".py")), "report.py"]
    )

    settings, work = read_settings("gpu"), tmp_path / "work"
    configs.write_configs({name: settings.shape_of(name) for name in SHAPES}, 21128, settings.positions, work)
    written = {name: read_config(work / f"{name}.json", name) for name in SHAPES}
    tokens = {}
    for job, arguments in (line.split("\t") for line in (work / "commands.tsv").read_text().splitlines()):
        if "train.py" in arguments:
            args = config.parse(shlex.split(arguments)[2:])
            teacher = "ta" if job.startswith("two_stage") else "teacher"
            get_matches(args.matches, written[Path(args.student_config).stem], written[teacher])
            assert bool(args.matches) == bool(args.teacher_name_or_path) == (not job.startswith(("no_teacher", "teacher", "shallow")))
            tokens[job] = args.num_train_steps * args.train_batch_size * args.max_seq_length
    assert {tokens[name] for name in students} == {49_152_000} and tokens["shallow"] + tokens["teacher"] == 504_627_200


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_reaches_the_jobs(number, status, stubbed, tmp_path):
    for name in ("wait-ta-1", "wait-ta-2"):
        (tmp_path / name).touch()
    environment = {**os.environ, **stubbed.pop("environment")}
    process = subprocess.Popen(command(**stubbed), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "waiting").exists() or len((tmp_path / "waiting").read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.communicate()[1] == f"stopped by {number.name}; run the same command again to resume\n"
    assert process.returncode == status
    assert sorted((tmp_path / "stopped").read_text().split()) == ["ta-1", "ta-2"]
    assert not (tmp_path / "work" / "done" / "ta-1").exists()


@pytest.mark.slow
def test_dry_run_killed_and_resumed(tmp_path):
    """Killed with all its processes while students train, the same command resumes and repeats only what was unfinished."""
    arguments, work = write_inputs(tmp_path), tmp_path / "work"
    with open(tmp_path / "first.log", "w") as log:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        first = subprocess.Popen(command(**arguments), env=environment, stdout=log, stderr=log, start_new_session=True)
        while not (work / "done" / "one_stage-1").exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (work / "done").iterdir()}
    teacher = (work / "runs" / "teacher" / "gs20" / "model.safetensors").stat().st_mtime_ns

    ended = run(**arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {name: (work / "done" / name).stat().st_mtime_ns for name in done} == done
    assert (work / "runs" / "teacher" / "gs20" / "model.safetensors").stat().st_mtime_ns == teacher
    begun = [name for _, event, name in history.read_history(work) if event == "begin" and not name.startswith("stage ")]
    assert len(set(begun)) == 3 + 4 + 5 * 2 + 5 * 2  # data; teacher and first weights; assistants, students; fine-tuning
    assert {name for name in begun if begun.count(name) > 1}.isdisjoint(done)

    page = (work / "report" / "RESULTS.md").read_text()
    assert (work / "report" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "**This is the report of a dry run**" in page
    verdicts = r"\| none, a dry run \(by the rule: (supported|not supported|too small to tell)\) \|"
    assert len(re.findall(rf"^\| \([abc]\) .* {verdicts}", page, re.MULTILINE)) == 3
    for title in TRAINED.values():
        assert f"| {title} |" in page and f"| training, {title} | " in page
    assert "| Narrow-deep, two-stage | 6/32/64/2 |" in page and "an assistant of its own: 10,240" in page
    for name in sorted({name for name in begun if begun.count(name) > 1}):
        assert f"- {name}: began 2 times" in page
    assert "--matches L6h32_L6h48_hidden_mse" in page and "--matches L4h40_L12h48_hidden_mse" in page
    assert "Commit 0123abc; " in page
    assert str(tmp_path) not in page and str(ROOT) not in page

    again = run(**arguments)  # everything is done: the report alone is written again
    assert again.returncode == 0 and "begins" not in again.stdout
    assert (work / "report" / "RESULTS.md").read_text() == page
