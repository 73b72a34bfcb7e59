"""Two-level bootstrap: intervals and tests that account for both seeds and test examples.

S models, one per seed, are scored on the same examples, which form G clusters (all questions about one image).
With seed effect a, cluster effect b and residual e, a score is  y_sg = μ + a_s + b_g + e_sg,  and the mean over
seeds and clusters has the variance

    σ_a² / S  +  σ_b² / G  +  σ_e² / (S·G).                                                               (1)

Clusters and seeds are crossed. Drawing both with replacement counts σ_e² three times (Owen, The pigeonhole
bootstrap, Annals of Applied Statistics 1, 2007), and resamples of three seeds never reach beyond the worst of the
three. So only clusters are resampled, and the seeds enter through Student's t. A resample is

    θ* = θ(clusters drawn with replacement, scores averaged over seeds)  +  σ̂_a / √S · t,    t ~ Student(S − 1)

The first term has the variance σ_b²/G + σ_e²/(S·G), the second the rest of (1). If seeds are the only source of
variance, this is the usual t-interval over seeds. The sample variance s² of the S seeds' scores has the expectation
σ_a² + σ_e²/G, so

    σ̂_a² = max(0, s² − v),    v = G/(G − 1) · Σ_s Σ_g (z_sg − z̄_g)² / (S − 1)

where z_sg is the influence of cluster g on the score of seed s (for a mean: the cluster's deviation divided by G).
With one seed the variance over seeds is unknown, and the interval covers the examples only.
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
"""Number of drawn clusters held in memory at a time (32 MB)."""


@dataclass(frozen=True)
class Ratios:
    """A metric as a weighted sum of ratios of sums: Σ_c weight_c · Σ_g numerator / Σ_g denominator.

    numerators: `(S, C, G)` by seed, ratio and cluster. denominators: `(C, G)`. weights: `(C,)`.
    An accuracy is one ratio (sum of scores over number of examples), a sum of recalls is several.
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
        """Metric of each seed, `(S,)`."""
        return (self.numerators.sum(axis=2) / self.denominators.sum(axis=1)) @ self.weights

    @property
    def clusters(self) -> int:
        """Number of clusters."""
        return self.denominators.shape[1]

    def minus(self, other: Ratios) -> Ratios:
        """Paired difference `self − other` on the same seeds and clusters.

        Raises:
            ValueError: seeds or clusters differ.
        """
        same = self.numerators.shape == other.numerators.shape
        if not same or not np.array_equal(self.denominators, other.denominators):
            raise ValueError("a paired difference needs the same seeds and examples on both sides")
        return Ratios(self.numerators - other.numerators, self.denominators, self.weights)

    def of_seeds(self, chosen: Sequence[int]) -> Ratios:
        """Ratios of the seeds at these positions only."""
        return Ratios(self.numerators[list(chosen)], self.denominators, self.weights)


@dataclass(frozen=True)
class Draws:
    """A metric's estimate and its resamples `(R,)`."""

    estimate: float
    values: Floats

    def interval(self, level: float = 0.95) -> Interval:
        """Percentile interval at `level`."""
        low, high = np.quantile(self.values, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.estimate, float(low), float(high), level)

    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the metric is 0: the smallest α whose 1 − α interval excludes 0.

        At least 2 / (R + 1) (Davison & Hinkley, Bootstrap Methods and their Application, 1997, (4.11)).
        """
        beyond = min(int((self.values <= 0).sum()), int((self.values >= 0).sum()))
        return min(1.0, 2 * (beyond + 1) / (len(self.values) + 1))


def seed_deviation(ratios: Ratios) -> float:
    """σ̂_a: standard deviation over seeds that the examples do not explain; 0 for one seed."""
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
    """Resamples of several metrics on the same clusters; each resample draws the same clusters for all metrics.

    Raises:
        ValueError: the metrics have different clusters.
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
    drawn_with = (bottom > 0).all(axis=(1, 2))  # resamples without any example of a rare class are dropped
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
