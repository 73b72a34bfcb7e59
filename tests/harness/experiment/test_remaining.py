"""The remaining time follows the speed of the run."""

from __future__ import annotations

import pytest

from harness.experiment.estimate import Estimate
from harness.experiment.remaining import Remaining


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_run_that_takes_twice_as_long_is_corrected_from_its_first_stage() -> None:
    clock = Clock()
    cell = Estimate(search=20, training=60, evaluation=20)
    remaining = Remaining({"a": cell, "b": cell}, 1, clock)
    assert remaining.seconds() == 200
    remaining.begin("a")
    remaining.stage("a", "search", 50)
    remaining.advance("a", 0)
    clock.now += 20
    remaining.advance("a", 25)  # half of the search, 10 s, has taken 20 s: 190 s of work are left
    assert remaining.seconds() == pytest.approx(2 * 190)
    remaining.stage("a", "train", 100)
    clock.now += 60
    remaining.advance("a", 0)
    remaining.advance("a", 50)  # 50 s of work in 80 s
    assert remaining.seconds() == pytest.approx(80 / 50 * 150)
    clock.now += 45
    remaining.end("a")  # 100 s of work in 125 s
    assert remaining.seconds() == pytest.approx(1.25 * 100)
    remaining.begin("b")
    remaining.end("b")
    assert remaining.seconds() == 0


def test_the_first_seconds_correct_nothing() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=100)}, 1, clock)
    remaining.begin("a")
    remaining.stage("a", "train", 100)
    remaining.advance("a", 0)
    clock.now += 1
    remaining.advance("a", 50)
    assert remaining.seconds() == 50


def test_what_an_earlier_run_has_done_says_nothing_about_the_speed() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=100)}, 1, clock)
    remaining.begin("a")
    remaining.stage("a", "train", 100)
    remaining.advance("a", 80)
    clock.now += 10
    remaining.advance("a", 10)  # 10 s of work in 10 s
    assert remaining.seconds() == pytest.approx(10)


def test_the_longest_cell_decides_where_there_are_enough_processes() -> None:
    cells = {"a": Estimate(training=100), "b": Estimate(training=20), "c": Estimate(training=30)}
    assert [Remaining(cells, jobs).seconds() for jobs in (1, 2, 3)] == [150, 100, 100]
