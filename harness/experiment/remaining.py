"""How long a run still takes: the estimate of its cells, corrected by how fast they have been so far."""

from __future__ import annotations

import json
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
"""Speed this many seconds of work ago counts half as much as now; later in a run, half of all work so far.

The first epoch also decodes images, and other programs come and go.
"""


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
    say nothing about it.

    estimates: of all cells by id. jobs: cells that run at the same time. clock: seconds that only increase.
    """

    def __init__(
        self, estimates: Mapping[str, Estimate], jobs: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._estimates = dict(estimates)
        self._jobs = jobs
        self._clock = clock
        self._running: dict[str, _Running] = {}
        self._total = 0.0  # seconds between reports, of all cells
        self._worked = 0.0  # the same, of which older ones count less
        self._expected = 0.0  # what was estimated for them

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
            seconds = now - running.reported
            self._total += seconds
            kept = 0.5 ** (seconds / max(REMEMBERED_SECONDS, self._total / 2))
            self._worked = kept * self._worked + seconds
            self._expected = (
                kept * self._expected
                + estimate.done(running.stage, running.share)
                - estimate.done(running.stage, before)
            )
        running.reported = now

    def end(self, cell_id: str) -> None:
        """A cell has ended."""
        self._running.pop(cell_id, None)
        self._estimates.pop(cell_id, None)

    def seconds(self) -> float:
        """Seconds until the last cell ends."""
        left = [self._left(cell_id, estimate) for cell_id, estimate in self._estimates.items()]
        trusted = self._worked >= TRUSTED_SECONDS and self._expected > 0
        correction = self._worked / self._expected if trusted else 1.0
        return correction * max(sum(left) / self._jobs, max(left, default=0.0))

    def _left(self, cell_id: str, estimate: Estimate) -> float:
        """Estimated seconds of what is left of a cell."""
        running = self._running.get(cell_id)
        if running is None or running.reported is None:
            return estimate.total
        return estimate.total + estimate.saved - estimate.done(running.stage, running.share)
