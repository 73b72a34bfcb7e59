"""The remaining time follows the speed of the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.experiment.cell_progress import DONE, keep_done
from harness.experiment.estimate import Estimate
from harness.experiment.remaining import Remaining, without_done


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
    remaining.stage("a", "search", 50)
    remaining.advance("a", 0)
    clock.now += 20
    remaining.advance("a", 25)  # half of the search, 10 s, has taken 20 s: 190 s of work are left
    assert remaining.seconds() == pytest.approx(2 * 190)
    remaining.stage("a", "train", 100)
    remaining.advance("a", 0)
    clock.now += 60
    remaining.advance("a", 50)  # 10 s and 30 s of work in 20 s and 60 s
    assert remaining.seconds() == pytest.approx(2 * 150)
    clock.now += 5
    remaining.end("a")
    assert remaining.seconds() == pytest.approx(2 * 100)
    remaining.end("b")
    assert remaining.seconds() == 0


def test_a_cells_own_speed_corrects_what_is_left_of_it() -> None:
    clock = Clock()
    remaining = Remaining({name: Estimate(training=100) for name in "abc"}, 2, clock)
    for cell in "ab":
        remaining.stage(cell, "train", 100)
        remaining.advance(cell, 0)
    clock.now += 12
    remaining.advance("a", 5)  # 2.4 times as long as estimated: 228 s are left
    remaining.advance("b", 15)  # 0.8 times: 68 s
    # Of both together 24 s instead of 20, so that the cell not begun takes 120 s.
    assert remaining.seconds() == pytest.approx(228)
    remaining.end("a")
    assert remaining.seconds() == pytest.approx(120)
    remaining.end("c")
    assert remaining.seconds() == pytest.approx(68)


def test_the_first_seconds_correct_nothing() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=100)}, 1, clock)
    remaining.stage("a", "train", 100)
    remaining.advance("a", 0)
    clock.now += 1
    remaining.advance("a", 50)
    assert remaining.seconds() == 50


def test_starting_a_worker_and_preparing_a_cell_say_nothing_about_the_speed() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=100), "b": Estimate(training=100)}, 2, clock)
    clock.now += 60  # two workers start and load data
    for cell in "ab":
        remaining.stage(cell, "train", 100)
        remaining.advance(cell, 0)
    clock.now += 10
    for cell in "ab":
        remaining.advance(cell, 10)
    assert remaining.seconds() == pytest.approx(90)


def test_what_an_earlier_run_has_done_says_nothing_about_the_speed() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=100)}, 1, clock)
    remaining.stage("a", "train", 100)
    remaining.advance("a", 80)
    clock.now += 10
    remaining.advance("a", 10)  # 10 s of work in 10 s
    assert remaining.seconds() == pytest.approx(10)


def test_validation_after_an_epoch_is_part_of_the_work_between_reports() -> None:
    clock = Clock()
    remaining = Remaining({"a": Estimate(training=20, validation=80, epochs=2)}, 1, clock)
    remaining.stage("a", "train", 20)
    remaining.advance("a", 0)
    clock.now += 10
    remaining.advance("a", 10)  # the first epoch's steps; its validation is still to come
    assert remaining.seconds() == pytest.approx(90)
    clock.now += 41
    remaining.advance("a", 1)  # 40 s of validation and a step
    assert remaining.seconds() == pytest.approx(49)
    clock.now += 9
    remaining.advance("a", 9)
    assert remaining.seconds() == pytest.approx(40)


def test_a_cell_that_resumes_is_estimated_without_what_it_has_saved(tmp_path: Path) -> None:
    cell = Estimate(search=20, training=60, validation=10, evaluation=20, epochs=2)
    assert without_done(cell, tmp_path) == cell
    keep_done(tmp_path, "search", 0.5)
    assert without_done(cell, tmp_path).total == 100
    keep_done(tmp_path, "train", 0.75)  # with one validation
    left = without_done(cell, tmp_path)
    assert left.total == 110 - 20 - 45 - 5
    remaining = Remaining({"a": left}, 1, Clock())
    assert remaining.seconds() == 40
    remaining.stage("a", "train", 100)
    assert remaining.seconds() == 40  # the cell is being restored
    remaining.advance("a", 70)  # it has seen less than was noted
    assert remaining.seconds() == pytest.approx(110 - 20 - 42 - 5)
    (tmp_path / DONE).write_text("{")
    assert without_done(cell, tmp_path) == cell


def test_the_longest_cell_decides_where_there_are_enough_processes() -> None:
    cells = {"a": Estimate(training=100), "b": Estimate(training=20), "c": Estimate(training=30)}
    assert [Remaining(cells, jobs).seconds() for jobs in (1, 2, 3)] == [150, 100, 100]
