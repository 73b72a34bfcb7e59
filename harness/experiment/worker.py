"""What runs in a worker process: cells, one after the other, as their ids arrive."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from harness.config import RunSettings
from harness.errors import UserError, one_line
from harness.experiment.messages import Messenger
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import follow_cells, run_cells
from harness.process import StopRequestedError, prepare_process
from harness.records.store import Store
from harness.training.fabric import make_fabric
from harness.training.ranks import Ranks

_FIRST_TO_GO = "500"
"""Linux's oom_score_adj (of 1000): if memory runs out, a worker is killed, not the process that reports it."""


def work(
    settings: RunSettings, folder: Path, threads: int, pipe: Connection, ranks: Ranks | None = None
) -> None:
    """Run cells by their ids until the pipe is closed.

    ranks: several processes run each cell together. Ids come to rank 0, which tells the others.
    """
    _die_with_parent()
    with suppress(OSError):  # Linux only
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # between cells; while one runs, see REQUESTS
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    prepare_process()
    torch.set_num_threads(threads)
    store, reporter = Store(folder), Messenger(_sender(pipe))
    try:
        cells = {cell.id: cell for cell in build_cells(settings, open_testbeds(settings))}
        if ranks is not None:
            make_fabric(settings, ranks)  # all meet before the first cell
            if ranks.rank:
                follow_cells(settings, list(cells.values()), store, ranks)
                return
        while True:
            cell_id = pipe.recv()
            if cell_id not in cells:
                raise UserError(
                    f"{folder}: the data, weights or code were changed while the run was starting."
                )
            run_cells([cells[cell_id]], store, reporter, ranks)
    except UserError as error:
        pipe.send(("mend", str(error)))
    except StopRequestedError as stop:
        pipe.send(("stopped", str(stop)))
    except (EOFError, BrokenPipeError):  # the parent has ended
        return
    except Exception as error:
        if ranks is None or not ranks.rank:  # rank 0 records what happens in a cell
            raise
        pipe.send(("failed", f"rank {ranks.rank}: {one_line(error)}"))


def _die_with_parent() -> None:
    """End this process as soon as its parent has ended, for whatever reason."""
    parent = parent_process()
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
