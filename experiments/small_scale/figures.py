"""The figure of the report: how the losses of the students went."""

import statistics

from matplotlib.figure import Figure

from experiments.small_scale.jobs import STUDENTS
from experiments.small_scale.measured import KINDS, Curve, Experiment


def smooth(values: list[float], width: int) -> list[float]:
    """The running mean over the last ``width`` values."""
    return [statistics.fmean(values[max(0, end - width) : end]) for end in range(1, len(values) + 1)]


def training_figure(experiment: Experiment, curves: dict[str, Curve]) -> Figure:
    """The losses of all students over the tokens they have seen.

    Args:
        curves: of every training run, by name.
    """
    figure = Figure(figsize=(13, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, kind in enumerate(STUDENTS):
        tokens_per_step = experiment.batch(kind) * experiment.settings.length
        for run in experiment.runs(kind):
            curve = curves[run]
            width = max(1, len(curve.total.steps) // 50)
            label = KINDS[kind] if run == experiment.runs(kind)[0] else None
            for axes, loss in ((left, curve.predictions), (right, curve.total)):
                millions = [step * tokens_per_step / 1e6 for step in loss.steps]
                axes.plot(millions, smooth(loss.values, width), color=f"C{index}", label=label, linewidth=1, alpha=0.8)
    left.set(title="Loss on the predictions", ylabel="nats; soft labels with a teacher, else masked-LM")
    right.set(title="Total loss", ylabel="with the matched layers (log scale)", yscale="log")
    for axes in (left, right):
        axes.set_xlabel("million tokens")
        axes.grid(alpha=0.3)
    left.legend(frameon=False)
    figure.suptitle("All students, one line for each seed; running means over a fiftieth of the steps")
    return figure
