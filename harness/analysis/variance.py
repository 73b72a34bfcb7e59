"""Variance between alternatives and within them: an analysis of variance with random effects.

Groups g = 1 … G, such as sets of skipped blocks, are each trained with the same S seeds. The score is
y[g, s] = mean + effect[g] + shared[s] + noise[g, s], all normally distributed. `shared` is what a seed does to every
group alike, as it gives all of them the same order of examples and the same first weights of the head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import numpy as np

from harness.analysis.stats import Interval

DRAWS = 400_000
"""Random draws that intervals are computed from; quantiles are then exact to about 1 %."""

POWER = 2 * (1.959964 + 0.841621) ** 2
"""Factor of the number of seeds that finds a difference at the 5 % level, two-sided, in 80 % of experiments."""


@dataclass(frozen=True)
class Components:
    """Variance components of scores, with 95 % intervals.

    between: variance of the groups' effects; the estimate may be negative, the interval is cut off at 0.
    shared: variance of what a seed does to all groups alike. It cancels in comparisons between groups.
    within: variance between seeds of one group that is left besides.
    p_value: of the F test that the groups do not differ.
    freedom: degrees of freedom of `within`, (G − 1) (S − 1).
    """

    groups: int
    seeds: int
    mean: float
    between: Interval
    shared: Interval
    within: Interval
    p_value: float
    freedom: int


def components(scores: np.ndarray) -> Components:
    """The components of scores `(G, S)`.

    The intervals are generalised ones (Weerahandi, Generalized confidence intervals, JASA 1993): quantiles of
    SS_b / χ²(G − 1) − SS_w / χ²((G − 1) (S − 1)), divided by S, of the same for the seeds, divided by G, and of
    SS_w / χ²((G − 1) (S − 1)). The upper bound of `between` and `shared` is a quantile of the positive draws only: it
    would be 0 where groups happen to differ less than noise alone makes them.

    Raises:
        ValueError: there are fewer than two groups or seeds.
    """
    groups, seeds = scores.shape
    if groups < 2 or seeds < 2:
        raise ValueError(f"{groups} groups of {seeds}: a variance needs at least two of each")
    centred = scores - scores.mean()
    of_groups = seeds * float((centred.mean(axis=1) ** 2).sum())
    of_seeds = groups * float((centred.mean(axis=0) ** 2).sum())
    left = centred - centred.mean(axis=1, keepdims=True) - centred.mean(axis=0)
    of_noise = float((left**2).sum())
    freedom = (groups - 1) * (seeds - 1)
    between, within = of_groups / (groups - 1), of_noise / freedom
    first, second, third = _chi_squares(groups - 1, freedom, seeds - 1)
    noise = of_noise / second
    ratio = np.inf if within == 0 else between / within
    return Components(
        groups,
        seeds,
        float(scores.mean()),
        _component((between - within) / seeds, (of_groups / first - noise) / seeds),
        _component((of_seeds / (seeds - 1) - within) / groups, (of_seeds / third - noise) / groups),
        _interval(within, noise),
        float(((first / (groups - 1)) / (second / freedom) >= ratio).mean()),
        freedom,
    )


@lru_cache(1)
def _chi_squares(*freedom: int) -> list[np.ndarray]:
    """Independent draws of χ² with the given degrees of freedom."""
    random = np.random.default_rng(0)
    return [random.chisquare(each, DRAWS) for each in freedom]


def contrast(scores: np.ndarray, weights: np.ndarray, found: Components) -> Interval:
    """The weighted sum of scores `(G, S)`, with a 95 % interval for the noise between seeds.

    weights: of each seed they must add up to 0, so that what the seed does to all groups cancels.

    The groups are taken as they are: the interval does not cover which groups were drawn.
    """
    reach = student(found.freedom) * sqrt(found.within.estimate * float((weights**2).sum()))
    estimate = float((scores * weights).sum())
    return Interval(estimate, estimate - reach, estimate + reach, 0.95)


@lru_cache(8)
def student(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with these degrees of freedom."""
    random = np.random.default_rng(0)
    t = random.standard_normal(DRAWS) / np.sqrt(random.chisquare(freedom, DRAWS) / freedom)
    return float(np.quantile(np.abs(t), 0.95))


def seeds_to_tell(difference: float, within: float) -> int:
    """Seeds per group with which 80 % of experiments find a true difference between two groups at the 5 % level.

    within: variance between seeds. Both groups are trained with the same seeds. By the normal approximation,
    2 (1.96 + 0.84)² within / difference².
    """
    return max(2, ceil(POWER * within / difference**2))


def best_of_the_others(scores: np.ndarray) -> np.ndarray:
    """Weights `(G, S)` of an oracle: for each seed, the score of the group that is best with the other seeds.

    The best mean itself would be too high by chance. Choosing and scoring on different seeds avoids that.
    """
    groups, seeds = scores.shape
    weights = np.zeros((groups, seeds))
    for seed in range(seeds):
        others = np.delete(scores, seed, axis=1).mean(axis=1)
        weights[int(others.argmax()), seed] = 1 / seeds
    return weights


def weights_of(chosen: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
    """Weights `(G, S)` of the mean score of the groups in `chosen`, which may repeat a group."""
    weights = np.zeros(shape)
    for group in chosen:
        weights[group] += 1 / (len(chosen) * shape[1])
    return weights


def _interval(estimate: float, drawn: np.ndarray) -> Interval:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Interval(float(estimate), float(low), float(high), 0.95)


def _component(estimate: float, drawn: np.ndarray) -> Interval:
    positive = drawn[drawn > 0]
    low = max(0.0, float(np.quantile(drawn, 0.025)))
    return Interval(float(estimate), low, float(np.quantile(positive, 0.975)) if len(positive) else 0.0, 0.95)
