"""The callables that run inside Slurm jobs."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.latency import measure_side_by_side
from harness.experiment.messages import Messenger
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import dismiss_followers, follow_cells, run_cells
from harness.experiment.slurm.files import JobFiles, ProgressWriter
from harness.experiment.slurm.queue import slurm_command
from harness.process import REQUESTS, StopRequestedError, prepare_process
from harness.records.store import Store
from harness.training.ranks import started_ranks

_ADVANCE_EVERY = 5.0
"""Seconds between two messages about finished examples, which travel through a shared file system."""


@dataclass(frozen=True)
class CellJob:
    """Runs one cell. The cell's record is the only result; the return value is not used."""

    settings: RunSettings
    root: Path
    cell_id: str

    def __call__(self) -> None:
        """Run the cell, unless it is finished.

        SIGUSR2, which Slurm sends before it preempts the job or its time is over, saves the cell and puts the job in
        the queue again. SIGTERM (`scancel`) saves it and ends the job.

        Raises:
            UserError: something the user must change; it is also the last message of the cell's progress.
        """
        prepare_process()
        torch.set_num_threads(self.settings.slurm.slurm_cpus)
        files, store, began = JobFiles(self.root), Store(self.root), time.time()
        send = ProgressWriter(files.progress(self.cell_id))
        queue_again = _QueueAgain()
        signal.signal(signal.SIGUSR2, queue_again)
        try:
            cells = {cell.id: cell for cell in build_cells(self.settings, open_testbeds(self.settings))}
            if self.cell_id not in cells:
                raise UserError("the data, weights or code were changed while the job was in the queue.")
            ranks = started_ranks(self.settings.device)
            if ranks is not None and ranks.rank:
                follow_cells(self.settings, list(cells.values()), store, ranks)
                return
            run_cells([cells[self.cell_id]], store, Messenger(send, _ADVANCE_EVERY), ranks)
            if ranks is not None:
                dismiss_followers(self.settings, ranks)
        except StopRequestedError:
            if not queue_again.asked or not _is_first_task():
                return
            if not _saved_since(began, store.checkpoint(self.cell_id)):
                send(("mend", "the job's time was over before a single step was saved; raise slurm_minutes."))
                return
            send(("note", f"Slurm job {own_job()} has to make room or is out of time: saved, queued again"))
            slurm_command(["scontrol", "requeue", own_job()])
        except UserError as error:
            send(("mend", str(error)))
            raise


class _QueueAgain:
    """Handler of the signal that announces the end of a job's time."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, *_: object) -> None:
        self.asked = REQUESTS.stop = True


def own_job() -> str:
    """Id of the job that this process belongs to, as `scontrol` takes it."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def _is_first_task() -> bool:
    """Whether this is rank 0 of a job whose processes run a cell together."""
    return os.environ.get("SLURM_PROCID", "0") == "0"


def _saved_since(moment: float, folder: Path) -> bool:
    """Whether a file was written since; else another attempt would come no further."""
    return any(path.stat().st_mtime >= moment for path in folder.glob("*"))


@dataclass(frozen=True)
class LatencyJob:
    """Measures latencies of the finished cells side by side, on one node and after all cells' jobs."""

    settings: RunSettings
    root: Path

    def __call__(self) -> None:
        """Measure the cells that have not been measured together."""
        if not _is_first_task():
            return
        prepare_process()
        torch.set_num_threads(self.settings.slurm.slurm_cpus)
        cells = build_cells(self.settings, open_testbeds(self.settings))
        again = self.settings.measure.measure_again
        measure_side_by_side(cells, Store(self.root), again=again)
