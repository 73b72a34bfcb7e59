"""Cells side by side in processes of their own.

A small model cannot use more than a core or two: on the embedded benchmark two cells on one core each train
1.7 times as fast as one after the other on both. A process that dies takes its cell with it, not the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from harness.assemble import failed_record
from harness.errors import UserError
from harness.plan import Cell, Request, build_cells, open_workplaces
from harness.record import Record
from harness.runner import Reporter, run_cells
from harness.store import Store

SMALL = 20_000_000
"""Parameters up to which a backbone is small: its cells are run side by side unless told otherwise."""
_MOST_BY_DEFAULT = 8
_REPORT_EVERY = 0.2  # seconds


def default_jobs(request: Request, cells: Sequence[Cell]) -> int:
    """As many cells at once as there are threads, where models are small and on the CPU; else one."""
    on_cpu = request.accelerator == "cpu" or (request.accelerator == "auto" and not _has_accelerator())
    if not cells or not on_cpu:
        return 1
    parameters = sum(parameter.numel() for parameter in cells[0].workplace.pristine.parameters())
    if parameters > SMALL:
        return 1
    return max(1, min(len(cells), torch.get_num_threads(), _MOST_BY_DEFAULT))


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


@dataclass
class _Worker:
    """A process, our end of its pipe, and the cell it has in hand."""

    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())


def run_side_by_side(
    request: Request, cells: Sequence[Cell], store: Store, reporter: Reporter, jobs: int
) -> list[Record]:
    """Like `run_cells`, `jobs` at a time, each with its share of the threads.

    Raises:
        UserError: something the user has to mend; the other cells are stopped, what was finished is kept.
    """
    records: dict[str, Record] = {}
    waiting: deque[Cell] = deque()
    for cell in cells:
        if store.finished(cell.id):
            reporter.begin(cell)
            records[cell.id] = store.record(cell.id)
            reporter.end(cell, records[cell.id], "kept")
        else:
            waiting.append(cell)
    threads = max(1, torch.get_num_threads() // jobs)
    workers: list[_Worker] = []
    try:
        while waiting or any(worker.cell for worker in workers):
            while waiting and len(workers) < jobs:
                workers.append(_start(request, store.root, threads))
            for worker in workers:
                if worker.cell is None and waiting:
                    _assign(worker, waiting.popleft(), reporter)
            busy = [worker for worker in workers if worker.cell is not None]
            ready = set(wait([worker.pipe for worker in busy]))
            for worker in busy:
                if worker.pipe in ready and not _listen(worker, store, reporter, records):
                    workers.remove(worker)
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()
    return [records[cell.id] for cell in cells if cell.id in records]


def _start(request: Request, folder: Path, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(request, folder, threads, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the pipe ends with the process
    return _Worker(process, ours)


def _assign(worker: _Worker, cell: Cell, reporter: Reporter) -> None:
    worker.cell, worker.started = cell, datetime.now().astimezone()
    reporter.begin(cell)
    try:
        worker.pipe.send(cell.id)
    except BrokenPipeError:  # it died idle; the pipe's end is noticed when it is listened to
        return


def _listen(worker: _Worker, store: Store, reporter: Reporter, records: dict[str, Record]) -> bool:
    """Take one message; False if the process has died."""
    cell = worker.cell
    assert cell is not None
    try:
        kind, *content = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        record = failed_record(cell, _death(worker.process.exitcode), worker.started)
        with store.begin(cell.id):
            store.commit(record)
        records[cell.id] = record
        reporter.end(cell, record, "failed")
        return False
    match kind:
        case "stage":
            reporter.stage(cell, *content)
        case "advance":
            reporter.advance(cell, *content)
        case "end":
            note = content[0]
            record_there = store.record(cell.id) if note in ("kept", "finished", "failed") else None
            if record_there is not None:
                records[cell.id] = record_there
            reporter.end(cell, record_there, note)
            worker.cell = None
        case "mend":
            raise UserError(content[0])
    return True


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the cell's process was ended by {name}{hint}"
    return f"the cell's process ended with status {status}"


def _work(request: Request, folder: Path, threads: int, pipe: Connection) -> None:
    """Run cells by their ids until nobody asks for more."""
    from harness.session import prepare_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    prepare_process()
    torch.set_num_threads(threads)
    store, reporter = Store(folder), _Messenger(pipe)
    try:
        cells = {cell.id: cell for cell in build_cells(request, open_workplaces(request))}
        while True:
            cell_id = pipe.recv()
            if cell_id not in cells:
                raise UserError(f"{folder}: the data or weights were changed while the run was starting.")
            run_cells([cells[cell_id]], store, reporter)
    except UserError as error:
        pipe.send(("mend", str(error)))
    except (EOFError, BrokenPipeError):  # the parent is gone
        return


class _Messenger:
    """A reporter that tells the parent, which shows it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._done = 0
        self._told = time.monotonic()

    def begin(self, cell: Cell) -> None:
        """The parent knows."""

    def stage(self, cell: Cell, name: str, total: int) -> None:
        """A stage begins."""
        self._done = 0
        self._send("stage", name, total)

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done; told a few times a second."""
        self._done += count
        if time.monotonic() - self._told >= _REPORT_EVERY:
            self._send("advance", self._done)
            self._done, self._told = 0, time.monotonic()

    def end(self, cell: Cell, record: Record | None, note: str) -> None:
        """The cell has ended; its record is in the store."""
        self._send("end", note)

    def _send(self, *message: Any) -> None:
        self._pipe.send(message)
