from __future__ import annotations

import pytest

from harness.errors import UserError
from methods.option_checks import at_least, between, fraction, module_size, positive, width_divisor


def test_missing_options_are_accepted() -> None:
    at_least("m", 1, a=None)
    positive("m", a=None)
    module_size("m", a=None)


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


@pytest.mark.parametrize("value", [0, 65_537, 10**14])
def test_a_size_is_one_that_a_module_can_have(value: int) -> None:
    module_size("lora", r=65_536)
    with pytest.raises(UserError, match=rf"^lora: r must be from 1 to 65,536, got {value}\.$"):
        module_size("lora", r=value)


@pytest.mark.parametrize("value", [0, -3, 1e-9, 1e9, float("nan")])
def test_a_width_is_divided_by_what_gives_a_size(value: float) -> None:
    width_divisor("m", reduction_factor=1 / 64)
    with pytest.raises(UserError, match=r"^m: reduction_factor must be from 0\.015625 to 65,536, got "):
        width_divisor("m", reduction_factor=value)


def test_both_ends_of_a_range_are_allowed() -> None:
    between("m", 0, 1, a=0.0, b=1)
    with pytest.raises(UserError, match=r"m: b must be from 0 to 1, got 1\.5"):
        between("m", 0, 1, a=0.0, b=1.5)
