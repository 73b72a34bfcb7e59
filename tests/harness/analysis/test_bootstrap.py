"""The two-level bootstrap against closed forms, and its coverage for models with a known true value."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from harness.analysis.bootstrap import Draws, Ratios, resample, seed_deviation


def means(scores: np.ndarray, sizes: np.ndarray | None = None) -> Ratios:
    """One ratio of `(S, G)` sums; clusters of one example unless told otherwise."""
    sizes = np.ones(scores.shape[1]) if sizes is None else sizes
    return Ratios(scores[:, None, :], sizes[None, :], np.ones(1))


def normal_model(
    random: np.random.Generator, seeds: int, clusters: int, a: float, b: float, e: float
) -> np.ndarray:
    """Scores `(S, G)` with mean 0 and standard deviations a over seeds, b over clusters, e of the residual."""
    return (
        a * random.standard_normal((seeds, 1))
        + b * random.standard_normal(clusters)
        + e * random.standard_normal((seeds, clusters))
    )


def test_constant_difference_has_a_point_interval_and_the_smallest_p_value() -> None:
    scores = np.random.default_rng(0).random((3, 40))
    (draws,) = resample([means(scores + 0.25).minus(means(scores))], 999)
    interval = draws.interval()
    assert interval.estimate == pytest.approx(0.25)
    assert (interval.low, interval.high) == (pytest.approx(0.25), pytest.approx(0.25))
    assert draws.p_value() == 2 / 1000


def test_no_difference_has_p_value_one() -> None:
    scores = np.random.default_rng(0).random((3, 40))
    (draws,) = resample([means(scores).minus(means(scores))], 999)
    assert draws.p_value() == 1
    assert draws.interval().low == draws.interval().high == 0


def test_p_value_counts_the_smaller_tail() -> None:
    # 2 of 9 resamples at or below 0: 2 · (2 + 1) / (9 + 1).
    draws = Draws(0.5, np.array([-1.0, 0.0, 1, 1, 1, 1, 1, 1, 1]))
    assert draws.p_value() == pytest.approx(0.6)


def test_all_resamples_of_two_clusters() -> None:
    """Sums 3 of 3 and 0 of 1: the mean is 1, 3/4 or 0 with chances 1/4, 1/2, 1/4."""
    ratios = means(np.array([[3.0, 0.0]]), np.array([3.0, 1.0]))
    (draws,) = resample([ratios], 20_000)
    assert draws.estimate == 0.75
    values, counts = np.unique(draws.values, return_counts=True)
    assert values == pytest.approx([0, 0.75, 1])
    assert counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_variance_of_one_seed_is_that_of_the_mean() -> None:
    scores = np.random.default_rng(1).normal(size=(1, 200))
    (draws,) = resample([means(scores)], 20_000)
    assert draws.values.std() == pytest.approx(scores.std() / sqrt(200), rel=0.03)


def test_variance_over_seeds_and_clusters_is_the_analytic_one() -> None:
    """a²/S + b²/G + e²/(S·G) on average over data sets: no part is counted twice."""
    random = np.random.default_rng(2)
    seeds, clusters, a, b, e = 8, 50, 0.3, 1.0, 2.0
    found = []
    for _ in range(200):
        (draws,) = resample([means(normal_model(random, seeds, clusters, a, b, e))], 400)
        found.append(draws.values.var())
    # Student's t with S − 1 degrees has the variance (S − 1) / (S − 3).
    expected = a**2 / seeds * (seeds - 1) / (seeds - 3) + b**2 / clusters + e**2 / (seeds * clusters)
    assert np.mean(found) == pytest.approx(expected, rel=0.1)


def test_deviation_over_seeds_excludes_the_variance_of_examples() -> None:
    random = np.random.default_rng(3)
    squares = [seed_deviation(means(normal_model(random, 5, 30, 1.0, 1.0, 2.0))) ** 2 for _ in range(400)]
    assert np.mean(squares) == pytest.approx(1, rel=0.1)
    # By hand: seed means 1 and 3, clusters that agree exactly: s² = 2 and nothing is left.
    assert seed_deviation(means(np.array([[0.0, 2.0], [2.0, 4.0]]))) == pytest.approx(sqrt(2))


def test_seeds_that_differ_only_by_sampling_of_examples_add_no_variance() -> None:
    # Cluster by cluster one seed wins and loses alike: equal means, no seed effect.
    assert seed_deviation(means(np.array([[0.0, 1.0], [1.0, 0.0]]))) == 0


def test_interval_without_variance_over_examples_is_students_t() -> None:
    # Seeds at 69, 70, 71 on every example: 70 ± 4.303 · 1/√3.
    scores = np.repeat(np.array([[69.0], [70.0], [71.0]]), 20, axis=1)
    (draws,) = resample([means(scores)], 40_000)
    assert draws.interval().high - 70 == pytest.approx(4.303 / sqrt(3), rel=0.06)


@pytest.mark.parametrize(("a", "b", "e"), [(1.0, 0.1, 0.1), (0.0, 1.0, 1.0), (0.1, 0.6, 1.0)])
def test_intervals_of_three_seeds_cover_the_true_value(a: float, b: float, e: float) -> None:
    random = np.random.default_rng(4)
    covered = 0
    for _ in range(300):
        (draws,) = resample([means(normal_model(random, 3, 60, a, b, e))], 500)
        interval = draws.interval()
        covered += interval.low <= 0 <= interval.high
    # Of 300 intervals that hold with 95 %, 3.8 more or fewer are one standard deviation.
    assert 0.915 <= covered / 300 <= 1


def test_true_null_hypothesis_is_rejected_at_most_at_the_nominal_rate() -> None:
    random = np.random.default_rng(5)
    rejected = 0
    for _ in range(300):
        shared = normal_model(random, 1, 80, 0, 1, 0)
        first, second = (means(shared + normal_model(random, 3, 80, 0.1, 0, 1)) for _ in range(2))
        (draws,) = resample([first.minus(second)], 500)
        rejected += draws.p_value() < 0.05
    assert rejected / 300 <= 0.08


def test_a_metric_of_several_ratios_is_their_weighted_sum() -> None:
    numerators = np.array([[[1.0, 0.0], [2.0, 2.0]]])
    denominators = np.array([[1.0, 1.0], [4.0, 4.0]])
    ratios = Ratios(numerators, denominators, np.array([100.0, 50.0]))
    assert ratios.by_seed == pytest.approx([100 * 1 / 2 + 50 * 4 / 8])
    (draws,) = resample([ratios], 5000)
    # The second ratio is the same in both clusters; only the first varies: 0, 1/2 or 1.
    assert np.unique(draws.values) == pytest.approx([25, 75, 125])


def test_a_class_missing_from_a_resample_leaves_that_resample_out() -> None:
    ratios = means(np.array([[1.0, 0.0]]), np.array([1.0, 0.0]))
    (draws,) = resample([ratios], 4000)
    assert len(draws.values) / 4000 == pytest.approx(0.75, abs=0.03)
    assert set(draws.values) == {1.0}


def test_metrics_bootstrapped_together_get_the_same_resamples_as_alone() -> None:
    random = np.random.default_rng(6)
    first, second = means(random.random((1, 30))), means(random.random((1, 30)))
    together = resample([first, second], 500)
    assert np.allclose(together[1].values, resample([second], 500)[0].values)
    assert not np.allclose(together[1].values, resample([second], 500, seed=1)[0].values)


def test_chunk_size_does_not_change_the_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = means(np.random.default_rng(7).random((3, 25)))
    (whole,) = resample([metric], 300)
    monkeypatch.setattr("harness.analysis.bootstrap._ELEMENTS_AT_ONCE", 60)
    (chunked,) = resample([metric], 300)
    assert np.allclose(whole.values, chunked.values)


def test_scores_with_different_seeds_or_examples_are_refused() -> None:
    one = means(np.zeros((2, 5)))
    for other in (means(np.zeros((1, 5))), means(np.zeros((2, 5)), np.full(5, 2.0))):
        with pytest.raises(ValueError, match="same seeds and examples"):
            one.minus(other)
    with pytest.raises(ValueError, match="same examples"):
        resample([one, means(np.zeros((2, 5)), np.full(5, 2.0))])
    with pytest.raises(ValueError, match="numerators"):
        Ratios(np.zeros((1, 1, 3)), np.zeros((1, 4)), np.ones(1))
    assert resample([]) == []
