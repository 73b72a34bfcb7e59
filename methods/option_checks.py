"""Checks of options that several methods share. Each error names the method, the option and its range."""

from __future__ import annotations

from harness.errors import UserError

LARGEST = 2**16
"""Largest hidden size, rank or number of tokens of an inserted module; no published backbone is as wide."""


def at_least(method: str, least: int, **options: int | None) -> None:
    """Check that each option that is given is at least `least`.

    Raises:
        UserError: one is less.
    """
    for name, value in options.items():
        if value is not None and value < least:
            raise UserError(f"{method}: {name} must be at least {least}, got {value}.")


def between(method: str, least: float, most: float, **options: float | None) -> None:
    """Check that each option that is given is a number from `least` to `most`.

    Raises:
        UserError: one is less, more or not a number.
    """
    for name, value in options.items():
        if value is not None and not least <= value <= most:
            raise UserError(f"{method}: {name} must be from {least:,} to {most:,}, got {value}.")


def module_size(method: str, **options: int | None) -> None:
    """Check that each option that is given can be the size of an inserted module: 1 to `LARGEST`.

    Raises:
        UserError: one cannot.
    """
    between(method, 1, LARGEST, **options)


def width_divisor(method: str, **options: float | None) -> None:
    """Check factors by which a width is divided: 1/64 to `LARGEST`.

    Raises:
        UserError: one would give a size that no module can have.
    """
    between(method, 1 / 64, LARGEST, **options)


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
