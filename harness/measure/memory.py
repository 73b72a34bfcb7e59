"""Peak memory of a run, the closed account of what training keeps, and sizes of files."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from harness.measure.errors import MeasurementError

MIB = 2**20
SAMPLING_SECONDS = 0.005
_SELF = Path("/proc/self")
STATM, STATUS, CLEAR_REFS = _SELF / "statm", _SELF / "status", _SELF / "clear_refs"


@dataclass(frozen=True)
class PeakMemory:
    """Memory in MiB before a run and at its highest; `how` says what was read and how."""

    baseline_mib: float
    peak_mib: float
    how: str

    @property
    def growth_mib(self) -> float:
        """What the run needed beyond what was there."""
        return self.peak_mib - self.baseline_mib


class MemoryTracker:
    """Result of `track_peak_memory`, to be read once its block has ended."""

    def __init__(self) -> None:
        self._result: PeakMemory | None = None

    @property
    def result(self) -> PeakMemory:
        """The measured peak."""
        if self._result is None:
            raise MeasurementError("peak memory is known once the tracked block has ended")
        return self._result


def peak_memory(run: Callable[[], object], device: torch.device) -> PeakMemory:
    """Call `run` once and measure. On CPU what the allocator keeps from earlier runs hides growth: run the
    first of its size in a fresh process.
    """
    with track_peak_memory(device) as tracker:
        run()
    return tracker.result


@contextmanager
def track_peak_memory(device: torch.device) -> Iterator[MemoryTracker]:
    """Measure the peak while the block runs. Not to be nested on CUDA: the peak is reset at the start."""
    tracker = MemoryTracker()
    if device.type == "cuda":
        yield from _track_cuda(tracker, device)
    elif device.type != "cpu":
        raise MeasurementError(f"peak memory is not measured on {device.type}")
    elif STATM.is_file():
        yield from _track_resident_set(tracker)
    else:
        yield from _track_process_maximum(tracker)


def _track_cuda(tracker: MemoryTracker, device: torch.device) -> Iterator[MemoryTracker]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    baseline = torch.cuda.memory_allocated(device)
    yield tracker
    torch.cuda.synchronize(device)
    peak = torch.cuda.max_memory_allocated(device)
    how = "tensors allocated on the device (torch.cuda.max_memory_allocated)"
    tracker._result = PeakMemory(baseline / MIB, peak / MIB, how)


def _track_resident_set(tracker: MemoryTracker) -> Iterator[MemoryTracker]:
    """Linux. The kernel's own high-water mark is exact, but only tells of this run if it starts or rises in it."""
    fresh = _reset_high_water_mark()
    mark = _high_water_mark()
    baseline = _resident_bytes()
    peak = baseline
    stop = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not stop.wait(SAMPLING_SECONDS):
            peak = max(peak, _resident_bytes())

    sampler = threading.Thread(target=sample, name="resident set sampler", daemon=True)
    sampler.start()
    try:
        yield tracker
    finally:
        stop.set()
        sampler.join()
    peak = max(peak, _resident_bytes())
    how = f"peak resident set sampled every {1000 * SAMPLING_SECONDS:.0f} ms"
    if fresh or _high_water_mark() > mark:
        peak = max(peak, _high_water_mark())
        how = "peak resident set (the kernel's high-water mark)"
    tracker._result = PeakMemory(baseline / MIB, peak / MIB, how)


def _resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _reset_high_water_mark() -> bool:
    """Let it begin at what is resident now (proc(5), `clear_refs`); False where that is not allowed."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def _high_water_mark() -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _track_process_maximum(tracker: MemoryTracker) -> Iterator[MemoryTracker]:
    """Other systems with `getrusage`: the maximum since the process began, all that can be had."""
    try:
        import resource
    except ImportError:
        raise MeasurementError(f"peak memory cannot be measured on {sys.platform}") from None
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    yield tracker
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    how = "maximum resident set of the process so far, before and after (getrusage)"
    tracker._result = PeakMemory(baseline / MIB, peak / MIB, how)


@dataclass(frozen=True)
class TrainingBytes:
    """Bytes that training keeps between steps, activations aside."""

    parameters: int
    buffers: int
    gradients: int
    optimizer_states: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.parameters + self.buffers + self.gradients + self.optimizer_states


def training_bytes(*modules: nn.Module, states_per_parameter: int = 2) -> TrainingBytes:
    """The closed account: gradients and optimiser states as large as what trains (AdamW: 2 states)."""
    parameters = {id(p): p for module in modules for p in module.parameters()}.values()
    buffers = {id(b): b for module in modules for b in module.buffers()}.values()
    trained = sum(p.nbytes for p in parameters if p.requires_grad)
    return TrainingBytes(
        parameters=sum(p.nbytes for p in parameters),
        buffers=sum(b.nbytes for b in buffers),
        gradients=trained,
        optimizer_states=states_per_parameter * trained,
    )


def file_size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
