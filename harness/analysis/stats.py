"""Means, spreads and intervals: over seeds with Student's t, over examples with a clustered bootstrap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import atan, cos, pi, sin, sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


_ELEMENTS_AT_ONCE = 4_000_000
"""Resampled clusters held in memory at a time (32 MB)."""


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


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval | None:
    """Student's t-interval of the mean over seeds; None for fewer than two values."""
    spread = sample_sd(values)
    if spread is None:
        return None
    centre = mean(values)
    half = t_quantile(level, len(values) - 1) * spread / sqrt(len(values))
    return Interval(centre, centre - half, centre + half, level)


def t_quantile(level: float, degrees: int) -> float:
    """The t with P(|T| ≤ t) = level, by bisection.

    Raises:
        ValueError: level is not between 0 and 1, or there is no degree of freedom.
    """
    if not 0 < level < 1 or degrees < 1:
        raise ValueError(f"no quantile at level {level} with {degrees} degrees of freedom")
    low, high = 0.0, 1.0
    while _t_coverage(high, degrees) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_coverage(middle, degrees) < level else (low, middle)
    return (low + high) / 2


def _t_coverage(t: float, degrees: int) -> float:
    """P(|T| ≤ t) for whole degrees of freedom: Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    angle = atan(t / sqrt(degrees))
    odd = degrees % 2
    term = cos(angle) if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cos(angle) ** 2 * (k - 1) / k
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def bootstrap_interval(
    scores: Sequence[float] | Floats,
    groups: Sequence[Hashable],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of the mean score when whole groups (images) are drawn with replacement.

    scores, groups: one per example, `(N,)`. A resample's mean is over its examples: large groups weigh more.

    Raises:
        ValueError: there are no scores, or their number is not that of the groups.
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or len(values) != len(groups) or len(values) == 0:
        raise ValueError(f"{values.shape} scores for {len(groups)} groups")
    index_of = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    cluster = np.array([index_of[group] for group in groups])
    sums = np.bincount(cluster, weights=values)
    sizes = np.bincount(cluster)
    random = np.random.default_rng(seed)
    rows = max(1, _ELEMENTS_AT_ONCE // len(sums))
    means: list[Floats] = []
    for start in range(0, resamples, rows):
        drawn = random.integers(len(sums), size=(min(rows, resamples - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(values.mean()), float(low), float(high), level)


def paired_bootstrap(
    first: Sequence[float] | Floats,
    second: Sequence[float] | Floats,
    groups: Sequence[Hashable],
    *,
    resamples: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of `first − second`, two methods' scores of the same examples in the same order, `(N,)` each.

    Raises:
        ValueError: the numbers of scores and groups differ.
    """
    one, other = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != other.shape:
        raise ValueError(f"{one.shape} scores beside {other.shape}: not the same examples")
    return bootstrap_interval(one - other, groups, resamples=resamples, level=level, seed=seed)


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
