"""The small-scale experiment: its statistics at values worked out by hand, its data split, and the dry run, killed and continued."""

import importlib.util
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

import config
import pytest
from make_demo_models import vocabulary
from matches import get_matches
from modeling import read_config
from utils import UserError, read_line_blocks

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENT, DATASET = ROOT / "experiments" / "small_scale", ROOT / "pretraining" / "dataset"


def load_script(name: str):
    """The experiment's report.py and prepare.py, by names of their own: pretraining/scripts has a report.py too."""
    spec = importlib.util.spec_from_file_location(f"small_scale_{name}", EXPERIMENT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    before = sys.path[:]
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


report, prepare = load_script("report"), load_script("prepare")

# ---------------------------------------------------------------- statistics


def test_paired_interval_by_hand():
    """Differences 1, 2, 3: mean 2, standard deviation 1, t of two degrees of freedom 4.303."""
    difference = report.paired_difference([3.0, 5.0, 7.0], [2.0, 3.0, 4.0])
    assert difference == pytest.approx((2.0, 4.303 / 3**0.5))
    assert str(difference) == "+2.00 [-0.48, +4.48]"
    assert difference.verdict == "too small to tell"


@pytest.mark.parametrize(
    "differences, verdict",
    [
        ([1.9, 2.0, 2.1], "supported"),  # 2 ± 0.25
        ([-1.9, -2.0, -2.1], "not supported"),
        ([-0.1, 0.0, 0.1], "too small to tell"),
        ([0.0, 0.0, 0.0], "too small to tell"),
        ([1.0, 1.0], "supported"),
        ([0.1, 2.1], "too small to tell"),  # two seeds: 1.1 ± 12.7
    ],
)
def test_verdicts(differences, verdict):
    assert report.paired_difference(differences, [0.0] * len(differences)).verdict == verdict


def test_unpaired_interval_by_hand():
    """Variances 1 and 4 of three values each: error sqrt(1/3 + 4/3), degrees of freedom (25/9) / (17/18) = 2.94, rounded down to 2."""
    assert report.unpaired_difference([1.0, 2.0, 3.0], [4.0, 6.0, 8.0]) == pytest.approx((-4.0, 4.303 * (5 / 3) ** 0.5))
    assert report.unpaired_difference([2.0, 2.0], [1.0, 1.0]) == (1.0, 0.0)


def test_quantiles_of_student_t():
    assert [report.t_975(degrees) for degrees in (1, 2, 2.94, 4, 30, 500)] == [12.706, 4.303, 4.303, 2.776, 2.042, 2.042]


def test_mean_and_sample_standard_deviation():
    assert report.mean_std([1.0, 2.0, 3.0]) == "2.00 ± 1.00"


def test_steps_a_second_leaves_interruptions_out():
    """Ten steps take 5 seconds; between steps 30 and 40 the run was away for an hour."""
    seconds = [step * 0.5 + (3600 if step > 35 else 0) for step in range(1, 61)]
    assert report.steps_a_second(report.Curve(list(range(1, 61)), [], [], seconds)) == pytest.approx(2.0)


def test_history_gives_stage_times_repetitions_and_failures():
    lines = "0 begin stage data,0 begin a,5 done a,7 done stage data,9 begin stage b,9 begin x,11 failed x,20 begin stage b,20 begin x,26 done stage b"
    history = [[part for part in line.split(" ", 2)] for line in lines.split(",")]
    assert report.stage_times(history) == {"data": (7, False), "b": (6, True)}
    assert report.repeated_jobs(history) == "- x: begun 2 times\n- x: failed"
    assert report.repeated_jobs(history[:4]) == "None failed, none was repeated."


SCORES = {  # F1 of cmrc2018 and accuracy of ocnli, each for the rates 2e-5 and 1e-4 and the seeds 1 and 2
    "teacher": ([[50, 52], [54, 56]], [[70, 70], [69, 69]]),
    "two_stage": ([[30, 30], [40, 42]], [[60, 62], [50, 50]]),
    "one_stage": ([[30, 30], [38, 40]], [[60, 60], [50, 50]]),
    "wide_shallow": ([[30, 30], [36, 37]], [[60, 61], [50, 50]]),
    "no_teacher": ([[10, 10], [20, 20]], [[40, 40], [40, 40]]),
}


@pytest.fixture
def experiment(tmp_path):
    """A work directory with the scores above and nothing else."""
    settings = {"SCALE": "gpu", "seeds": "1 2", "tasks": "ocnli:100:10 cmrc2018:100:10", "learning_rates": "2e-5 1e-4"}
    budget = {"length": 512, "student_batch": 32, "student_steps": 3000, "teacher_batch": 128, "shallow_steps": 3000, "teacher_steps": 4700}
    (tmp_path / "settings.txt").write_text("".join(f"{name}={value}\n" for name, value in {**settings, **budget}.items()))
    for kind in report.TRAINED:
        for name in [kind] if kind in ("shallow", "teacher") else [f"{kind}-1", f"{kind}-2"]:
            (tmp_path / "runs" / name).mkdir(parents=True)
            figures = {"loss": 2.0, "accuracy": 0.5 + 0.01 * name.endswith("2"), "masked_tokens": 1000}
            (tmp_path / "runs" / name / "eval.json").write_text(json.dumps({"student": figures}))
    for kind, tasks in SCORES.items():
        for task, rates in zip(("cmrc2018", "ocnli"), tasks):
            for rate, values in zip(("2e-5", "1e-4"), rates):
                for seed, value in enumerate(values, start=1):
                    directory = tmp_path / "finetuning" / f"{kind}-{seed}" / task / rate
                    directory.mkdir(parents=True)
                    metrics = {"f1": value, "em": value / 2} if task == "cmrc2018" else {"accuracy": value}
                    (directory / "results.json").write_text(json.dumps({"runs": [{"metrics": metrics}]}))
    return report.Experiment(tmp_path)


def test_claims_take_the_best_learning_rate_of_each_model_and_task(experiment):
    """By hand: two-stage (40 + 60) / 2 and (42 + 62) / 2; one-stage 49 and 50; wide-shallow 48 and 49; so differences 1, 2 and 1, 1.

    Gains of a high rate, mean of both tasks: teacher (4 - 1) / 2 for both seeds; two-stage 0, 0, one-stage -1, 0, wide-shallow -2, -2,
    no teacher 5, 5: students 0.5 and 0.75.
    """
    assert experiment.tasks == ["cmrc2018", "ocnli"]
    assert experiment.best_rate("two_stage", "cmrc2018") == "1e-4" and experiment.best_rate("two_stage", "ocnli") == "2e-5"
    assert [experiment.overall(kind) for kind in ("two_stage", "one_stage", "wide_shallow")] == [[50, 52], [49, 50], [48, 49]]
    assert experiment.gain("teacher", experiment.tasks) == [1.5, 1.5]
    assert experiment.students_gain(experiment.tasks) == [0.5, 0.75]
    two_stage, narrow_deep, rates = report.claims(experiment).values()
    assert two_stage == pytest.approx((1.5, 12.706 * 0.5**0.5 / 2**0.5))
    assert narrow_deep == pytest.approx((1.0, 0.0)) and narrow_deep.verdict == "supported"
    assert rates == pytest.approx((-0.875, 12.706 * 0.125))  # one variance is 0: one degree of freedom


def test_verdicts_of_the_experiment_and_of_a_dry_run(experiment):
    assert "| (b) narrow-deep − wide-shallow | +1.00 [+1.00, +1.00] | **supported** |" in report.claims_table(experiment)
    experiment.is_dry = True
    assert "| none, a dry run (by the rule: supported) |" in report.claims_table(experiment)
    assert "**" not in report.claims_table(experiment)


def test_tables_of_the_published_form(experiment):
    tables = report.result_tables(experiment)
    assert "| Model | Source | CMRC 2018 | OCNLI |" in tables
    assert "| Narrow-deep, two-stage | measured, 2 seeds | 41.00 ± 1.41 / 20.50 ± 0.71 | 61.00 ± 1.41 |" in tables
    assert "| Narrow-deep, two-stage | measured | 74.5/74.5 | 87.1 |" in tables
    assert "| Teacher | CMRC 2018 | 51.00 ± 1.41 | **55.00 ± 1.41** | 4.00 ± 0.00 |" in report.rates_table(experiment)
    assert "| Narrow-deep, one-stage | 2.0000 ± 0.0000 | 50.50 ± 0.71 |" in report.masked_lm_table(experiment)
    assert [experiment.budget(kind) for kind in ("shallow", "teacher", "ta", "two_stage")] == [
        196_608_000,
        308_019_200,
        49_152_000,
        49_152_000,
    ]


def test_published_differences_are_those_of_the_shared_tasks():
    """Two-stage: (0.40 + 0.79 + 0.18) / 3; narrow-deep: (0.57 + 0.23 + 0.30 - 0.34) / 4."""
    assert report.published_differences(["cmrc2018", "ocnli", "tnews", "chnsenticorp"]) == [
        "+0.46 (CMRC 2018, OCNLI, TNEWS)",
        "+0.19",
        "–",
    ]


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
    ended = run_sh(**inputs)
    assert ended.returncode == 2 and "chnsenticorp/dev.tsv:3: label '7' is none of 0, 1" in ended.stderr
    assert not list((tmp_path / "work" / "done").iterdir())


def settings_of(scale: str) -> dict[str, str]:
    script = f'. "{EXPERIMENT}/settings.sh"; print_settings'
    printed = subprocess.run(["sh", "-eu", "-c", script], env={**os.environ, "SCALE": scale}, capture_output=True, text=True, check=True)
    return dict(line.split("=", 1) for line in printed.stdout.splitlines())


@pytest.mark.parametrize("scale", ["gpu", "dry"])
def test_shapes_of_both_scales(scale, tmp_path):
    """The encoders compared agree within 3 %, the assistant has the teacher's size, and every setting is there."""
    settings = settings_of(scale)
    assert all(settings.values())
    names = ("shallow", "teacher", "ta", "narrow_deep", "wide_shallow")
    prepare.write_configs([f"{name}={settings[f'{name}_shape']}" for name in names], 21128, int(settings["positions"]), tmp_path)
    configs = {name: read_config(tmp_path / f"{name}.json", name) for name in names}
    assert [config.num_hidden_layers for config in configs.values()] == [3, 12, 6, 6, 4]
    assert configs["shallow"].hidden_size == configs["ta"].hidden_size == configs["teacher"].hidden_size
    sizes = [prepare.encoder_parameters(configs[name]) for name in ("narrow_deep", "wide_shallow")]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.03)
    assert len(settings["seeds"].split()) >= 2 and len(settings["learning_rates"].split()) >= 2


def test_encoders_of_different_size_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"differ by \+"):
        prepare.write_configs(["narrow_deep=6/128/512/4", "wide_shallow=4/160/640/5"], 100, 64, tmp_path)


def test_encoder_parameters_by_hand(tmp_path):
    """A layer of size 4 and FFN 8: four 4×4 products with biases, 4×8 and 8×4 with biases, two LayerNorms."""
    prepare.write_configs(["narrow_deep=2/4/8/2", "wide_shallow=2/4/8/2"], 100, 64, tmp_path)
    expected = 2 * (4 * (16 + 4) + (32 + 8) + (32 + 4) + 2 * 8)
    assert prepare.encoder_parameters(read_config(tmp_path / "narrow_deep.json", "it")) == expected


# ---------------------------------------------------------------- the dry run


def write_inputs(directory: Path) -> dict[str, str]:
    """Corpus, vocabulary, segmenter and task files, out of the sample corpus; as the environment of run.sh."""
    train_files = sorted((DATASET / "train" / "train_files").iterdir())
    lines = [line for path in train_files for block in read_line_blocks(path) for line in block if line.strip()]
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
    paths = {
        "corpus": directory / "corpus.txt.xz",
        "vocabulary": directory / "vocab.txt",
        "ltp": directory / "ltp",
        "tasks_dir": directory / "tasks",
        "work": directory / "work",
        "python": sys.executable,
    }
    return {"SCALE": "dry", "HF_HUB_OFFLINE": "1", "commit": "0123abc", **{name: str(path) for name, path in paths.items()}}


def run_sh(**environment) -> subprocess.CompletedProcess:
    command = ["sh", str(EXPERIMENT / "run.sh")]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


def test_what_is_missing_or_different_is_said_in_one_line(tmp_path):
    for environment, message in (
        ({"SCALE": "large"}, "error: SCALE=large: choose gpu (the experiment) or dry"),
        ({"SCALE": "dry", "corpus": "c", "vocabulary": "v", "ltp": ""}, "error: run.sh: ltp is not set"),
    ):
        ended = run_sh(**environment)
        assert ended.returncode == 2 and ended.stderr.startswith(message) and ended.stderr.count("\n") == 1
    (tmp_path / "settings.txt").write_text("SCALE=gpu\n")
    ended = run_sh(SCALE="dry", corpus="c", vocabulary="v", ltp="l", tasks_dir="t", work=str(tmp_path))
    assert ended.returncode == 2 and "holds an experiment with other settings" in ended.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["settings.txt"]


STUB = """#!/bin/sh
# Stands for python: notes its run's name; fails, or waits for a signal, where a file of that name says so.
for argument; do
    [ "$before" != --output_dir ] || name=${argument##*/}
    before=$argument
done
case $1 in *train.py | *finetune.py) ;; *) name=$(basename "$1") ;; esac
echo "$name" >>"$PLACE/started"
[ ! -e "$PLACE/fail-$name" ] || { echo "error: $name is wrong" >&2; exit 2; }
if [ -e "$PLACE/wait-$name" ]; then
    trap 'echo "$name" >>"$PLACE/stopped"; exit 143' TERM
    echo "$name" >>"$PLACE/waiting"
    while :; do sleep 0.05; done
fi
"""


@pytest.fixture
def stubbed(tmp_path):
    """The environment of a run.sh whose every job is the stub above."""
    (tmp_path / "stub").write_text(STUB)
    (tmp_path / "stub").chmod(0o755)
    paths = {"corpus": "c", "vocabulary": "v", "ltp": "l", "tasks_dir": "t", "work": tmp_path / "work", "python": tmp_path / "stub"}
    return {"SCALE": "dry", "PLACE": str(tmp_path), **{name: str(path) for name, path in paths.items()}}


ORDER = """prepare.py run_chinese_ref.py my_datasets.py shallow init_checkpoint_TA.py teacher init_checkpoint_TA.py ta-1 ta-2
one_stage-1 one_stage-2 wide_shallow-1 wide_shallow-2 no_teacher-1 no_teacher-2 two_stage-1 two_stage-2""".split()
FINETUNED = ["teacher", "two_stage", "one_stage", "wide_shallow", "no_teacher"]


def test_a_failed_job_stops_the_others_and_the_same_command_goes_on(stubbed, tmp_path):
    for name in ("fail-one_stage-1", "wait-one_stage-2"):
        (tmp_path / name).touch()
    ended = run_sh(**stubbed)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[0] == "error: one_stage-1 ended with status 2: error: one_stage-1 is wrong"
    done = {path.name for path in (tmp_path / "work" / "done").iterdir()}
    assert done == {"prepare", "references", "shards", "shallow", "teacher_init", "teacher", "ta_init", "ta-1", "ta-2"}
    for name in ("fail-one_stage-1", "wait-one_stage-2"):
        (tmp_path / name).unlink()
    (tmp_path / "started").unlink()
    assert run_sh(**stubbed).returncode == 0
    started = (tmp_path / "started").read_text().split()
    assert sorted(started[:8]) == sorted(ORDER[9:])  # two at a time
    assert sorted(started[8:-1]) == sorted(f"{kind}-{seed}" for kind in FINETUNED for seed in (1, 2))
    assert started[-1] == "report.py"
    history = [line.split("\t") for line in (tmp_path / "work" / "history.tsv").read_text().splitlines()]
    assert report.repeated_jobs(history) == "- one_stage-1: begun 2 times\n- one_stage-2: begun 2 times\n- one_stage-1: failed"


def test_the_gpu_scale_starts_every_run_with_valid_arguments(stubbed, tmp_path):
    """What the experiment would start; its arguments are those of train.py, its mappings fit its models."""
    assert run_sh(**{**stubbed, "SCALE": "gpu"}).returncode == 0
    started = (tmp_path / "started").read_text().split()
    students = [f"{kind}-{seed}" for kind in ("two_stage", "one_stage", "wide_shallow", "no_teacher", "ta") for seed in (1, 2, 3)]
    tuned = [f"{kind}-{seed}" for kind in FINETUNED for seed in (1, 2, 3)]
    assert sorted(started) == sorted(
        [*students, *tuned, "shallow", "teacher", *(name for name in ORDER if name.endswith(".py")), "report.py"]
    )

    settings, work = settings_of("gpu"), tmp_path / "work"
    shapes = {name: settings[f"{name}_shape"] for name in ("shallow", "teacher", "ta", "narrow_deep", "wide_shallow")}
    prepare.write_configs([f"{name}={shape}" for name, shape in shapes.items()], 21128, int(settings["positions"]), work)
    configs = {name: read_config(work / f"{name}.json", name) for name in shapes}
    tokens = {}
    for job, command in (line.split("\t") for line in (work / "commands.tsv").read_text().splitlines()):
        if "train.py" in command:
            args = config.parse(shlex.split(command)[2:])
            teacher = "ta" if job.startswith("two_stage") else "teacher"
            get_matches(args.matches, configs[Path(args.student_config).stem], configs[teacher])
            assert bool(args.matches) == bool(args.teacher_name_or_path) == (not job.startswith(("no_teacher", "teacher", "shallow")))
            tokens[job] = args.num_train_steps * args.train_batch_size * args.max_seq_length
    assert {tokens[name] for name in students} == {49_152_000} and tokens["shallow"] + tokens["teacher"] == 504_627_200


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_the_jobs(number, status, stubbed, tmp_path):
    for name in ("wait-ta-1", "wait-ta-2"):
        (tmp_path / name).touch()
    process = subprocess.Popen(["sh", str(EXPERIMENT / "run.sh")], env={**os.environ, **stubbed}, stdout=subprocess.DEVNULL)
    while not (tmp_path / "waiting").exists() or len((tmp_path / "waiting").read_text().split()) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == status
    assert sorted((tmp_path / "stopped").read_text().split()) == ["ta-1", "ta-2"]
    assert not (tmp_path / "work" / "done" / "ta-1").exists()


@pytest.mark.slow
def test_dry_run_killed_and_continued(tmp_path):
    """Killed with all its processes while students train, the same command goes on and repeats only what was unfinished."""
    environment, work = write_inputs(tmp_path), tmp_path / "work"
    with open(tmp_path / "first.log", "w") as log:
        first = subprocess.Popen(
            ["sh", str(EXPERIMENT / "run.sh")], env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        while not (work / "done" / "one_stage-1").exists():
            assert first.poll() is None, (tmp_path / "first.log").read_text()
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    done = {path.name: path.stat().st_mtime_ns for path in (work / "done").iterdir()}
    teacher = (work / "runs" / "teacher" / "gs20" / "model.safetensors").stat().st_mtime_ns

    ended = run_sh(**environment)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {name: (work / "done" / name).stat().st_mtime_ns for name in done} == done
    assert (work / "runs" / "teacher" / "gs20" / "model.safetensors").stat().st_mtime_ns == teacher
    history = [line.split("\t") for line in (work / "history.tsv").read_text().splitlines()]
    begun = [name for _, event, name in history if event == "begin" and not name.startswith("stage ")]
    assert len(set(begun)) == 3 + 4 + 5 * 2 + 5 * 2  # data; teacher and first weights; assistants, students; fine-tuning
    assert {name for name in begun if begun.count(name) > 1}.isdisjoint(done)

    page = (work / "report" / "README.md").read_text()
    assert (work / "report" / "training.png").read_bytes().startswith(b"\x89PNG")
    assert "**This is the report of a dry run**" in page
    verdicts = r"\| none, a dry run \(by the rule: (supported|not supported|too small to tell)\) \|"
    assert len(re.findall(rf"^\| \([abc]\) .* {verdicts}", page, re.MULTILINE)) == 3
    for title in report.TRAINED.values():
        assert f"| {title} |" in page and f"| training, {title} | " in page
    assert "| Narrow-deep, two-stage | 6/32/64/2 |" in page and "an assistant of its own: 10,240" in page
    for name in sorted({name for name in begun if begun.count(name) > 1}):
        assert f"- {name}: begun 2 times" in page
    assert "--matches L6h32_L6h48_hidden_mse" in page and "--matches L4h40_L12h48_hidden_mse" in page
    assert "Commit 0123abc; " in page
    assert str(tmp_path) not in page and str(ROOT) not in page

    again = run_sh(**environment)  # everything is done: the report alone is written again
    assert again.returncode == 0 and "begins" not in again.stdout
    assert (work / "report" / "README.md").read_text() == page
