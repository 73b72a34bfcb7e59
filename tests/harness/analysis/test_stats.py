"""Statistics against hand-worked figures."""

from __future__ import annotations

from math import sqrt

import pytest

from harness.analysis.stats import holm, mean, sample_sd


def test_mean_and_sample_deviation_of_four_numbers() -> None:
    # Deviations from 5: −3, −1, 1, 3; squares add up to 20; divided by 3.
    assert mean([2, 4, 6, 8]) == 5
    assert sample_sd([2, 4, 6, 8]) == pytest.approx(sqrt(20 / 3))


def test_one_value_has_no_spread_and_none_no_mean() -> None:
    assert sample_sd([3.0]) is None
    with pytest.raises(ValueError, match="no values"):
        mean([])


def test_holms_correction_by_hand() -> None:
    # Ascending 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and none below the one before.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
