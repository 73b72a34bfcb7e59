"""Variance components and contrasts, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from harness.analysis import variance
from harness.analysis.variance import (
    best_of_the_others,
    components,
    contrast,
    seeds_to_tell,
    weights_of,
)

SCORES = np.array([[1.0, 3.0], [4.0, 6.0], [9.0, 7.0]])
"""Group means 2, 5 and 8, SS 2 · 18 = 36; seed means 14/3 and 16/3, SS 2/3; left of 6 within groups: 16/3."""


def test_components_worked_by_hand() -> None:
    found = components(SCORES)
    assert (found.groups, found.seeds, found.freedom, found.mean) == (3, 2, 2, 5.0)
    assert found.within.estimate == pytest.approx(8 / 3)
    assert found.between.estimate == pytest.approx((36 / 2 - 8 / 3) / 2)
    assert found.shared.estimate == pytest.approx((2 / 3 - 8 / 3) / 3)
    # χ²(2): 2.5 % point 0.0506, 97.5 % point 7.3778
    assert found.within.low == pytest.approx(16 / 3 / 7.3778, rel=0.02)
    assert found.within.high == pytest.approx(16 / 3 / 0.0506, rel=0.02)
    # F = 18 / (8 / 3) = 6.75 with 2 and 2 degrees of freedom; P(F > x) = 1 / (1 + x)
    assert found.p_value == pytest.approx(1 / 7.75, rel=0.02)
    assert found.between.low == 0.0  # as the F test is not significant at 2.5 % on each side
    assert found.between.high > 100


def test_what_a_seed_does_to_all_groups_is_not_noise_between_them() -> None:
    shifted = components(SCORES + np.array([0.0, 50.0]))
    plain = components(SCORES)
    assert shifted.within.estimate == pytest.approx(plain.within.estimate)
    assert (shifted.p_value, shifted.between.estimate) == pytest.approx(
        (plain.p_value, plain.between.estimate)
    )
    # seed means 14/3 and 166/3: SS 3 · 2 · (76/3)²
    assert shifted.shared.estimate == pytest.approx((6 * (76 / 3) ** 2 - 8 / 3) / 3)


def test_equal_groups_have_no_variance_between_them() -> None:
    found = components(np.array([[1.0, 3.0], [3.0, 1.0], [2.0, 2.0]]))
    assert found.between.estimate == pytest.approx((0 - 4 / 2) / 2)
    assert (found.between.low, found.p_value) == (0.0, 1.0)


def test_intervals_cover_the_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 200 simulated experiments, about 95 % cover the variances: 1 between, 9 of the seeds and 4 within."""
    monkeypatch.setattr(variance, "DRAWS", 20_000)
    random = np.random.default_rng(1)
    between = shared = within = 0
    for _ in range(200):
        scores = random.normal(0, 1, (9, 1)) + random.normal(0, 3, 3) + random.normal(0, 2, (9, 3))
        found = components(scores)
        between += found.between.low <= 1 <= found.between.high
        shared += found.shared.low <= 9 <= found.shared.high
        within += found.within.low <= 4 <= found.within.high
    assert between >= 180
    assert shared >= 180
    assert within >= 180


def test_contrast_has_the_error_of_its_weights() -> None:
    """Mean of the last group less the mean of all: 3, variance 8/3 · (2 · (1/2 − 1/6)² + 4 / 36) = 8/9."""
    weights = weights_of([2], (3, 2)) - weights_of([0, 1, 2], (3, 2))
    found = contrast(SCORES, weights, components(SCORES))
    assert found.estimate == pytest.approx(3.0)
    reach = 4.3027 * (8 / 9) ** 0.5  # t(2), 97.5 % point
    assert (found.low, found.high) == (pytest.approx(3 - reach, rel=0.02), pytest.approx(3 + reach, rel=0.02))


def test_groups_chosen_twice_count_twice() -> None:
    assert weights_of([0, 0, 1], (2, 2)).tolist() == [[1 / 3, 1 / 3], [1 / 6, 1 / 6]]


def test_oracle_does_not_score_on_the_seed_it_chose_with() -> None:
    scores = np.array([[9.0, 0.0], [5.0, 5.0]])
    weights = best_of_the_others(scores)
    assert weights.tolist() == [
        [0.0, 0.5],
        [0.5, 0.0],
    ]  # group 1 by seed 1 scores with seed 0, and the reverse
    assert float((scores * weights).sum()) == 2.5


@pytest.mark.parametrize(("difference", "expected"), [(1.0, 63), (2.0, 16), (100.0, 2)])
def test_number_of_seeds_to_find_a_difference(difference: float, expected: int) -> None:
    """2 · 2.8016² · 4 = 62.8."""
    assert seeds_to_tell(difference, 4.0) == expected


def test_one_seed_has_no_variance() -> None:
    with pytest.raises(ValueError, match="at least two of each"):
        components(np.array([[1.0], [2.0]]))


def test_upper_bound_is_positive_where_groups_differ_less_than_noise() -> None:
    found = components(np.array([[1.0, 3.1], [3.0, 1.0], [2.0, 2.2], [0.0, 4.1]]))
    assert found.between.estimate < 0
    assert found.p_value > 0.975
    assert 0 == found.between.low < found.between.high < found.within.high
