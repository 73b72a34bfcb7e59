"""Batches are made ahead by another thread, in order, and errors arrive where batches are used."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

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


def test_items_are_made_with_one_thread_and_all_others_keep_theirs() -> None:
    def source() -> Generator[int, None, None]:
        while True:
            started.wait()
            yield torch.get_num_threads()

    def elsewhere() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(torch.get_num_threads).result()

    started = threading.Event()
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        items = ahead(source(), 2)
        threading.Timer(0.2, started.set).start()  # by then the caller's number has been restored
        assert [next(items), torch.get_num_threads(), elsewhere()] == [1, 3, 3]
        items.close()
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
