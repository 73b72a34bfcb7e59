"""Interleaved measurements as groups of pytest-benchmark.

pytest-benchmark times one test after the other, but contestants have to take turns, so that the machine's load affects
all alike. So a group is measured as a whole, and each of its contestants is a test that hands its times over: a clock
moves on by the next of them at every call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

Measured = dict[str, tuple[list[float], dict[str, Any]]]
"""Times in seconds of every round by contestant, and what is kept beside them."""


class ReplayClock:
    """A clock, in seconds, that moves only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = ReplayClock()


@dataclass(frozen=True)
class Group:
    """Contestants that are measured together.

    reference: the contestant that all times are compared with.
    measure: times in seconds of every round, by contestant, and what else is to be kept of it (`bar`: upper limit of
        its time as a multiple of the reference's; `macs`); called once.
    quick: whether the workflow on GitHub measures it.
    """

    name: str
    contestants: tuple[str, ...]
    reference: str
    measure: Callable[[], Mapping[str, tuple[Sequence[float], Mapping[str, Any]]]]
    quick: bool = False
    _found: dict[str, tuple[Sequence[float], Mapping[str, Any]]] = field(default_factory=dict)

    def hand_over(self, contestant: str, benchmark: Any) -> None:
        """Give a contestant's times to pytest-benchmark; measures the group if that has not been done."""
        if not self._found:
            self._found.update(self.measure())
        seconds, kept = self._found[contestant]
        benchmark.group = self.name
        benchmark.extra_info.update({"contestant": contestant, "reference": self.reference, **kept})
        left = iter(seconds)

        def call() -> None:
            CLOCK.now += next(left)

        benchmark.pedantic(call, rounds=len(seconds), iterations=1, warmup_rounds=0)


def in_groups(groups: Sequence[Group]) -> Callable[[Any], Any]:
    """Make a test of `(group, contestant, benchmark)` run for every contestant of every group."""

    def mark(test: Any) -> Any:
        cases = [
            pytest.param(
                group,
                contestant,
                id=f"{group.name}-{contestant}".replace(" ", "_").replace(",", ""),
                marks=[pytest.mark.quick] if group.quick else [],
            )
            for group in groups
            for contestant in group.contestants
        ]
        test = pytest.mark.parametrize(("group", "contestant"), cases)(test)
        test = pytest.mark.benchmark(timer=CLOCK)(test)
        return pytest.mark.timeout(3600)(test)

    return mark
