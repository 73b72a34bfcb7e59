"""How long a run still takes: the estimate of its cells, corrected by how fast they have been so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.experiment.estimate import Estimate

TRUSTED_SECONDS = 5.0
"""Seconds of work after which the speed so far corrects the estimate."""


@dataclass
class _Running:
    """A cell that has begun.

    done, resumed: share of the current stage, and of it what an earlier run had done (None: not known yet).
    saved: estimated seconds of all that an earlier run had done.
    """

    began: float
    stage: str = ""
    total: int = 0
    done: float = 0.0
    resumed: float | None = None
    saved: float = 0.0


class Remaining:
    """Follows the progress of a run's cells.

    estimates: of all cells by id. jobs: cells that run at the same time. clock: seconds that only increase.
    """

    def __init__(
        self, estimates: Mapping[str, Estimate], jobs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._estimates = dict(estimates)
        self._jobs = jobs
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._worked = 0.0  # seconds of finished cells
        self._finished = 0.0  # their estimates

    def begin(self, cell_id: str) -> None:
        """A cell begins."""
        self._running[cell_id] = _Running(self._clock())

    def stage(self, cell_id: str, name: str, total: int) -> None:
        """A stage of `total` examples begins."""
        running = self._running.setdefault(cell_id, _Running(self._clock()))
        running.stage, running.total, running.done, running.resumed = name, total, 0.0, None

    def advance(self, cell_id: str, count: int) -> None:
        """`count` more examples of the stage are done; the first report may be what an earlier run did."""
        running = self._running.get(cell_id)
        if running is None or not running.total:
            return
        running.done = min(1.0, running.done + count / running.total)
        if running.resumed is None:
            running.resumed = running.done
            running.saved += running.done * self._length(cell_id, running.stage)

    def end(self, cell_id: str) -> None:
        """A cell has ended."""
        running = self._running.pop(cell_id, None)
        estimate = self._estimates.pop(cell_id, Estimate())
        if running is not None:
            self._worked += self._clock() - running.began
            self._finished += max(0.0, estimate.total - running.saved)

    def seconds(self) -> float:
        """Seconds until the last cell ends."""
        worked, expected = self._worked, self._finished
        left: list[float] = []
        for cell_id, estimate in self._estimates.items():
            done = 0.0
            if (running := self._running.get(cell_id)) is not None:
                done = self._done(cell_id, running)
                worked += self._clock() - running.began
                expected += max(0.0, done - running.saved)
            left.append(max(0.0, estimate.total - done))
        correction = worked / expected if worked >= TRUSTED_SECONDS and expected > 0 else 1.0
        return correction * max(sum(left) / self._jobs, max(left, default=0.0))

    def _done(self, cell_id: str, running: _Running) -> float:
        """Estimated seconds of what is done of a cell."""
        estimate = self._estimates.get(cell_id, Estimate())
        before = {
            "search": 0.0,
            "train": estimate.search,
            "predict val": estimate.search + estimate.training,
            "predict test": estimate.search + estimate.training + estimate.evaluation / 2,
        }
        return before.get(running.stage, 0.0) + running.done * self._length(cell_id, running.stage)

    def _length(self, cell_id: str, stage: str) -> float:
        """Estimated seconds of a stage."""
        estimate = self._estimates.get(cell_id, Estimate())
        half = estimate.evaluation / 2
        lengths = {
            "search": estimate.search,
            "train": estimate.training,
            "predict val": half,
            "predict test": half,
        }
        return lengths.get(stage, 0.0)
