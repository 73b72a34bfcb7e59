"""The bandit against hand-worked figures."""

from __future__ import annotations

import math

import pytest
import torch

from methods.bandit import Bandit, Findings, Update, reward_of, trace_gates


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_gates_move_by_reward_minus_mean_times_slope_of_the_sigmoid() -> None:
    bandit = Bandit(4, 2, seeded())
    bandit.gates = torch.tensor([0.0, 2.0, 0.0, 0.0], dtype=torch.float64)
    p = 1 / (1 + math.exp(-2.0))
    bandit.update([(0, 1), (1, 2), (0, 3)], [1.0, 0.4, 0.1])
    expected = [0.25 * (0.5 - 0.4), 2.0 + p * (1 - p) * (0.5 - 0.1), 0.25 * -0.1, 0.25 * -0.4]
    assert bandit.gates.tolist() == pytest.approx(expected)


def test_a_high_gate_means_skip() -> None:
    bandit = Bandit(5, 2, seeded())
    bandit.gates = torch.tensor([0.1, 3.0, -1.0, 2.0, 0.0], dtype=torch.float64)
    assert bandit.best() == (1, 3)


def test_draws_follow_the_gates_and_distinct_sets_are_distinct() -> None:
    bandit = Bandit(3, 1, seeded())
    bandit.gates = torch.tensor([-50.0, 0.0, -50.0], dtype=torch.float64)
    assert {bandit.draw() for _ in range(50)} == {(1,)}
    fair = Bandit(3, 2, seeded())
    assert sorted(fair.draw_distinct(3)) == [(0, 1), (0, 2), (1, 2)]
    with pytest.raises(ValueError, match="only 3 sets"):
        fair.draw_distinct(4)


def test_exponential_and_standardized_rewards() -> None:
    assert reward_of([0.0, math.log(2)], "exponential") == pytest.approx([1.0, 0.5])
    assert reward_of([2169.0, 2169.0], "exponential") == [0.0, 0.0]  # why the default has no scale
    assert reward_of([2100.0, 2200.0], "standardized") == pytest.approx([1.0, -1.0])
    assert reward_of([5.0, 5.0], "standardized") == [0.0, 0.0]


UPDATES = (
    Update(1, 4, [["a"], ["b"]], [1.0, 2.0], [1.0, -1.0], [0.25, -0.25]),
    Update(1, 9, [["a"], ["c"]], [1.0, 3.0], [1.0, -1.0], [0.5, -0.25]),
    Update(3, 4, [["b"], ["c"]], [1.0, 4.0], [1.0, -1.0], [0.5, 0.0]),
)


def test_a_trace_begins_at_zero_and_marks_the_first_update_of_an_epoch() -> None:
    trace = trace_gates(["a", "b"], UPDATES, ["a"], "skipped")
    assert trace is not None
    assert trace.values == ((0, 0), (0.25, -0.25), (0.5, -0.25), (0.5, 0))
    assert trace.epoch_starts == ((0, 2), (2, 4))
    assert (trace.arms, trace.chosen, trace.outcome) == (("a", "b"), ("a",), "skipped")
    assert trace_gates(["a", "b"], (), ["a"], "skipped") is None


def test_findings_are_restored_from_plain_values() -> None:
    findings = Findings(Bandit(2, 1, seeded()))
    findings.updates += UPDATES
    findings.bandit.gates = torch.tensor([0.5, 0.0], dtype=torch.float64)
    saved = findings.state()
    assert all(isinstance(update, dict) for update in saved["history"])
    resumed = Findings(Bandit(2, 1, seeded()))
    resumed.restore(saved)
    assert resumed.updates == list(UPDATES)
    assert resumed.bandit.gates.tolist() == [0.5, 0.0]
