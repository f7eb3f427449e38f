"""Mean differences with 95 % intervals, and the verdicts that follow from them."""

import math
import statistics
from typing import NamedTuple

# The 97.5 % quantiles of Student's t for 1 to 30 degrees of freedom.
T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


class Difference(NamedTuple):
    """A mean difference and the half width of its 95 % interval, in the unit of the samples."""

    mean: float
    half_width: float

    @property
    def verdict(self) -> str:
        """The rule of README.md."""
        if self.mean - self.half_width > 0:
            return "supported"
        return "not supported" if self.mean + self.half_width < 0 else "too small to tell"

    def __str__(self) -> str:
        return f"{self.mean:+.2f} [{self.mean - self.half_width:+.2f}, {self.mean + self.half_width:+.2f}]"


def t_975(degrees: float) -> float:
    """The 97.5 % quantile of Student's t; degrees of freedom are rounded down to a whole number, 30 at most."""
    return T_975[min(int(degrees), len(T_975)) - 1]


def paired_difference(first: list[float], second: list[float]) -> Difference:
    """The mean of first minus second, element by element; at least two pairs."""
    differences = [a - b for a, b in zip(first, second, strict=True)]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return Difference(statistics.fmean(differences), t_975(len(differences) - 1) * error)


def unpaired_difference(first: list[float], second: list[float]) -> Difference:
    """The difference of the means of two independent samples, which may have different variances (Welch, Biometrika 1947).

    Each sample has at least two values. Degrees of freedom: (a + b)² / (a² / (n - 1) + b² / (m - 1)), where a and b are the
    variances of the samples divided by their sizes n and m.
    """
    mean = statistics.fmean(first) - statistics.fmean(second)
    a, b = statistics.variance(first) / len(first), statistics.variance(second) / len(second)
    if a == b == 0:
        return Difference(mean, 0.0)
    degrees = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return Difference(mean, t_975(degrees) * math.sqrt(a + b))


def mean_std(values: list[float], digits: int = 2) -> str:
    """``mean ± sample standard deviation``."""
    return f"{statistics.fmean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def mean_of(rows: list[list[float]]) -> list[float]:
    """The mean of several rows of one length, column by column."""
    return [statistics.fmean(column) for column in zip(*rows, strict=True)]
