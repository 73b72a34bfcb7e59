"""Run cells in worker processes, several at once where models are small.

A small model cannot use more than a core or two: on the embedded benchmark, two cells on one core each train
1.7 times as fast as one after the other on both. If a worker dies or exceeds the time limit, its cell fails and
the run continues. A worker is discarded after a failure. Workers end with the process that started them.
"""

from __future__ import annotations

import importlib.util
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.messages import Messenger, relay
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import Reporter, run_cells
from harness.experiment.to_record import failed_record
from harness.process import REQUESTS, StopRequestedError
from harness.records.record import Record
from harness.records.store import CellBusyError, Store

SMALL = 20_000_000
"""Number of parameters up to which a backbone is small: by default its cells run at the same time."""


_MOST_BY_DEFAULT = 8


_TRY_EVERY = 0.2  # seconds


_LOOK_EVERY = 0.5
"""Seconds between two checks for signals."""


_GRACE = 30.0
"""Seconds for a process to finish a step, save its cell and end, and for its children to release the lock."""


_FIRST_TO_GO = "500"
"""Linux's oom_score_adj (of 1000): if memory runs out, a worker is killed, not the process that reports it."""


def default_jobs(settings: RunSettings, cells: Sequence[Cell]) -> int:
    """One cell per thread for small models on the CPU, else one."""
    accelerator = settings.device.accelerator
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not _has_accelerator())
    if not cells or not on_cpu:
        return 1
    parameters = sum(parameter.numel() for parameter in cells[0].testbed.backbone.parameters())
    if parameters > SMALL:
        return 1
    return max(1, min(len(cells), torch.get_num_threads(), _MOST_BY_DEFAULT))


def is_importable(cls: type) -> bool:
    """Whether another process can import the class."""
    try:
        found = importlib.util.find_spec(cls.__module__)
    except (ImportError, ValueError):  # a module made by hand, or `__main__`
        return False
    return found is not None and cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def tied_to_this_process(settings: RunSettings) -> list[str]:
    """Names of method objects that another process cannot build: defined in a notebook, a script, or a function."""
    return [
        spec.name for spec in settings.methods if spec.instance is not None and not _travels(spec.instance)
    ]


def _travels(method: object) -> bool:
    try:
        with _without_main():
            pickle.dumps(method)
    except Exception:  # whatever its options raise when they are pickled
        return False
    return is_importable(type(method))


@contextmanager
def _without_main() -> Iterator[None]:
    """A process started within this context does not import the user's script, which need not be guarded.

    By default `multiprocessing` makes every new process import the main module's file; workers need nothing of it.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _has_accelerator() -> bool:
    return torch.cuda.is_available() or torch.backends.mps.is_available()


@dataclass
class _Worker:
    """A process, our end of its pipe, its current cell, and that cell's deadline (monotonic seconds)."""

    process: BaseProcess
    pipe: Connection
    cell: Cell | None = None
    started: datetime = field(default_factory=lambda: datetime.now().astimezone())
    deadline: float = math.inf


def run_side_by_side(
    settings: RunSettings,
    cells: Sequence[Cell],
    store: Store,
    reporter: Reporter,
    jobs: int,
    timeout: float = math.inf,
) -> list[Record]:
    """Like `run_cells`, with up to `jobs` cells at a time, which share the threads.

    timeout: seconds a cell may take in this run, without loading data and backbone. A cell that takes longer is
        recorded as failed and keeps its checkpoint; the next run resumes it.

    Raises:
        UserError: something the user must fix; the other cells are stopped, finished cells are kept.
        StopRequestedError: SIGTERM asked to stop; unfinished cells are saved and have no record.
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
    threads = max(1, torch.get_num_threads() // max(1, min(jobs, len(waiting))))
    workers: list[_Worker] = []
    jobs = min(jobs, len(waiting))
    try:
        while waiting or any(worker.cell for worker in workers):
            while waiting and len(workers) < jobs:
                workers.append(_start(settings, store.root, threads))
            for worker in workers:
                if worker.cell is None and waiting:
                    _assign(worker, waiting.popleft(), reporter)
            busy = [worker for worker in workers if worker.cell is not None]
            ready = set(wait([worker.pipe for worker in busy], _patience(busy)))
            _pass_on_requests(busy)
            for worker in busy:
                goes_on = True
                if worker.pipe in ready:
                    goes_on = _listen(worker, store, reporter, records, timeout)
                if worker.cell is not None and worker.deadline <= time.monotonic():
                    goes_on = False
                    worker.process.kill()  # it may not respond to anything else
                    worker.process.join()
                    _fail(worker, f"timed out after {timeout:g} s", store, reporter, records)
                if not goes_on:
                    workers.remove(worker)
                    _end([worker])
    finally:
        _end(workers)
    return [records[cell.id] for cell in cells if cell.id in records]


def _start(settings: RunSettings, folder: Path, threads: int) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    # Not a daemon, as those may not start the processes that decode images.
    process = context.Process(target=_work, args=(settings, folder, threads, theirs))
    with _without_interrupts(), _without_main():
        process.start()
    theirs.close()  # so that the pipe ends with the process
    return _Worker(process, ours)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started within this context never receives Ctrl-C, which the parent handles.

    It receives SIGUSR1 once it has a handler for it (`_work`); before, the signal would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.process.terminate()
    for worker in workers:
        worker.process.join(_GRACE)
        worker.process.kill()
        worker.process.join()
        worker.pipe.close()


def _patience(busy: Sequence[_Worker]) -> float:
    """Seconds until the first deadline, or until the next check for signals."""
    first = min((worker.deadline for worker in busy), default=math.inf)
    return min(_LOOK_EVERY, max(0.0, first - time.monotonic()))


def _pass_on_requests(busy: Sequence[_Worker]) -> None:
    """Pass requests by signals to this process on to its workers.

    Raises:
        StopRequestedError: a signal asked to stop; the end of the run stops the workers.
    """
    if REQUESTS.save:
        REQUESTS.save = False
        for worker in busy:
            if worker.process.pid is not None and worker.process.is_alive():
                os.kill(worker.process.pid, signal.SIGUSR1)
    REQUESTS.check()


def _assign(worker: _Worker, cell: Cell, reporter: Reporter) -> None:
    worker.cell, worker.started, worker.deadline = cell, datetime.now().astimezone(), math.inf
    reporter.begin(cell)
    try:
        worker.pipe.send(cell.id)
    except BrokenPipeError:  # it died idle; `_listen` notices that
        return


def _listen(
    worker: _Worker, store: Store, reporter: Reporter, records: dict[str, Record], timeout: float
) -> bool:
    """Handle one message; False if the process has died or its cell has failed."""
    cell = worker.cell
    assert cell is not None
    try:
        kind, *content = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        worker.process.join()
        _fail(worker, _death(worker.process.exitcode), store, reporter, records)
        return False
    match kind:
        case "begin":
            worker.deadline = time.monotonic() + timeout
        case "end":
            note = content[0]
            record_there = store.record(cell.id) if note in ("kept", "finished", "failed") else None
            if record_there is not None:
                records[cell.id] = record_there
            reporter.end(cell, record_there, note)
            worker.cell = None
            return note != "failed"
        case "mend":
            raise UserError(content[0])
        case "stopped":
            raise StopRequestedError(content[0])
        case _:
            relay(kind, content, cell, reporter)
    return True


def _fail(worker: _Worker, reason: str, store: Store, reporter: Reporter, records: dict[str, Record]) -> None:
    """Record the cell of a dead process as failed; its children may hold the lock a little longer."""
    cell = worker.cell
    assert cell is not None
    worker.cell = None
    record = failed_record(cell, reason, worker.started)
    until = time.monotonic() + _GRACE
    while True:
        try:
            with store.begin(cell.id):
                if finished := store.finished(cell.id):  # just before it died
                    record = store.record(cell.id)
                else:
                    store.commit(record)
        except CellBusyError as error:
            if time.monotonic() < until:
                time.sleep(_TRY_EVERY)
                continue
            reporter.end(cell, None, f"left out: {error}")  # another run has taken it over
            return
        records[cell.id] = record
        reporter.end(cell, record, "finished" if finished else "failed")
        return


def _death(status: int | None) -> str:
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the cell's process was ended by {name}{hint}"
    return f"the cell's process ended with status {status}"


def _work(settings: RunSettings, folder: Path, threads: int, pipe: Connection) -> None:
    """Run cells by their ids until the pipe is closed."""
    from harness.process import prepare_process

    _die_with_parent()
    with suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # between cells; REQUESTS handles it while one runs
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    prepare_process()
    torch.set_num_threads(threads)
    store, reporter = Store(folder), Messenger(_sender(pipe))
    try:
        cells = {cell.id: cell for cell in build_cells(settings, open_testbeds(settings))}
        while True:
            cell_id = pipe.recv()
            if cell_id not in cells:
                raise UserError(
                    f"{folder}: the data, weights or code were changed while the run was starting."
                )
            run_cells([cells[cell_id]], store, reporter)
    except UserError as error:
        pipe.send(("mend", str(error)))
    except StopRequestedError as stop:
        pipe.send(("stopped", str(stop)))
    except (EOFError, BrokenPipeError):  # the parent has ended
        return


def _die_with_parent() -> None:
    """End this process as soon as its parent has ended, for whatever reason."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent watch", daemon=True).start()


def _sender(pipe: Connection) -> Callable[[tuple[Any, ...]], None]:
    def send(message: tuple[Any, ...]) -> None:
        try:
            pipe.send(message)
        except OSError:  # the parent has ended: not a failure of the cell
            os._exit(1)

    return send
