"""A run from its settings to its records: what is planned, and how it is carried out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.adopt import stale_among
from harness.experiment.estimate import estimate_seconds
from harness.experiment.latency import measure_side_by_side
from harness.experiment.plan import Cell, Testbed, build_cells, open_testbeds
from harness.experiment.runner import Reporter, run_cells
from harness.experiment.trackers import TrackingReporter, check_trackers
from harness.experiment.workers import default_jobs, run_side_by_side, tied_to_this_process
from harness.process import prepare_process
from harness.records.record import Record
from harness.records.store import Store


class Watcher(Reporter, Protocol):
    """A reporter that is also told of what belongs to no cell."""

    def note(self, text: str) -> None:
        """One line for a person."""


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    kept: ids of cells that are finished already.
    stale: ids of cells that other code has finished with the same configuration.
    seconds: estimate for each cell by its id, 0 for what is kept.
    jobs: cells that run side by side.
    in_process: they run in this process, one after the other.
    """

    settings: RunSettings
    store: Store
    testbeds: Sequence[Testbed]
    cells: Sequence[Cell]
    kept: frozenset[str]
    stale: frozenset[str]
    seconds: Mapping[str, float]
    jobs: int
    in_process: bool

    @property
    def to_run(self) -> list[Cell]:
        """Cells that are not finished."""
        return [cell for cell in self.cells if cell.id not in self.kept]

    @property
    def summary(self) -> str:
        """One line: how many cells are to run, and about how long that takes."""
        at_once = f", {self.jobs} at a time" if self.jobs > 1 else ""
        remaining = max(sum(self.seconds.values()) / self.jobs, max(self.seconds.values()))
        return f"{len(self.to_run)} of {len(self.cells)} cells to run{at_once}, about {duration(remaining)}"


def duration(seconds: float) -> str:
    """`45 s`, `20 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make_plan(settings: RunSettings) -> Plan:
    """Load the backbone and the data, and see what is finished.

    Raises:
        UserError: something in the settings that does not go together or is not there.
    """
    prepare_process()
    check_trackers(settings.output.logger)
    device, store = settings.device, Store(settings.output.results)
    tied = tied_to_this_process(settings)
    if tied and device.timeout is not None:
        raise UserError(
            f"timeout: {', '.join(tied)} cannot run in a process of its own, which could be ended; "
            "define the method in a module that can be imported."
        )
    testbeds = open_testbeds(settings)
    cells = list({cell.id: cell for cell in build_cells(settings, testbeds)}.values())
    kept = frozenset(cell.id for cell in cells if store.finished(cell.id))
    to_run = [cell for cell in cells if cell.id not in kept]
    earlier = store.records() if to_run else []
    stale = frozenset(stale_among(to_run, earlier))
    seconds = dict.fromkeys(kept, 0.0) | {cell.id: estimate_seconds(cell, earlier) for cell in to_run}
    in_process = device.in_process or bool(tied)
    jobs = 1 if in_process else device.jobs or default_jobs(settings, to_run)
    return Plan(settings, store, testbeds, cells, kept, stale, seconds, jobs, in_process)


def carry_out(plan: Plan, watcher: Watcher) -> list[Record]:
    """Run what is not finished and measure latencies; returns the records of all cells that have one.

    Raises:
        UserError: something the user has to mend; what was finished before is kept.
    """
    settings = plan.settings
    reporter: Reporter = watcher
    if settings.output.logger:
        folder = plan.store.root / "logs"
        reporter = TrackingReporter(watcher, settings.output.logger, folder, watcher.note)
    if plan.in_process:
        records = run_cells(plan.cells, plan.store, reporter)
    else:
        timeout = settings.device.timeout or math.inf
        records = run_side_by_side(settings, plan.cells, plan.store, reporter, plan.jobs, timeout)
    measured = measure_side_by_side(plan.cells, plan.store, watcher.note, settings.measure.measure_again)
    newest = {record.cell.id: record for record in [*records, *measured]}
    return [newest[cell.id] for cell in plan.cells if cell.id in newest]
