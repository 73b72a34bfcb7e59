"""The effects of skipped parts, on scores made of known effects."""

from __future__ import annotations

from itertools import combinations

import pytest

from harness.analysis.effects import effects

ONE_STREAM = tuple(f"joint.{i}" for i in range(5))
KNOWN = (2.0, -1.0, 0.5, -2.5, 1.0)  # they add up to 0


def test_known_effects_of_parts_and_neighbours_are_found() -> None:
    sets = list(combinations(ONE_STREAM, 2))
    scores = [
        50
        + sum(KNOWN[ONE_STREAM.index(part)] for part in (one, other))
        - 3 * (ONE_STREAM.index(other) - ONE_STREAM.index(one) == 1)
        for one, other in sets
    ]
    found = effects(sets, scores, ONE_STREAM)
    assert found is not None
    assert found.neighbours is not None
    assert [each.estimate for each in found.parts.values()] == pytest.approx(KNOWN)
    assert found.neighbours.estimate == pytest.approx(-3)
    assert found.neighbours.low == pytest.approx(found.neighbours.high)  # nothing is left to noise
    assert found.explained == pytest.approx(1)


def test_parts_of_two_streams_are_no_neighbours_and_have_effects_of_their_own() -> None:
    parts = ("text.0", "text.1", "text.2", "image.0", "image.1", "image.2")
    own = dict(zip(parts, (1.0, 0.0, -1.0, 2.0, -3.0, 1.0), strict=True))
    sets = [(one, other) for one in parts[:3] for other in parts[3:]]
    found = effects(sets, [own[one] + own[other] for one, other in sets], parts)
    assert found is not None
    assert {part: each.estimate for part, each in found.parts.items()} == pytest.approx(own)
    assert found.neighbours is None  # text.2 and image.0 follow each other in the list only


def test_intervals_are_those_of_a_difference_of_two_means() -> None:
    """One of two parts is skipped: the effects are half the difference, with n − 2 degrees of freedom."""
    sets = [("joint.0",)] * 3 + [("joint.1",)] * 3
    found = effects(sets, [1.0, 2.0, 3.0, 6.0, 5.0, 4.0], ("joint.0", "joint.1"))
    assert found is not None
    first = found.parts["joint.0"]
    # s² = 4 / 4 = 1; standard error of half the difference √(2 / 3) / 2 = 0.408; t(4) = 2.776.
    assert first.estimate == pytest.approx(-1.5)
    assert first.high - first.estimate == pytest.approx(0.408248 * 2.7764, rel=0.01)


def test_too_few_sets_give_no_effects() -> None:
    assert effects(list(combinations(ONE_STREAM, 4)), [1.0, 2.0, 3.0, 4.0, 5.0], ONE_STREAM) is None
