"""The rows of the benchmarks' tables: made from rounds of both sides, printed, written as JSON."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from pretraining.corpus import files


@dataclass
class Row:
    """One line of the table: medians of the rounds, and the least and greatest ratio of a round; None where there is no peer."""

    stage: str
    unit: str
    ours: float
    peer: float | None
    ratio: float | None
    ratio_min: float | None
    ratio_max: float | None
    target: str
    met: bool


def faster(stage: str, ours: list[float], peer: list[float], at_least: float) -> Row:
    """Seconds of each round against the peer's of the same round; the ratio says how many times faster we are."""
    ratios = [theirs / mine for mine, theirs in zip(ours, peer)]
    return _row(stage, "s", ours, peer, ratios, f"at least {at_least:g}x faster", median(ratios) >= at_least)


def under(stage: str, unit: str, ours: list[float], peer: list[float], below: float, limit: float | None = None) -> Row:
    """A cost of each round as a share of the peer's; ``limit`` is a bound on ours itself."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peer)]
    target = f"under {below:g}x" + (f", under {limit:,g} {unit}" if limit else "")
    return _row(stage, unit, ours, peer, ratios, target, median(ratios) < below and (limit is None or median(ours) < limit))


def rate(stage: str, ours: list[float], at_least: float, peer: list[float] | None = None, times: float = 0, unit: str = "samples/s") -> Row:
    """Samples a second of each round, and how many times the peer's."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peer)] if peer else None
    target = f"at least {at_least:,g} {unit}" + (f", {times:g}x" if times else "")
    return _row(stage, unit, ours, peer, ratios, target, median(ours) >= at_least and (not times or median(ratios) >= times))


def at_most(stage: str, unit: str, ours: float, most: float) -> Row:
    return _row(stage, unit, [ours], None, None, f"at most {most:g}", ours <= most)


def _row(stage, unit, ours, peer, ratios, target, met) -> Row:
    spread = (median(ratios), min(ratios), max(ratios)) if ratios else (None, None, None)
    return Row(stage, unit, median(ours), median(peer) if peer else None, *spread, target, bool(met))


def print_table(rows: Iterable[Row]) -> None:
    lines = [("stage", "unit", "ours", "peer", "ratio (min-max)", "target", "met")]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} ({row.ratio_min:.2f}-{row.ratio_max:.2f})"
        lines.append((row.stage, row.unit, _short(row.ours), _short(row.peer), ratio, row.target, "yes" if row.met else "NO"))
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def write_json(path: str | Path, rows: list[Row], **more) -> None:
    """A list of rows; with ``more`` an object that has them under "rows"."""
    values = [asdict(row) for row in rows]
    files.write_json(path, {**more, "rows": values} if more else values)
