"""How long a run still takes: the estimate of its cells, corrected by how fast they have been so far."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from harness.experiment.cell_progress import DONE
from harness.experiment.estimate import Estimate

TRUSTED_SECONDS = 5.0
"""Seconds of work after which the speed so far corrects the estimate."""


def without_done(estimate: Estimate, scratch: Path) -> Estimate:
    """The estimate of a cell less what an interrupted run has saved of it."""
    try:
        noted = json.loads((scratch / DONE).read_text())
        saved = estimate.done(noted["stage"], min(1.0, max(0.0, float(noted["share"]))))
    except (OSError, ValueError, KeyError, TypeError):  # nothing is saved, or not yet
        return estimate
    return replace(estimate, saved=saved)


REMEMBERED_SECONDS = 30.0
"""Speed this many seconds ago counts half as much as now; later in a run, half of the time so far.

The first epoch also decodes images, and other programs come and go.
"""


@dataclass
class _Pace:
    """How long work takes, compared with its estimate.

    worked: seconds of work. expected: what was estimated for it. Both count what is long ago less.
    """

    worked: float = 0.0
    expected: float = 0.0
    began: float = math.inf
    last: float = math.inf

    def add(self, start: float, end: float, expected: float) -> None:
        """Work from one time to another, and the seconds that were estimated for it."""
        self.began = min(self.began, start)
        since = max(0.0, end - min(self.last, end))
        kept = 0.5 ** (since / max(REMEMBERED_SECONDS, (end - self.began) / 2))
        self.last = end
        self.worked = kept * self.worked + end - start
        self.expected = kept * self.expected + expected

    @property
    def correction(self) -> float | None:
        """Factor for estimates of such work; None: not known yet."""
        return self.worked / self.expected if self.worked >= TRUSTED_SECONDS and self.expected > 0 else None


@dataclass
class _Running:
    """The stage that a cell is in. share: of its examples. reported: when it was last known; None: not yet."""

    stage: str = ""
    total: int = 0
    share: float = 0.0
    reported: float | None = None


class Remaining:
    """Follows the progress of a run's cells.

    Speed is measured between the reports of a stage. Starting workers, loading data, and what an earlier run has done
    say nothing about it. A cell's own speed corrects what is left of it, the speed of all cells those not yet begun.

    estimates: of all cells by id. jobs: cells that run at the same time. clock: seconds that only increase.
    """

    def __init__(
        self, estimates: Mapping[str, Estimate], jobs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._estimates = dict(estimates)
        self._jobs = jobs
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._pace = _Pace()  # of all cells together
        self._own: dict[str, _Pace] = {}

    def stage(self, cell_id: str, name: str, total: int) -> None:
        """A stage of `total` examples begins."""
        self._running[cell_id] = _Running(name, total)

    def advance(self, cell_id: str, count: int) -> None:
        """`count` more examples of the stage are done; the first report may be what an earlier run did."""
        running, estimate = self._running.get(cell_id), self._estimates.get(cell_id)
        if running is None or estimate is None or not running.total:
            return
        before, now = running.share, self._clock()
        running.share = min(1.0, before + count / running.total)
        if running.reported is not None:
            expected = estimate.done(running.stage, running.share) - estimate.done(running.stage, before)
            for pace in (self._pace, self._own.setdefault(cell_id, _Pace())):
                pace.add(running.reported, now, expected)
        running.reported = now

    def end(self, cell_id: str) -> None:
        """A cell has ended."""
        self._running.pop(cell_id, None)
        self._estimates.pop(cell_id, None)

    def seconds(self) -> float:
        """Seconds until the last cell ends."""
        left = [self._left(cell_id, estimate) for cell_id, estimate in self._estimates.items()]
        return max(sum(left) / self._jobs, max(left, default=0.0))

    def _left(self, cell_id: str, estimate: Estimate) -> float:
        """Seconds of what is left of a cell."""
        own = self._own.get(cell_id, self._pace).correction
        correction = own or self._pace.correction or 1.0
        running = self._running.get(cell_id)
        if running is None or running.reported is None:
            return correction * estimate.total
        return correction * (estimate.total + estimate.saved - estimate.done(running.stage, running.share))
