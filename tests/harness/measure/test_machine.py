from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness.measure import machine
from harness.measure.machine import OtherPrograms, disturbed


def write(path: Path, user: int, idle: int) -> None:
    path.write_text(f"cpu {user} 0 0 {idle} 50 0 0 0 7 7\ncpu0 1 2 3\n", encoding="ascii")


def test_cores_of_other_programs_are_busy_time_less_our_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ticks = tmp_path / "stat", os.sysconf("SC_CLK_TCK")
    monkeypatch.setattr(machine, "STATISTICS", path)
    clocks = {"perf_counter": iter([100.0, 110.0]), "process_time": iter([3.0, 8.0])}
    for name, values in clocks.items():
        monkeypatch.setattr(time, name, lambda values=values: next(values))
    write(path, 1000 * ticks, 500)
    programs = OtherPrograms()
    write(path, 1025 * ticks, 900)
    assert programs.cores() == pytest.approx((25 - 5) / 10)


def test_without_statistics_nothing_is_claimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "STATISTICS", tmp_path / "missing")
    assert OtherPrograms().cores() is None
    assert not disturbed(None, 8, 8)


@pytest.mark.parametrize(
    ("others", "threads", "cores", "expected"),
    [(0.1, 2, 2, False), (0.5, 2, 2, True), (0.9, 1, 2, False), (1.5, 1, 2, True), (9.0, 1, None, False)],
)
def test_disturbed_if_too_few_cores_are_left(
    others: float, threads: int, cores: int | None, expected: bool
) -> None:
    assert disturbed(others, threads, cores) is expected
