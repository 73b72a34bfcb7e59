"""Run the cells of a plan one after the other and store their results."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from safetensors.torch import save

from harness.config import RunSettings
from harness.errors import UserError, one_line
from harness.experiment.cell import run_cell
from harness.experiment.cell_progress import Progress
from harness.experiment.plan import Cell
from harness.experiment.to_record import failed_record, finished_record, search_history
from harness.files import write_atomically
from harness.process import REQUESTS, StopRequestedError
from harness.records.record import Record
from harness.records.store import CellBusyError, Store
from harness.training.fabric import make_fabric
from harness.training.ranks import Ranks, broadcast

TRACEBACK = "traceback.txt"
"""In a failed cell's folder."""


class Reporter(Protocol):
    """Receives the progress of a run; several cells may run at once."""

    def begin(self, cell: Cell) -> None:
        """A cell begins."""

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A new stage of the cell, of `total` examples, begins."""

    def advance(self, cell: Cell, count: int) -> None:
        """`count` more examples of the cell's stage are done."""

    def epoch(self, cell: Cell, figures: Mapping[str, float]) -> None:
        """An epoch of the cell's training is over: its row of the learning curve."""

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """A cell has ended (`note`: finished, kept, failed, busy)."""

    def note(self, text: str) -> None:
        """One line to show to the user."""


@dataclass(frozen=True)
class _ProgressOf(Progress):
    """Passes a cell's progress on to the reporter of all cells."""

    cell: Cell
    reporter: Reporter

    def stage(self, name: str, total: int) -> None:
        """A new stage begins."""
        self.reporter.stage(self.cell, name, total)

    def advance(self, count: int) -> None:
        """Examples are done."""
        self.reporter.advance(self.cell, count)

    def epoch(self, figures: Mapping[str, float]) -> None:
        """An epoch is over."""
        self.reporter.epoch(self.cell, figures)

    def note(self, text: str) -> None:
        """One line to show to the user."""
        self.reporter.note(text)


def run_cells(
    cells: Sequence[Cell], store: Store, reporter: Reporter, ranks: Ranks | None = None
) -> list[Record]:
    """Run unfinished cells; if one crashes, the others still run.

    ranks: other processes take part in every cell (`follow_cells`), and this one is rank 0. After a crash none of them
        can be relied on, and the rest is left.

    Returns the records of all cells that have one, in the order of `cells`.

    Raises:
        UserError: something the user must fix; finished cells are kept.
        StopRequestedError: SIGTERM asked to stop; the current cell is saved and has no record.
    """
    records: dict[str, Record] = {}
    with REQUESTS.listening():
        for cell in cells:
            reporter.begin(cell)
            try:
                with store.begin(cell.id):
                    if store.finished(cell.id):
                        record, note = store.record(cell.id), "kept"
                    else:
                        record, note = _run(cell, store, reporter, ranks)
            except CellBusyError as error:
                reporter.end(cell, None, f"left out: {error}")
                continue
            records[cell.id] = record
            reporter.end(cell, record, note)
            REQUESTS.check()
            if ranks is not None and note == "failed":
                break
    return list(records.values())


def follow_cells(settings: RunSettings, cells: Sequence[Cell], store: Store, ranks: Ranks) -> None:
    """Take part in the cells that rank 0 runs, as another rank, until `dismiss_followers` is called there."""
    fabric = make_fabric(settings, ranks)
    by_id = {cell.id: cell for cell in cells}
    with REQUESTS.listening():
        while cell_id := broadcast(fabric, ""):
            run_cell(by_id[cell_id], store.checkpoint(cell_id), _Silent(), ranks)


def dismiss_followers(settings: RunSettings, ranks: Ranks) -> None:
    """No cell follows."""
    broadcast(make_fabric(settings, ranks), "")


class _Silent:
    """The progress of ranks other than 0, which nobody needs to see."""

    def stage(self, name: str, total: int) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def epoch(self, figures: Mapping[str, float]) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""


def _run(cell: Cell, store: Store, reporter: Reporter, ranks: Ranks | None) -> tuple[Record, str]:
    started = datetime.now().astimezone()
    try:
        if ranks is not None:
            broadcast(make_fabric(cell.testbed.settings, ranks), cell.id)
        outcome = run_cell(cell, store.checkpoint(cell.id), _ProgressOf(cell, reporter), ranks)
    except (UserError, StopRequestedError):
        raise
    except Exception as error:
        record = failed_record(cell, one_line(error), started)
        write_atomically(store.folder(cell.id) / TRACEBACK, traceback.format_exc().encode())
        store.commit(record)
        return record, "failed"
    weights = save({name: tensor.contiguous() for name, tensor in outcome.tuned.items()})
    record = finished_record(cell, outcome, started, len(weights))
    store.commit(
        record,
        predictions=outcome.predictions["test"],
        curve=outcome.curve,
        weights=weights,
        search=search_history(outcome),
        routes=outcome.routes,
        compress=True,
    )
    return record, "finished"
