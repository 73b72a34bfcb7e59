"""Means, standard deviations, intervals, and p-values adjusted for multiple comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its confidence interval at `level`."""

    estimate: float
    low: float
    high: float
    level: float


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean.

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("no values to average")
    return sum(values) / len(values)


def sample_sd(values: Sequence[float]) -> float | None:
    """Sample standard deviation (divided by n − 1); None for fewer than two values."""
    if len(values) < 2:
        return None
    centre = mean(values)
    return sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple comparisons, in the given order: Holm's step-down procedure (1979).

    The k-th smallest of m is multiplied by m − k + 1, never less than the one before, and at most 1.
    """
    adjusted = [0.0] * len(p_values)
    so_far = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted
