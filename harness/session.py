"""A run as a person sees it on a terminal: the plan, progress with the time left, the table."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table as Grid
from rich.text import Text

from harness.allocator import keep_freed_memory
from harness.errors import UserError
from harness.estimate import estimate_seconds
from harness.plan import Cell, Request, Workplace, build_cells, build_workplace
from harness.record import Record
from harness.registry import resolve_backbone
from harness.runner import measure_side_by_side, run_cells
from harness.store import Store
from harness.tables import Format, build_tables, print_table, render_all
from tasks.images import ImageCache

FORMATS: dict[Format, str] = {"github": "md", "latex": "tex", "csv": "csv", "html": "html"}


def execute(request: Request, folder: Path, dry_run: bool) -> int:
    """Plan, run, measure, tabulate; the exit status (1: some cell failed)."""
    keep_freed_memory()
    _quieten()
    console = Console(highlight=False)
    store = Store(folder)
    with console.status("loading the backbone") if console.is_terminal else _nothing():
        backbone = resolve_backbone(request.backbone)(request.backbone_options)
        images = ImageCache(backbone.processor, request.image_budget_mib)
        workplaces = [build_workplace(request, spec, backbone, images) for spec in request.tasks]
        cells = build_cells(request, workplaces)
        cells = list({cell.id: cell for cell in cells}.values())
        kept = {cell.id for cell in cells if store.finished(cell.id)}
        seconds = {cell.id: 0.0 if cell.id in kept else estimate_seconds(cell, store) for cell in cells}
    _print_plan(console, cells, workplaces, kept, seconds, store)
    if dry_run:
        return 0
    reporter = TerminalReporter(console, cells, seconds)
    interrupted = False
    try:
        with reporter:
            records = run_cells(cells, store, reporter)
            measure_side_by_side(cells, store, reporter.note)
    except KeyboardInterrupt:
        interrupted = True
    records = [store.record(cell.id) for cell in cells if store.finished(cell.id)]
    if records:
        show_tables(records, store, console)
    if interrupted:
        raise KeyboardInterrupt
    failed = [cell for cell in cells if not store.finished(cell.id)]
    for cell in failed:
        console.print(f"[not finished] {_name(cell)}: see {store.folder(cell.id)}", markup=False)
    return 1 if failed else 0


def show_tables(records: Sequence[Record], store: Store, console: Console) -> None:
    """Print the tables of `records` and save them in every format beside the records."""
    tables = build_tables(records)
    console.print()
    for table in tables:
        print_table(table, console)
    store.tables.mkdir(parents=True, exist_ok=True)
    for form, suffix in FORMATS.items():
        (store.tables / f"latest.{suffix}").write_text(render_all(tables, form), encoding="utf-8")
    console.print(
        f"\nRecords in {store.cells}, this table in {store.tables}/latest.{{{','.join(FORMATS.values())}}}",
        style="dim",
        soft_wrap=True,
    )


def _print_plan(
    console: Console,
    cells: Sequence[Cell],
    workplaces: Sequence[Workplace],
    kept: set[str],
    seconds: dict[str, float],
    store: Store,
) -> None:
    for workplace in workplaces:
        splits = workplace.data.splits
        what = "the embedded mini benchmark" if workplace.embedded else str(workplace.data_root)
        counts = ", ".join(f"{len(splits[split])} {split}" for split in ("train", "val", "test"))
        console.print(
            f"{workplace.task.name} on {what}: {counts}; {workplace.training.epochs} epochs of batches of "
            f"{workplace.training.batch_size}, backbone {workplace.backbone_name}, {workplace.request.precision}",
            soft_wrap=True,
            markup=False,
        )
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    for header in ("cell", "method", "task", "seed", "state", "estimate"):
        grid.add_column(header, justify="right" if header in ("seed", "estimate") else "left")
    for cell in cells:
        state = "finished" if cell.id in kept else "to run"
        if cell.id not in kept and store.checkpoint(cell.id).is_dir():
            state = "to go on"
        when = "–" if cell.id in kept else _duration(seconds[cell.id])
        grid.add_row(cell.id[:8], Text(cell.label), cell.workplace.task.name, str(cell.seed), state, when)
    console.print(grid)
    remaining = sum(seconds.values())
    console.print(
        f"{len(cells) - len(kept)} of {len(cells)} cells to run, about {_duration(remaining)}\n", markup=False
    )


class TerminalReporter:
    """Progress bars on a terminal, one line a stage elsewhere."""

    def __init__(self, console: Console, cells: Sequence[Cell], seconds: dict[str, float]) -> None:
        self.console = console
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
        self.current: TaskID | None = None
        self.name = ""
        self.done = 0

    def __enter__(self) -> TerminalReporter:
        self.bars.start()
        self.overall = self.bars.add_task("all cells", total=len(self.cells))
        return self

    def __exit__(self, *exception: object) -> None:
        self.bars.stop()

    def begin(self, cell: Cell) -> None:
        """A cell begins."""
        self.name = _name(cell)

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """A cell has ended."""
        self.done += 1
        if self.overall is not None:
            self.bars.update(self.overall, completed=self.done)
        self._drop_stage()
        if note == "kept":
            return
        score = ""
        if record is not None and record.status == "finished" and record.primary is not None:
            score = f", {cell.workplace.task.primary_metric} {record.primary:.2f}"
            if record.search is not None:
                skipped = record.search.decision.get("skipped")
                score += f", skipped {', '.join(map(str, skipped))}" if isinstance(skipped, list) else ""
        elif record is not None and record.error:
            score = f": {record.error}"
        self.console.print(f"{self._clock()} {_name(cell)}: {note}{score}", markup=False, soft_wrap=True)

    def stage(self, name: str, total: int) -> None:
        """A stage of a cell begins."""
        self._drop_stage()
        self.current = self.bars.add_task(f"{self.name}: {name}", total=total)
        if not self.console.is_terminal:
            self.console.print(f"{self._clock()} {self.name}: {name}", markup=False, soft_wrap=True)

    def advance(self, count: int) -> None:
        """Examples are done."""
        if self.current is not None:
            self.bars.advance(self.current, count)

    def note(self, text: str) -> None:
        """Something that belongs to no cell."""
        self._drop_stage()
        self.console.print(f"{self._clock()} {text}", markup=False, soft_wrap=True)

    def _drop_stage(self) -> None:
        if self.current is not None:
            self.bars.remove_task(self.current)
            self.current = None

    def _clock(self) -> str:
        passed = int(time.monotonic() - self.started)
        return f"{passed // 60:3d}:{passed % 60:02d}"


def _name(cell: Cell) -> str:
    return f"{cell.label} on {cell.workplace.task.name}, seed {cell.seed}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _quieten() -> None:
    """What libraries say to their own users is not for ours."""
    import logging

    if not sys.warnoptions:
        warnings.filterwarnings("ignore", module="lightning_fabric")
    for name in ("lightning_fabric", "lightning_fabric.utilities.seed", "transformers", "adapters"):
        logging.getLogger(name).setLevel(logging.ERROR)


@contextmanager
def _nothing():  # type: ignore[no-untyped-def]
    yield


__all__ = ["TerminalReporter", "UserError", "execute", "show_tables"]
