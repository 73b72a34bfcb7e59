"""The two-level bootstrap: intervals and tests that count seeds as well as test examples.

S models, one a seed, are scored on the same examples, which fall into G clusters (questions of one image). With
a seed's effect a, a cluster's effect b and what is left e, a score is  y_sg = μ + a_s + b_g + e_sg,  and the mean
over seeds and clusters has the variance

    σ_a² / S  +  σ_b² / G  +  σ_e² / (S·G).                                                               (1)

Clusters and seeds cross: drawing both anew with replacement counts σ_e² three times (Owen, The pigeonhole
bootstrap, Annals of Applied Statistics 1, 2007), and three seeds drawn with replacement never show a tail beyond
the worst of them. So each level is drawn in the way that its number allows, and a resample is

    θ* = θ(clusters drawn with replacement, scores averaged over seeds)  +  σ̂_a / √S · t,    t ~ Student(S − 1)

The first part has the variance σ_b²/G + σ_e²/(S·G); the second the rest of (1), and is the t-interval over seeds
where there is nothing else. The variance s² of the S seeds' scores has the expectation σ_a² + σ_e²/G, whence

    σ̂_a² = max(0, s² − v),    v = G/(G − 1) · Σ_s Σ_g (z_sg − z̄_g)² / (S − 1)

where z_sg is the influence of cluster g on the score with seed s (for a mean: cluster's deviation ÷ G). With one
seed the spread over seeds is not known and the interval is that of the examples alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from harness.analysis.stats import Interval

Floats = NDArray[np.float64]


RESAMPLES = 10_000


_ELEMENTS_AT_ONCE = 4_000_000
"""Drawn clusters held in memory at a time (32 MB)."""


@dataclass(frozen=True)
class Ratios:
    """A metric as a weighted sum of ratios of sums: Σ_c weight_c · Σ_g numerator / Σ_g denominator.

    numerators: `(S, C, G)` by seed, ratio and cluster. denominators: `(C, G)`. weights: `(C,)`.
    An accuracy is one ratio (of summed scores to numbers of examples); recall sums are several.
    """

    numerators: Floats
    denominators: Floats
    weights: Floats

    def __post_init__(self) -> None:
        seeds, *shape = self.numerators.shape
        if tuple(shape) != self.denominators.shape or len(self.weights) != shape[0] or not seeds:
            raise ValueError(
                f"{self.numerators.shape} numerators, {self.denominators.shape} denominators, "
                f"{self.weights.shape} weights"
            )

    @property
    def by_seed(self) -> Floats:
        """The metric of each seed, `(S,)`."""
        return (self.numerators.sum(axis=2) / self.denominators.sum(axis=1)) @ self.weights

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.denominators.shape[1]

    def minus(self, other: Ratios) -> Ratios:
        """The paired difference: same seeds, same clusters.

        Raises:
            ValueError: they are not the same.
        """
        same = self.numerators.shape == other.numerators.shape
        if not same or not np.array_equal(self.denominators, other.denominators):
            raise ValueError("a paired difference needs the same seeds and examples on both sides")
        return Ratios(self.numerators - other.numerators, self.denominators, self.weights)

    def of_seeds(self, chosen: Sequence[int]) -> Ratios:
        """Only the seeds at these positions."""
        return Ratios(self.numerators[list(chosen)], self.denominators, self.weights)


@dataclass(frozen=True)
class Draws:
    """A metric's estimate and its resamples `(R,)`."""

    estimate: float
    values: Floats

    def interval(self, level: float = 0.95) -> Interval:
        """Percentile interval."""
        low, high = np.quantile(self.values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.estimate, float(low), float(high), level)

    def p_value(self) -> float:
        """Two-sided, of the hypothesis that the metric is 0: the least 1 − level whose interval leaves it out.

        Never below 2 / (R + 1) (Davison & Hinkley, Bootstrap Methods and their Application, 1997, (4.11)).
        """
        beyond = min(int((self.values <= 0).sum()), int((self.values >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.values) + 1))


def seed_deviation(ratios: Ratios) -> float:
    """σ̂_a: the standard deviation over seeds beyond what the examples explain; 0 for one seed."""
    seeds, _, clusters = ratios.numerators.shape
    if seeds < 2 or clusters < 2:
        return float(ratios.by_seed.std(ddof=1)) if seeds > 1 else 0.0
    totals = ratios.denominators.sum(axis=1)
    by_ratio = ratios.numerators.sum(axis=2) / totals
    deviations = ratios.numerators - by_ratio[:, :, None] * ratios.denominators
    influence = np.einsum("scg,c->sg", deviations, ratios.weights / totals)
    left = influence - influence.mean(axis=0)
    explained = clusters / (clusters - 1) * (left**2).sum() / (seeds - 1)
    return sqrt(max(0.0, float(ratios.by_seed.var(ddof=1) - explained)))


def resample(metrics: Sequence[Ratios], resamples: int = RESAMPLES, seed: int = 0) -> list[Draws]:
    """Draws of several metrics of the same clusters, which are drawn once for all of them.

    Raises:
        ValueError: the clusters differ in number or content.
    """
    if not metrics:
        return []
    denominators, weights = metrics[0].denominators, metrics[0].weights
    for other in metrics[1:]:
        if not np.array_equal(other.denominators, denominators):
            raise ValueError("these metrics are not of the same examples")
    ratios, clusters = denominators.shape
    averaged = np.concatenate([metric.numerators.mean(axis=0) for metric in metrics])
    both = np.concatenate([averaged, denominators]).T
    random, over_seeds = (np.random.default_rng([seed, level]) for level in (0, 1))
    rows = max(1, _ELEMENTS_AT_ONCE // clusters)
    sums = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = random.integers(clusters, size=(count, clusters))
        drawn += clusters * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * clusters).reshape(count, clusters)
        sums.append(times.astype(np.float64) @ both)
    summed = np.concatenate(sums)
    top = summed[:, : len(metrics) * ratios].reshape(resamples, len(metrics), ratios)
    bottom = summed[:, None, len(metrics) * ratios :]
    drawn_with = (bottom > 0).all(axis=(1, 2))  # a rare class may be missing from a resample
    values = (top[drawn_with] / bottom[drawn_with]) @ weights
    result = []
    for index, metric in enumerate(metrics):
        seeds = len(metric.numerators)
        own = values[:, index]
        if seeds > 1:
            spread = seed_deviation(metric) / sqrt(seeds)
            own = own + spread * over_seeds.standard_t(seeds - 1, size=len(own))
        result.append(Draws(float(metric.by_seed.mean()), own))
    return result
