from __future__ import annotations

import pytest

from harness.errors import UserError
from methods.option_checks import at_least, fraction, positive


def test_missing_options_are_accepted() -> None:
    at_least("m", 1, a=None)
    positive("m", a=None)


@pytest.mark.parametrize("value", [0, -3])
def test_too_small_a_number_names_method_and_option(value: int) -> None:
    with pytest.raises(UserError, match=rf"^lora: r must be at least 1, got {value}\.$"):
        at_least("lora", 1, alpha=5, r=value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_a_positive_number_is_finite_and_above_zero(value: float) -> None:
    with pytest.raises(UserError, match="lora: alpha"):
        positive("lora", alpha=value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_fraction_is_below_one(value: float) -> None:
    fraction("lora", dropout=0.0)
    with pytest.raises(UserError, match="lora: dropout"):
        fraction("lora", dropout=value)
