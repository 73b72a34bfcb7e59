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
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import torch
from lightning_fabric.plugins.environments.lightning import find_free_network_port

from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.messages import relay
from harness.experiment.plan import Cell
from harness.experiment.runner import Reporter
from harness.experiment.to_record import failed_record
from harness.experiment.worker import work as _work
from harness.process import REQUESTS, StopRequestedError
from harness.records.record import Record
from harness.records.store import CellBusyError, Store
from harness.training.fabric import visible_gpus
from harness.training.ranks import Ranks
from tasks.data.decoding import usable_cores

SMALL = 20_000_000
"""Number of parameters up to which a backbone is small: by default its cells run at the same time."""


_MOST_BY_DEFAULT = 8
"""Cells at once on the CPU, or on one GPU."""


_TRY_EVERY = 0.2  # seconds


_CONSEQUENCE = 1.0
"""Seconds within which the death of a rank shows after another has failed because of it."""


_LOOK_EVERY = 0.5
"""Seconds between two checks for signals."""


_GRACE = 30.0
"""Seconds for a process to finish a step, save its cell and end, and for its children to release the lock."""


def default_jobs(settings: RunSettings, cells: Sequence[Cell]) -> int:
    """One cell per GPU, or per `devices` GPUs; on the CPU one. Of small models, one per core on either, up to eight.

    A small model leaves a GPU idle most of the time: on an H200, eight cells of `vilt-mini` together train 6.3 times as
    many examples per second as one.
    """
    together = settings.device.devices
    parameters = (
        sum(parameter.numel() for parameter in cells[0].testbed.backbone.parameters()) if cells else 0
    )
    small = 0 < parameters <= SMALL
    if gpus := gpu_groups(settings):
        each = min(usable_cores() // len(gpus), _MOST_BY_DEFAULT) if small and together == 1 else 1
        return max(1, min(len(cells), len(gpus) * max(1, each)))
    accelerator = settings.device.accelerator
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    if not small or not on_cpu:
        return 1
    processes = min(torch.get_num_threads(), _MOST_BY_DEFAULT)
    return max(1, min(len(cells), processes // together))


def gpu_groups(settings: RunSettings) -> list[str]:
    """Disjoint groups of `devices` GPUs, each as a value of CUDA_VISIBLE_DEVICES; [] on another device."""
    gpus, together = visible_gpus(settings), settings.device.devices
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",")[:gpus] if chosen else [str(index) for index in range(gpus)]
    return [
        ",".join(names[start : start + together]) for start in range(0, len(names) - together + 1, together)
    ]


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


@dataclass
class _Worker:
    """Processes that run one cell at a time: one, or one per device of a cell on several.

    processes, pipes: by rank, with our ends of the pipes. gpus: the GPUs that they see; None: all.
    deadline: of the current cell, in monotonic seconds.
    """

    processes: list[BaseProcess]
    pipes: list[Connection]
    gpus: str | None = None
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
    workers: list[_Worker] = []
    jobs = max(1, min(jobs, len(waiting)))
    threads = max(1, torch.get_num_threads() // (jobs * settings.device.devices))
    groups = gpu_groups(settings)
    try:
        while waiting or any(worker.cell for worker in workers):
            while waiting and len(workers) < jobs:
                in_use = [worker.gpus for worker in workers]
                gpus = min(groups, key=in_use.count) if groups else None
                workers.append(_start(settings, store.root, threads, gpus))
            for worker in workers:
                if worker.cell is None and waiting:
                    _assign(worker, waiting.popleft(), reporter)
            busy = [worker for worker in workers if worker.cell is not None]
            ready = set(wait([pipe for worker in busy for pipe in worker.pipes], _patience(busy)))
            _pass_on_requests(busy)
            for worker in busy:
                goes_on = True
                for rank in reversed(range(len(worker.pipes))):  # rank 0 may only tell of what befell another
                    if goes_on and worker.pipes[rank] in ready:
                        goes_on = _listen(worker, rank, store, reporter, records, timeout)
                if worker.cell is not None and worker.deadline <= time.monotonic():
                    goes_on = False
                    _kill(worker.processes)  # they may not respond to anything else
                    _fail(worker, f"timed out after {timeout:g} s", store, reporter, records)
                if not goes_on:
                    workers.remove(worker)
                    _end([worker])
    finally:
        _end(workers)
    return [records[cell.id] for cell in cells if cell.id in records]


def _start(settings: RunSettings, folder: Path, threads: int, gpus: str | None) -> _Worker:
    context = multiprocessing.get_context("spawn")
    worker = _Worker([], [], gpus)
    world_size = settings.device.devices
    port = find_free_network_port() if world_size > 1 else 0
    for rank in range(world_size):
        ours, theirs = context.Pipe()
        together = (Ranks(rank, world_size, rank, port=port),) if world_size > 1 else ()
        # Not a daemon, as those may not start the processes that decode images.
        process = context.Process(target=_work, args=(settings, folder, threads, theirs, *together))
        with _without_interrupts(), _without_main(), _visible(gpus):
            process.start()
        theirs.close()  # so that the pipe ends with the process
        worker.processes.append(process)
        worker.pipes.append(ours)
    return worker


@contextmanager
def _visible(gpus: str | None) -> Iterator[None]:
    """A process started within this context sees only these GPUs."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    try:
        yield
    finally:
        if gpus is not None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """A process started within this context never receives Ctrl-C, which the parent handles.

    It receives SIGUSR1 once it has a handler for it (`_work`); before, the signal would end it.
    """
    resource_tracker.ensure_running()  # when it is first started, it lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        # Between cells, ranks other than 0 wait for the next one, and would not notice a request to stop.
        for process in worker.processes[: None if worker.cell else 1]:
            process.terminate()
    for worker in workers:
        until = time.monotonic() + _GRACE
        for process in worker.processes if worker.cell else worker.processes[:1]:
            process.join(max(0.0, until - time.monotonic()))
        _kill(worker.processes)
        for pipe in worker.pipes:
            pipe.close()


def _kill(processes: Sequence[BaseProcess]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()


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
        for process in (process for worker in busy for process in worker.processes):
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, signal.SIGUSR1)
    REQUESTS.check()


def _assign(worker: _Worker, cell: Cell, reporter: Reporter) -> None:
    worker.cell, worker.started, worker.deadline = cell, datetime.now().astimezone(), math.inf
    reporter.begin(cell)
    try:
        worker.pipes[0].send(cell.id)
    except BrokenPipeError:  # it died idle; `_listen` notices that
        return


def _listen(
    worker: _Worker,
    rank: int,
    store: Store,
    reporter: Reporter,
    records: dict[str, Record],
    timeout: float,
) -> bool:
    """Handle one message; False if a process has died or the cell has failed."""
    cell = worker.cell
    assert cell is not None
    try:
        kind, *content = worker.pipes[rank].recv()
    except (EOFError, ConnectionResetError):
        worker.processes[rank].join()
        kind, content = "failed", [_death(rank, worker.processes[rank].exitcode)]
    match kind:
        case "begin":
            worker.deadline = time.monotonic() + timeout
        case "failed":
            reason = _killed(worker) or content[0]
            _kill(worker.processes)
            _fail(worker, reason, store, reporter, records)
            return False
        case "end":
            note = content[0]
            if note == "failed" and (reason := _killed(worker)) is not None:
                _kill(worker.processes)
                _fail(worker, reason, store, reporter, records)
                return False
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


def _killed(worker: _Worker) -> str | None:
    """Which of several ranks was ended by a signal, if one was: what the others report is only its consequence."""
    until = time.monotonic() + _CONSEQUENCE
    while len(worker.processes) > 1 and time.monotonic() < until:
        for rank, process in enumerate(worker.processes):
            if process.exitcode is not None and process.exitcode < 0:
                return _death(rank, process.exitcode)
        time.sleep(_TRY_EVERY)
    return None


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


def _death(rank: int, status: int | None) -> str:
    which = f" of rank {rank}" if rank else ""
    if status is not None and status < 0:
        name = signal.Signals(-status).name
        hint = "; the system may have run out of memory" if name == "SIGKILL" else ""
        return f"the cell's process{which} was ended by {name}{hint}"
    return f"the cell's process{which} ended with status {status}"
