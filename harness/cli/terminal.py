"""Interactive runs: plan, progress and final table."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from rich.text import Text

from harness.config import Request
from harness.errors import UserError
from harness.experiment.adopt import stale_among
from harness.experiment.estimate import estimate_seconds
from harness.experiment.latency import measure_side_by_side
from harness.experiment.plan import Cell, Testbed, build_cells, open_testbeds
from harness.experiment.runner import Reporter, run_cells
from harness.experiment.trackers import TrackingReporter, check_trackers
from harness.experiment.workers import default_jobs, run_side_by_side
from harness.files import disk_errors, write_atomically
from harness.process import Interrupts, prepare_process
from harness.records.record import Record
from harness.records.store import Store
from harness.report.intervals import with_intervals
from harness.report.rendering import Format, print_table, render_all
from harness.report.tables import build_tables

INTERRUPTED = 130
"""Exit status, as of a shell's command that Ctrl-C ended."""


WIDTH_ELSEWHERE = 110
"""Characters a line where there is no terminal to ask."""


FORMATS: dict[Format, str] = {"github": "md", "latex": "tex", "csv": "csv", "html": "html"}


def execute(
    request: Request,
    folder: Path,
    dry_run: bool,
    jobs: int | None = None,
    measure_again: bool = False,
    timeout: float | None = None,
    in_process: bool = False,
    loggers: Sequence[str] = (),
) -> int:
    """Plan, run, measure, tabulate; the exit status (1: some cell failed; 130: interrupted).

    jobs: cells that are run side by side; None decides by the model's size (`pool.default_jobs`).
    measure_again: measure latencies again that are there already.
    timeout: seconds a cell may take; None lets it take what it takes.
    loggers: experiment trackers that are told of epochs and ends (`harness.experiment.trackers`).
    in_process: run the cells in this process, one after the other, where a crash ends the run.
    """
    prepare_process()
    if loggers:
        check_trackers(loggers)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_ELSEWHERE
    store = Store(folder)
    with console.status("loading the backbone") if console.is_terminal else _nothing():
        testbeds = open_testbeds(request)
        cells = build_cells(request, testbeds)
        cells = list({cell.id: cell for cell in cells}.values())
        kept = {cell.id for cell in cells if store.finished(cell.id)}
        to_run = [cell for cell in cells if cell.id not in kept]
        earlier = store.records() if to_run else []
        stale = stale_among(to_run, earlier)
        seconds = dict.fromkeys(kept, 0.0) | {cell.id: estimate_seconds(cell, earlier) for cell in to_run}
    if in_process:
        jobs = 1
    elif jobs is None:
        jobs = default_jobs(request, to_run)
    _print_plan(console, cells, testbeds, kept, stale, seconds, store, jobs)
    if dry_run:
        return 0
    interrupts = Interrupts()
    reporter = TerminalReporter(console, cells, seconds, interrupts)
    interrupted = False
    try:
        with interrupts, reporter:
            told: Reporter = reporter
            if loggers:
                told = TrackingReporter(reporter, loggers, store.root / "logs", reporter.note)
            if in_process:
                run_cells(cells, store, told)
            else:
                run_side_by_side(request, cells, store, told, jobs, timeout or math.inf)
            measure_side_by_side(cells, store, reporter.note, measure_again)
            interrupts.check()
    except KeyboardInterrupt:
        interrupted = True
    records = [store.record(cell.id) for cell in cells if store.finished(cell.id)]
    if records:
        show_tables(records, store, console)
    if interrupted:
        print("harness: interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return INTERRUPTED
    failed = [cell for cell in cells if not store.finished(cell.id)]
    for cell in failed:
        console.print(f"[not finished] {_name(cell)}: see {store.folder(cell.id)}", markup=False)
    return 1 if failed else 0


def show_tables(records: Sequence[Record], store: Store, console: Console) -> None:
    """Print the tables of `records` and save them in every format beside the records.

    A task that was run twice with other options gets a table each.
    """
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols=True)]
    console.print()
    for table in tables:
        print_table(table, console)
    with disk_errors(store.tables):
        store.tables.mkdir(parents=True, exist_ok=True)
    for form, suffix in FORMATS.items():
        write_atomically(store.tables / f"latest.{suffix}", render_all(tables, form).encode())
    console.print(
        f"\nRecords in {store.cells}, this table in {store.tables}/latest.{{{','.join(FORMATS.values())}}}",
        style="dim",
        soft_wrap=True,
    )


def _print_plan(
    console: Console,
    cells: Sequence[Cell],
    testbeds: Sequence[Testbed],
    kept: set[str],
    stale: set[str],
    seconds: dict[str, float],
    store: Store,
    jobs: int,
) -> None:
    for testbed in testbeds:
        splits = testbed.data.splits
        what = "the embedded mini benchmark" if testbed.embedded else str(testbed.data_root)
        counts = ", ".join(f"{len(splits[split])} {split}" for split in ("train", "val", "test"))
        console.print(
            f"{testbed.task.name} on {what}: {counts}; {testbed.training.epochs} epochs of batches of "
            f"{testbed.training.batch_size}, backbone {testbed.backbone_name}, {testbed.request.precision}",
            soft_wrap=True,
            markup=False,
        )
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    for header in ("cell", "method", "task", "seed", "state", "estimate"):
        grid.add_column(header, justify="right" if header in ("seed", "estimate") else "left")
    for cell in cells:
        state = "finished" if cell.id in kept else "stale" if cell.id in stale else "to run"
        if cell.id not in kept and store.checkpoint(cell.id).is_dir():
            state = "to go on"
        when = "–" if cell.id in kept else _duration(seconds[cell.id])
        grid.add_row(cell.id[:8], Text(cell.label), cell.testbed.task.name, str(cell.seed), state, when)
    console.print(grid)
    if stale:
        console.print(
            f"stale: finished by other code and run anew, unless `harness adopt {store.root}` is issued before",
            markup=False,
            soft_wrap=True,
        )
    remaining = max(sum(seconds.values()) / jobs, max(seconds.values()))
    at_once = f", {jobs} at a time" if jobs > 1 else ""
    console.print(
        f"{len(cells) - len(kept)} of {len(cells)} cells to run{at_once}, about {_duration(remaining)}\n",
        markup=False,
    )


class TerminalReporter:
    """Progress bars on a terminal, one line a stage elsewhere. What it is told goes on only without Ctrl-C."""

    def __init__(
        self, console: Console, cells: Sequence[Cell], seconds: dict[str, float], interrupts: Interrupts
    ) -> None:
        self.console = console
        self.interrupts = interrupts
        self.cells = list(cells)
        self.started = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.overall: TaskID | None = None
        self.current: dict[str, TaskID] = {}
        self.done = 0

    def __enter__(self) -> TerminalReporter:
        self.bars.start()
        self.overall = self.bars.add_task("all cells", total=len(self.cells))
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def begin(self, cell: Cell) -> None:
        """A cell begins."""
        self.interrupts.check()

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """A cell has ended."""
        self.done += 1
        if self.overall is not None:
            self.bars.update(self.overall, completed=self.done)
        self._drop_stage(cell)
        if note == "kept":
            return
        score = ""
        if record is not None and record.status == "finished" and record.primary is not None:
            score = f", {cell.testbed.task.primary_metric} {record.primary:.2f}"
            if record.search is not None:
                score += f", {record.search.summary}"
        elif record is not None and record.error:
            score = f": {record.error}"
        self.console.print(f"{self._clock()} {_name(cell)}: {note}{score}", markup=False, soft_wrap=True)

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A stage of a cell begins."""
        self.interrupts.check()
        self._drop_stage(cell)
        self.current[cell.id] = self.bars.add_task(f"{_name(cell)}: {name}", total=total)
        if not self.console.is_terminal:
            self.console.print(f"{self._clock()} {_name(cell)}: {name}", markup=False, soft_wrap=True)

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done."""
        self.interrupts.check()
        if cell.id in self.current:
            self.bars.advance(self.current[cell.id], count)

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """An epoch is over; its figures are in the learning curve."""
        self.interrupts.check()

    def note(self, text: str) -> None:
        """Something that belongs to no cell."""
        self.interrupts.check()
        self.console.print(f"{self._clock()} {text}", markup=False, soft_wrap=True)

    def _drop_stage(self, cell: Cell) -> None:
        if cell.id in self.current:
            self.bars.remove_task(self.current.pop(cell.id))

    def _clock(self) -> str:
        passed = int(time.monotonic() - self.started)
        return f"{passed // 60:3d}:{passed % 60:02d}"


def _name(cell: Cell) -> str:
    return f"{cell.label} on {cell.testbed.task.name}, seed {cell.seed}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _nothing():  # type: ignore[no-untyped-def]
    yield


__all__ = ["TerminalReporter", "UserError", "execute", "show_tables"]
