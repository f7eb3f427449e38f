"""The figures of the reports: how a training run went, and bars of model sizes and speeds."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers import BertConfig

from pretraining.matches import LOSS_NAME, RELATED_FEATURES
from pretraining.reporting.model_sizes import parameter_counts
from pretraining.reporting.model_speed import Speeds, speed_headers, speedups
from pretraining.reporting.published_models import PUBLISHED
from pretraining.reporting.scalars import Scalars, read_scalars
from pretraining.utils import UserError

SMOOTHED_POINTS = 40  # the strong line is a mean over one part in so many of the run

# ---------------------------------------------------------------- training


def read_curves(run: Path) -> dict[str, Scalars]:
    """Reads what train.py logged, under short names: ``total_loss``, ``kd_loss``, ``learning_rate``, ...

    Raises:
        UserError: the directory has no losses of train.py.
    """
    curves = {tag.removeprefix("scalar/").removeprefix("unweighted_"): values for tag, values in read_scalars(run).items()}
    if "total_loss" not in curves:
        raise UserError(f"--runs {run}: its TensorBoard events hold no losses of train.py; give the --output_dir of a run")
    return curves


def training_figure(name: str, curves: dict[str, Scalars]) -> Figure:
    """Draws the losses of a run and its learning rate over the steps, in panels side by side.

    Args:
        curves: from :func:`read_curves`.
    """
    matches = {tag: found for tag in curves if (found := LOSS_NAME.fullmatch(tag))}
    predicted = {tag: curve for tag, curve in curves.items() if tag.endswith("_loss") and tag != "total_loss"}
    is_total = not matches and len(predicted) == 1  # a training without a teacher: its only loss is the total
    figure = Figure(figsize=(13, 8) if matches else (10 if is_total else 14, 4.2), layout="constrained")
    window = max(1, len(curves["total_loss"].steps) // SMOOTHED_POINTS)
    figure.suptitle(f"Training of {name} (losses: faint the single steps, strong their mean over {window})")
    if matches:
        (total, predictions), (layers, rate) = figure.subplots(2, 2).T  # transposed: the long legend goes to the right edge
        panels = [total, predictions, layers, rate]
        _draw_matches(layers, curves, matches, window)
        _draw_predictions(predictions, predicted, window)
    elif is_total:
        panels = [total, rate] = figure.subplots(1, 2)
    else:
        panels = [total, predictions, rate] = figure.subplots(1, 3)
        _draw_predictions(predictions, predicted, window)

    draw_smoothed(total, curves["total_loss"], window, color="C3")
    total.set(
        title=f"Total loss = {next(iter(predicted))}" if is_total else "Total loss", ylabel="cross-entropy (nats)" if is_total else "loss"
    )
    rate.plot(curves["learning_rate"].steps, curves["learning_rate"].values, color="C2")
    rate.set(title="Learning rate", ylabel="learning rate")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in panels:
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    return figure


def _draw_predictions(axes: Axes, curves: dict[str, Scalars], window: int) -> None:
    """The losses on the predictions, one line each."""
    for tag, curve in curves.items():
        draw_smoothed(axes, curve, window, label=tag)
    axes.set(title="Loss on the predictions", ylabel="cross-entropy (nats), unweighted")
    axes.legend(frameon=False)


def _draw_matches(axes: Axes, curves: dict[str, Scalars], matches: dict[str, re.Match], window: int) -> None:
    """The losses on the matched layers, coloured from the first match to the last."""
    for index, (tag, found) in enumerate(matches.items()):
        color = colormaps["viridis"](0.9 * index / max(1, len(matches) - 1))
        feature, loss, student_layer, teacher_layer = found.groups()
        kind = f"{feature} {loss}" if feature in RELATED_FEATURES else loss
        draw_smoothed(axes, curves[tag], window, label=f"{kind} {student_layer} ← {teacher_layer}", color=color)
    axes.set(title="Loss on the matched layers", ylabel="loss, unweighted (log scale)", yscale="log")
    axes.legend(fontsize=8, title="student layer ← teacher layer", title_fontsize=8, bbox_to_anchor=(1, 1), loc="upper left")


def draw_smoothed(axes: Axes, curve: Scalars, window: int, label: str | None = None, color=None) -> None:
    """Draws every value as a faint line, and over it the mean of each ``window`` neighbours."""
    means = np.convolve(curve.values, np.full(window, 1 / window), "valid")
    first = window // 2
    (line,) = axes.plot(curve.steps[first : first + len(means)], means, label=label, color=color, linewidth=1.2)
    axes.plot(curve.steps, curve.values, color=line.get_color(), alpha=0.25, linewidth=0.8)


# ---------------------------------------------------------------- models


def bar_chart(configs: dict[str, BertConfig], speeds: Speeds) -> Figure:
    """Draws the parameters and the speed-ups of the models as two panels of horizontal bars."""
    counts = [parameter_counts(config) for config in configs.values()]
    sizes = {
        "with embeddings": [count.total / 1e6 for count in counts],
        "without embeddings": [count.without_embeddings / 1e6 for count in counts],
    }
    factors = {header: list(speedups(seconds).values()) for header, seconds in zip(speed_headers(speeds), speeds.values())}
    if set(configs) <= set(PUBLISHED):
        factors["published"] = [float(PUBLISHED[name].speedup.rstrip("×")) for name in configs]

    names = list(configs)
    bars = len(names) * max(len(sizes), len(factors))
    figure = Figure(figsize=(12, 1.5 + 0.24 * bars), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_bars(left, names, sizes, title="Parameters", unit="millions", label_of=millions)
    _draw_bars(right, names, factors, title=f"Speed-up over {names[0]}", unit="times as fast", label_of="{:.1f}×".format)
    return figure


def millions(count: float) -> str:
    """``102.3M``, ``0.44M``: small models differ in the third digit."""
    return f"{count:.1f}M" if count >= 10 else f"{count:.3g}M"


def _draw_bars(
    axes: Axes, names: list[str], series: dict[str, list[float]], *, title: str, unit: str, label_of: Callable[[float], str]
) -> None:
    """A group of bars for each name, a bar for each series."""
    height = 0.8 / len(series)
    for index, (label, values) in enumerate(series.items()):
        offset = (index - (len(series) - 1) / 2) * height
        positions = [number + offset for number in range(len(names))]
        color = "0.7" if label == "published" else None
        bars = axes.barh(positions, values, height * 0.9, label=label, color=color)
        axes.bar_label(bars, fmt=label_of, padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(title=title, xlabel=unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.08), ncols=len(series))  # above: it hides no bar
