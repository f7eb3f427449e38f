"""The experiment's report: verdicts, tables, training curves, speed; run.py calls it at the end.

    python experiments/small_scale/report.py --work pretraining/saves/small_scale/gpu --output_dir experiments/small_scale

It writes RESULTS.md and training.png. RESULTS.md does not repeat README.md.
"""

from pathlib import Path

from pretraining.corpus.files import atomic_write
from pretraining.reporting.tables import save_figure
from pretraining.utils import ArgumentParser, UserError, run_script


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--work", required=True, type=Path, help="the work directory of run.py")
    parser.add_argument("--output_dir", required=True, type=Path)
    args = parser.parse_args(argv)
    if not args.work.is_dir():
        raise UserError(f"--work {args.work}: no such directory; run.py makes it")
    # Imported here: matplotlib, TensorBoard, torch and transformers take seconds, and a wrong argument is refused before.
    from experiments.small_scale.figures import training_figure
    from experiments.small_scale.measured import TRAINED, Experiment, read_curve
    from experiments.small_scale.page import page
    from experiments.small_scale.tables import claims_table

    experiment = Experiment(args.work)
    curves = {run: read_curve(args.work / "runs" / run) for kind in TRAINED for run in experiment.runs(kind)}
    text = page(experiment, curves)
    save_figure(training_figure(experiment, curves), args.output_dir / "training.png")
    with atomic_write(args.output_dir / "RESULTS.md") as file:
        file.write(text)
    print(claims_table(experiment))
    print(f"report: {args.output_dir / 'RESULTS.md'}")


if __name__ == "__main__":
    run_script(main)
