"""Peak memory of a run on CUDA, from its allocator; `harness.measure.live` measures on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from harness.measure.errors import MeasurementError

MIB = 2**20


@dataclass(frozen=True)
class PeakMemory:
    """Memory in MiB before a run and at its peak. how: description of the measurement."""

    baseline_mib: float
    peak_mib: float
    how: str


class MemoryTracker:
    """Result of `track_peak_memory`, available after its block has ended."""

    def __init__(self) -> None:
        self._result: PeakMemory | None = None

    @property
    def result(self) -> PeakMemory:
        """The measured peak."""
        if self._result is None:
            raise MeasurementError("peak memory is known once the tracked block has ended")
        return self._result


@contextmanager
def track_peak_memory(device: torch.device) -> Iterator[MemoryTracker]:
    """Measure the peak while the block runs. It must not be nested, because the peak is reset at the start.

    Raises:
        MeasurementError: the device is not a CUDA device.
    """
    if device.type != "cuda":
        raise MeasurementError(f"peak memory is not tracked on {device.type}")
    tracker = MemoryTracker()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    baseline = torch.cuda.memory_allocated(device)
    yield tracker
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    how = "tensors allocated on the device (torch.cuda.max_memory_allocated)"
    tracker._result = PeakMemory(baseline / MIB, peak / MIB, how)
