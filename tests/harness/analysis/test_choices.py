"""What choices are worth: scores, ranks, gains and regrets, worked by hand."""

from __future__ import annotations

import pytest

from harness.analysis.choices import audit, seeds_needed, verdict

A, B, C, D = ("joint.0",), ("joint.1",), ("joint.2",), ("joint.3",)
SCORES = {A: [1.0, 3.0], B: [4.0, 6.0], C: [9.0, 7.0], D: [5.0, 5.5]}


def test_choosers_are_compared_with_the_average_set_and_the_oracle() -> None:
    found = audit(SCORES, [A, B, C], {"das": [C, B], "last": [D, D]})
    assert found.sets == (C, D, B, A)
    assert found.components.mean == 5.0  # D was trained only because it was chosen
    das, last, average, oracle = found.choosers
    assert (das.label, das.score, das.rank) == ("das", 6.5, 2.0)
    assert (last.score, last.rank) == (5.25, 2.0)
    assert das.gain.estimate == pytest.approx(1.5)
    assert oracle.score == 8.0  # C is best with either seed
    assert das.regret is not None
    assert average.regret is not None
    assert [das.regret.estimate, average.regret.estimate] == pytest.approx([1.5, 3.0])
    assert (oracle.regret, oracle.rank, average.gain.estimate) == (None, None, 0.0)


def test_direction_of_a_metric_turns_gains_and_ranks() -> None:
    found = audit(SCORES, [A, B, C], {"das": [A, A]}, higher_is_better=False)
    assert found.sets == (A, B, D, C)
    (das, *_, oracle) = found.choosers
    assert das.regret is not None
    assert [das.rank, das.gain.estimate, das.regret.estimate] == pytest.approx([1.0, 3.0, 0.0])
    assert oracle.score == 2.0


def test_verdict_says_whether_the_choice_matters() -> None:
    noise = audit({A: [1.0, 3.0], B: [3.0, 1.0], C: [2.0, 2.0]}, [A, B, C], {})
    assert verdict(noise).startswith(
        "As far as 3 sets × 2 seeds can tell, the choice does not matter after retraining: standard deviation between "
        "sets 0.0 points"
    )
    clear = audit({A: [1.0, 1.1], B: [9.0, 9.1], C: [20.0, 20.1]}, [A, B, C], {})
    assert clear.matters
    assert verdict(clear).startswith("The choice matters after retraining (3 sets × 2 seeds)")


def test_seeds_needed_are_given_for_one_point_and_for_a_typical_difference() -> None:
    found = audit(SCORES, [A, B, C], {})  # variances 23/3 between and 8/3 within
    assert list(seeds_needed(found).values()) == [42, 3]
    assert list(seeds_needed(found)) == pytest.approx([1.0, (46 / 3) ** 0.5])
    equal = audit({A: [1.0, 3.0], B: [3.0, 1.0]}, [A, B], {})
    assert list(seeds_needed(equal)) == [1.0]
