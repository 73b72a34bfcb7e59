"""Means, spreads, intervals, and p-values adjusted for being several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its confidence interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("the mean of no values")
    return sum(values) / len(values)


def sample_sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divided by n − 1); None for a single value, which has none."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being several, in the given order: Holm's step-down procedure (1979).

    The k-th smallest of m is multiplied by m − k + 1; none comes out below a smaller one, or above 1.
    """
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted
