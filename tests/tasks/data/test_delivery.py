"""Batches are made ahead by another thread, in order, and errors arrive where batches are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest

from tasks.data.delivery import ahead


def counted(stop: int, made: list[int], closed: list[str]) -> Generator[int, None, None]:
    try:
        for number in range(stop):
            made.append(number)
            yield number
    finally:
        closed.append(threading.current_thread().name)


def test_items_come_in_order_from_another_thread() -> None:
    made: list[int] = []
    closed: list[str] = []
    assert list(ahead(counted(50, made, closed), 2)) == list(range(50))
    assert closed == ["batches"]


def test_at_most_count_items_are_made_ahead() -> None:
    made: list[int] = []
    items = ahead(counted(50, made, []), 2)
    next(items)
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2, 3]  # one taken, two ready, one waiting for its place
    items.close()
    assert threading.active_count() == 1 or all(t.name != "batches" for t in threading.enumerate())


def test_stopping_early_closes_the_source() -> None:
    closed: list[str] = []
    items = ahead(counted(50, [], closed), 2)
    assert next(items) == 0
    items.close()
    assert closed == ["batches"]


def test_error_is_raised_after_the_earlier_items() -> None:
    def failing() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    items = ahead(failing(), 2)
    assert next(items) == 1
    with pytest.raises(ValueError, match="broken"):
        next(items)
