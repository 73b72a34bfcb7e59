"""Peak memory of live tensors, in sizes that can be added up by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.measure.live import peak_live_tensors


def mib(count: int) -> Tensor:
    return torch.zeros(count, 1 << 18)


def test_the_peak_is_the_largest_sum_of_what_is_alive_at_once() -> None:
    held = mib(4)

    def run() -> None:
        first = mib(1)
        second = mib(2)
        del first
        third = mib(1)  # 4 + 2 + 1: as much as before
        del second, third
        mib(2)

    found = peak_live_tensors(run, [held], "how")
    assert (found.baseline_mib, found.peak_mib, found.how) == (4, 7, "how")


def test_memory_that_was_freed_long_ago_does_not_count_when_the_peak_comes_late() -> None:
    def run() -> None:
        for _ in range(3):
            mib(2)
        kept = [mib(1), mib(1)]
        kept.append(mib(1))

    assert peak_live_tensors(run, [], "").peak_mib == 3


def test_views_and_results_in_place_count_once() -> None:
    held = mib(3)

    def run() -> None:
        parts = held[:1], held.view(-1), held.add_(1)
        copied = parts[1].clone()
        copied.mul_(2)

    assert peak_live_tensors(run, [held, held[:2]], "").peak_mib == 6
