"""What runs inside a Slurm job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from harness.config import RunSettings
from harness.errors import UserError
from harness.experiment.latency import measure_side_by_side
from harness.experiment.messages import Messenger
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.experiment.slurm.files import JobFiles, ProgressWriter
from harness.process import prepare_process
from harness.records.store import Store

_ADVANCE_EVERY = 5.0
"""Seconds between two messages about finished examples, which travel through a shared file system."""


@dataclass(frozen=True)
class CellJob:
    """Runs one cell. Its record is the only result; what the call returns is not read."""

    settings: RunSettings
    root: Path
    cell_id: str

    def __call__(self) -> None:
        """Run the cell, unless it is finished.

        Raises:
            UserError: something the user must change; it is also the last message of the cell's progress.
        """
        prepare_process()
        torch.set_num_threads(self.settings.slurm.slurm_cpus)
        send = ProgressWriter(JobFiles(self.root).progress(self.cell_id))
        try:
            cells = {cell.id: cell for cell in build_cells(self.settings, open_testbeds(self.settings))}
            if self.cell_id not in cells:
                raise UserError("the data, weights or code were changed while the job was in the queue.")
            run_cells([cells[self.cell_id]], Store(self.root), Messenger(send, _ADVANCE_EVERY))
        except UserError as error:
            send(("mend", str(error)))
            raise


@dataclass(frozen=True)
class LatencyJob:
    """Measures latencies of the finished cells side by side, on one node and after all cells' jobs."""

    settings: RunSettings
    root: Path

    def __call__(self) -> None:
        """Measure what has not been measured together."""
        prepare_process()
        torch.set_num_threads(self.settings.slurm.slurm_cpus)
        cells = build_cells(self.settings, open_testbeds(self.settings))
        again = self.settings.measure.measure_again
        measure_side_by_side(cells, Store(self.root), again=again)
