"""Checks of options that several methods share. Each error names the method and the option."""

from __future__ import annotations

from harness.errors import UserError


def at_least(method: str, least: int, **options: int | None) -> None:
    """Check that each option that is given is at least `least`.

    Raises:
        UserError: one is less.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise UserError(f"{method}: {name} must be at least {least}, got {value}.")


def positive(method: str, **options: float | None) -> None:
    """Check that each option that is given is a finite number above 0.

    Raises:
        UserError: one is 0, negative, infinite or not a number.
    """
    for name, value in options.items():
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{method}: {name} must be above 0, got {value}.")


def fraction(method: str, **options: float) -> None:
    """Check that each option is a probability below 1: 0 ≤ value < 1.

    Raises:
        UserError: one is not.
    """
    for name, value in options.items():
        if not 0 <= value < 1:
            raise UserError(f"{method}: {name} must be at least 0 and below 1, got {value}.")
