"""A whole run: from settings to a plan, and from the plan to records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from harness.config import RunSettings
from harness.errors import UserError, counted
from harness.experiment.adopt import stale_among
from harness.experiment.estimate import Estimate, Estimator, duration
from harness.experiment.fitting import check_method
from harness.experiment.latency import measure_side_by_side
from harness.experiment.plan import Cell, Testbed, build_cells, open_testbeds
from harness.experiment.remaining import Remaining, without_done
from harness.experiment.runner import Reporter, dismiss_followers, follow_cells, run_cells
from harness.experiment.slurm.launch import run_on_slurm
from harness.experiment.trackers import TrackingReporter, check_trackers
from harness.experiment.tuning import keep_choices
from harness.experiment.workers import default_jobs, run_side_by_side, tied_to_this_process
from harness.process import REQUESTS, prepare_process
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import build_method
from harness.specs import canonical
from harness.training.fabric import check_devices
from harness.training.ranks import Ranks, started_ranks


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    kept: ids of finished cells.
    stale: ids of cells that were finished by other code with the same configuration.
    estimates: of the time that each cell still takes, by id; 0 for kept cells.
    jobs: cells that run at the same time.
    ranks: this process's place, if srun or torchrun has started all processes that train a cell together.
    in_process: cells run in this process, one after the other.
    """

    settings: RunSettings
    store: Store
    testbeds: Sequence[Testbed]
    cells: Sequence[Cell]
    kept: frozenset[str]
    stale: frozenset[str]
    estimates: Mapping[str, Estimate]
    jobs: int
    in_process: bool
    ranks: Ranks | None = None

    @property
    def to_run(self) -> list[Cell]:
        """Cells that are not finished."""
        return [cell for cell in self.cells if cell.id not in self.kept]

    def remaining(self) -> Remaining:
        """Follows how long the run still takes."""
        return Remaining(self.estimates, self.jobs)

    @property
    def summary(self) -> str:
        """One line: number of cells to run, and about how long they take."""
        if self.settings.slurm.launcher == "slurm":
            return f"{len(self.to_run)} of {counted(len(self.cells), 'cell')} to run as Slurm jobs"
        at_once = f", {self.jobs} at a time" if self.jobs > 1 else ""
        seconds = [estimate.total for estimate in self.estimates.values()]
        remaining = max(sum(seconds) / self.jobs, max(seconds))
        to_run = f"{len(self.to_run)} of {counted(len(self.cells), 'cell')} to run{at_once}"
        return f"{to_run}, about {duration(remaining)}" if self.to_run else to_run


def make_plan(settings: RunSettings) -> Plan:
    """Load the backbone and the data, and find out which cells are finished.

    Raises:
        UserError: settings contradict each other or name something that does not exist.
    """
    prepare_process()
    check_trackers(settings.output.logger)
    device, store = settings.device, Store(settings.output.results)
    tied = tied_to_this_process(settings)
    if tied and device.timeout is not None:
        raise UserError(
            f"timeout: {', '.join(tied)} cannot run in a worker process that could be stopped; "
            "define the method in a module that can be imported."
        )
    if tied and settings.slurm.launcher == "slurm":
        raise UserError(
            f"launcher: {', '.join(tied)} cannot be sent to a Slurm job; define the method in a module that can be "
            "imported."
        )
    check_devices(settings)
    ranks = None if settings.slurm.launcher == "slurm" else started_ranks(device)
    in_process = device.in_process or bool(tied)
    if in_process and ranks is None and device.devices > 1:
        why = f"{', '.join(tied)} cannot be sent to one" if tied else "in_process allows none"
        raise UserError(f"devices: each of {device.devices} devices needs a process, and {why}.")
    testbeds = open_testbeds(settings)
    # Tasks share a backbone, on which each method is checked once.
    specs = {
        (id(testbed.backbone), canonical(spec)): (testbed.backbone, spec)
        for testbed in testbeds
        for spec in testbed.methods or settings.methods
    }
    for backbone, spec in specs.values():
        check_method(backbone, build_method(spec))
    cells = list({cell.id: cell for cell in build_cells(settings, testbeds)}.values())
    kept = frozenset(cell.id for cell in cells if store.finished(cell.id))
    to_run = [cell for cell in cells if cell.id not in kept]
    earlier = store.records() if to_run else []
    stale = frozenset(stale_among(to_run, earlier))
    jobs = 1 if in_process or ranks is not None else device.jobs or default_jobs(settings, to_run)
    jobs = max(1, min(jobs, len(to_run)))
    at_once = jobs * (1 if ranks is not None else device.devices)
    estimate = Estimator(earlier, max(1, torch.get_num_threads() // at_once))
    estimates = dict.fromkeys(kept, Estimate())
    if settings.slurm.launcher == "slurm":  # steps timed here would say nothing about the nodes of the jobs
        estimates |= dict.fromkeys((cell.id for cell in to_run), Estimate(training=math.nan))
    else:
        for cell in to_run:
            estimates[cell.id] = without_done(estimate(cell), store.checkpoint(cell.id))
    return Plan(settings, store, testbeds, cells, kept, stale, estimates, jobs, in_process, ranks)


def carry_out(
    plan: Plan,
    watcher: Reporter,
    on_latency: Callable[[int, int], None] = lambda done, total: None,
    latencies: bool = True,
) -> list[Record]:
    """Run unfinished cells and measure latencies; returns the records of all cells that have one.

    on_latency: called with the number of latency measurements that are done, and their total.
    latencies: False leaves out the measurement of latencies.

    Raises:
        UserError: something the user must fix; finished cells are kept.
        StopRequestedError: SIGTERM asked to stop; unfinished cells are saved.
    """
    settings = plan.settings
    keep_choices(settings, plan.store)
    reporter: Reporter = watcher
    if settings.output.logger:
        folder = plan.store.root / "logs"
        reporter = TrackingReporter(watcher, settings.output.logger, folder, watcher.note)
    if settings.slurm.launcher == "slurm":
        return run_on_slurm(settings, plan.cells, plan.store, reporter, watcher.note)
    if plan.ranks is not None:
        if plan.ranks.rank:
            follow_cells(settings, plan.cells, plan.store, plan.ranks)
            return []
        records = run_cells(plan.cells, plan.store, reporter, plan.ranks)
        if all(record.status == "finished" for record in records):  # else they may be gone
            dismiss_followers(settings, plan.ranks)
    elif plan.in_process:
        records = run_cells(plan.cells, plan.store, reporter)
    else:
        timeout = settings.device.timeout or math.inf
        if workers := min(plan.jobs, len(plan.to_run)):
            watcher.note(f"starting {counted(workers, 'worker')}")
        records = run_side_by_side(settings, plan.cells, plan.store, reporter, plan.jobs, timeout)
    REQUESTS.check()
    if not latencies:
        return records
    measured = measure_side_by_side(
        plan.cells, plan.store, watcher.note, settings.measure.measure_again, on_latency
    )
    newest = {record.cell.id: record for record in [*records, *measured]}
    return [newest[cell.id] for cell in plan.cells if cell.id in newest]
