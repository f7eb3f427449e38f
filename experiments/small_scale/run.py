"""Tries the three published claims at a small scale, with this project's own scripts. Run it again and it resumes.

    python experiments/small_scale/run.py --scale gpu --corpus C --vocabulary V --ltp L --tasks_dir T

--scale gpu is the experiment: half an hour of one H200-class GPU. It writes RESULTS.md beside this file.
--scale dry runs every stage in minutes on two CPU cores and says nothing about the claims. It writes WORK/report/RESULTS.md.
The settings are in settings.toml, the jobs in jobs.py.
"""

import os
import subprocess
import sys
from pathlib import Path

from experiments.small_scale.jobs import HERE, ExperimentJobs
from experiments.small_scale.runner import Interrupted, JobFailed, Runner
from experiments.small_scale.settings import SCALES, ScaleSettings, read_settings
from pretraining.corpus.files import atomic_write
from pretraining.utils import ArgumentParser, UserError, run_script

PRETRAINING = HERE.parents[1] / "pretraining"


def absolute(path: str) -> Path:
    """An absolute path, seen from where the command was called; links stay."""
    return Path(os.path.abspath(path))


def interpreter(text: str) -> str:
    """A program's name is searched for on PATH; a path is made absolute, for the jobs run in another directory."""
    return str(absolute(text)) if "/" in text else text


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--scale", required=True, choices=SCALES)
    parser.add_argument("--corpus", required=True, type=absolute, help="UTF-8 text, plain or .xz; a blank line ends an article")
    parser.add_argument("--vocabulary", required=True, type=absolute, help="BERT's vocab.txt")
    parser.add_argument("--ltp", required=True, type=absolute, help="directory of an LTP model, legacy or neural")
    parser.add_argument("--tasks_dir", required=True, type=absolute, help="the tasks' files, in cmrc2018/ ocnli/ tnews/ chnsenticorp/")
    parser.add_argument("--work", type=absolute, help="where everything goes; default: pretraining/saves/small_scale/SCALE")
    parser.add_argument("--python", type=interpreter, default=sys.executable, help="interpreter of the jobs; default: the one of run.py")
    parser.add_argument("--commit", help="the commit that the report names; default: the one that git reports")
    args = parser.parse_args(argv)
    settings = read_settings(args.scale)
    work = args.work or PRETRAINING / "saves" / "small_scale" / args.scale
    jobs = ExperimentJobs(settings, args.corpus, args.vocabulary, args.ltp, args.tasks_dir, work, args.python)

    open_work_directory(work, settings)
    note_paths(jobs)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # several jobs share the cores
    runner = Runner(work, PRETRAINING)
    runner.note(f"commit {args.commit or current_commit()}", "run.py")
    try:
        runner.run(jobs.stages(), jobs.report(work / "report" if args.scale == "dry" else HERE))
    except JobFailed as failed:
        sys.exit(failed.status)
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        sys.exit(interrupted.status)


def open_work_directory(work: Path, settings: ScaleSettings) -> None:
    """Makes the work directory, or checks that the one that is there belongs to these settings.

    Raises:
        UserError: it holds an experiment with other settings.
    """
    for name in ("done", "logs"):
        (work / name).mkdir(parents=True, exist_ok=True)
    path, text = work / "settings.txt", "".join(f"{line}\n" for line in settings.lines())
    if not path.exists():
        with atomic_write(path) as file:
            file.write(text)
    elif path.read_text(encoding="utf-8") != text:
        raise UserError(f"{work}: holds an experiment with other settings (settings.txt); name another --work or remove it")


def note_paths(jobs: ExperimentJobs) -> None:
    """Writes paths.txt; the report replaces this machine's paths by these names."""
    names = ("work", "corpus", "vocabulary", "ltp", "tasks_dir", "python")
    paths = {**{name: getattr(jobs, name) for name in names}, "here": HERE}
    with atomic_write(jobs.work / "paths.txt") as file:
        file.writelines(f"{name}={path}\n" for name, path in paths.items())


def current_commit() -> str:
    """The commit of this copy of the project, "-dirty" behind it if files were changed; "unknown" without git."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    run_script(main)
