"""Progress of a run: one bar for all of it, lines without a terminal."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from harness.experiment.plan import Cell
from harness.experiment.progress import ProgressReporter
from harness.experiment.remaining import Remaining
from harness.process import Interrupts


class Left(Remaining):
    """Says how many seconds are left, as the test sets them."""

    def __init__(self, seconds: float) -> None:
        super().__init__({}, 1)
        self.left = seconds

    def seconds(self) -> float:
        return self.left


def cell(name: str) -> Cell:
    task = SimpleNamespace(name="vqa", primary_metric="accuracy")
    return cast(Cell, SimpleNamespace(id=name, label=name, seed=0, testbed=SimpleNamespace(task=task)))


def reporter(terminal: bool, left: Left) -> tuple[ProgressReporter, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=terminal, color_system=None)
    return ProgressReporter(console, [cell("a"), cell("b")], Interrupts(), remaining=left), out


def state(found: ProgressReporter, name: str) -> Any:
    return next(task for task in found.bars.tasks if task.description == name)


def test_time_left_is_shown_from_the_start_and_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Left(120.0)
    bars, _ = reporter(True, left)
    with bars:
        assert state(bars, "2 cells").fields["state"] == "0 of 2 done, about 2 min left"
        bars.begin(cell("a"))
        bars.stage(cell("a"), "train", 400)
        bars.advance(cell("a"), 100)
        assert state(bars, "a on vqa, seed 0: train").fields["state"] == "100/400"
        left.left = 30.0
        monkeypatch.setattr(bars, "started", bars.started - 10)
        bars.end(cell("a"), None, "finished")
        overall = state(bars, "2 cells")
        assert overall.fields["state"] == "1 of 2 done, about 30 s left"
        assert overall.completed == pytest.approx(10 / 40, abs=0.05)
        left.left = 0.0
        bars.end(cell("b"), None, "kept")
        assert state(bars, "2 cells").fields["state"] == "2 of 2 done"
        assert state(bars, "2 cells").completed == 1.0


def test_latency_has_a_bar() -> None:
    bars, _ = reporter(True, Left(0.0))
    with bars:
        for done in range(3):
            bars.latency(done, 4)
        assert state(bars, "latency").fields["state"] == "2/4"


def test_without_a_terminal_there_are_lines() -> None:
    lines, out = reporter(False, Left(90.0))
    with lines:
        lines.stage(cell("a"), "train", 400)
        lines.latency(1, 2)
        lines.end(cell("a"), None, "finished")
    assert [line.split(" ", 3)[-1] for line in out.getvalue().splitlines() if line.strip()] == [
        "a on vqa, seed 0: train",
        "a on vqa, seed 0: finished",
    ]
