"""Statistics against figures worked by hand and the printed t table."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from harness.analysis.stats import (
    bootstrap_interval,
    holm,
    mean,
    paired_bootstrap,
    sample_sd,
    t_interval,
    t_quantile,
)


def test_mean_and_sample_deviation_of_four_numbers() -> None:
    # Deviations from 5: −3, −1, 1, 3; squares add up to 20; divided by 3.
    assert mean([2, 4, 6, 8]) == 5
    assert sample_sd([2, 4, 6, 8]) == pytest.approx(sqrt(20 / 3))


def test_one_value_has_no_spread_and_none_no_mean() -> None:
    assert sample_sd([3.0]) is None
    assert t_interval([3.0]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])


@pytest.mark.parametrize(
    ("level", "degrees", "quantile"),
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 9, 2.262),
        (0.95, 30, 2.042),
        (0.99, 5, 4.032),
        (0.90, 10, 1.812),
        (0.95, 10_000, 1.960),
    ],
)
def test_quantiles_are_those_of_the_printed_table(level: float, degrees: int, quantile: float) -> None:
    assert t_quantile(level, degrees) == pytest.approx(quantile, abs=6e-4)


def test_t_interval_of_three_seeds() -> None:
    # Mean 70, sample deviation 1, so 4.303 × 1 / √3 either side.
    interval = t_interval([69.0, 70.0, 71.0])
    assert interval is not None
    assert interval.estimate == 70
    assert interval.high - 70 == pytest.approx(4.3027 / sqrt(3), abs=1e-4)
    assert 70 - interval.low == pytest.approx(interval.high - 70)


def test_equal_scores_have_an_interval_of_no_width() -> None:
    interval = bootstrap_interval([0.5] * 6, "aabbcc", resamples=50)
    assert (interval.low, interval.estimate, interval.high) == (0.5, 0.5, 0.5)


def test_two_groups_give_the_three_means_that_there_can_be() -> None:
    # Groups a (mean 0, 3 examples) and b (mean 1, 1 example): resamples are aa 0, ab and ba 1/4, bb 1,
    # with chances 1/4, 1/2, 1/4.
    scores, groups = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    wide = bootstrap_interval(scores, groups, level=0.6)
    assert (wide.low, wide.estimate, wide.high) == (0.0, 0.25, 1.0)
    narrow = bootstrap_interval(scores, groups, level=0.4)
    assert (narrow.low, narrow.high) == (0.25, 0.25)


def test_examples_of_a_group_are_drawn_together() -> None:
    random = np.random.default_rng(1)
    by_group = random.random(50)
    scores = np.repeat(by_group, 20)
    groups = [index // 20 for index in range(1000)]
    clustered = bootstrap_interval(scores, groups, resamples=2000)
    single = bootstrap_interval(scores, range(1000), resamples=2000)
    # Twenty copies of a score tell no more than one: the interval is √20 times as wide.
    ratio = (clustered.high - clustered.low) / (single.high - single.low)
    assert ratio == pytest.approx(sqrt(20), rel=0.1)
    half = 1.96 * by_group.std() / sqrt(50)
    assert clustered.high - clustered.estimate == pytest.approx(half, rel=0.1)


def test_the_same_seed_gives_the_same_interval_and_another_does_not() -> None:
    scores = np.random.default_rng(0).random(40)
    first, again, other = (bootstrap_interval(scores, range(40), seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_pairing_cancels_what_both_methods_share() -> None:
    shared = np.random.default_rng(0).random(100)
    interval = paired_bootstrap(shared + 0.1, shared, range(100), resamples=200)
    assert interval.low == pytest.approx(0.1)
    assert interval.high == pytest.approx(0.1)


def test_scores_of_other_examples_are_refused() -> None:
    with pytest.raises(ValueError, match="not the same examples"):
        paired_bootstrap([1.0, 0.0], [1.0], "ab")
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval([1.0, 0.0], "a")
    with pytest.raises(ValueError, match="groups"):
        bootstrap_interval([], [])


def test_holms_correction_by_hand() -> None:
    # Ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and none below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
