"""Latency of several callables, interleaved: A B C, B C A, C A B, …

All callables then run under the same conditions: another process, a warm processor or a throttled clock affects
them equally.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from harness.errors import one_line
from harness.measure.errors import MeasurementError
from harness.measure.machine import BUSY_RATIO, OtherPrograms, disturbed

Execution = Literal["eager", "graph"]
"""Kernels launched one by one, or as a replayed CUDA graph."""

Clock = Callable[[], float]
"""Seconds since an arbitrary fixed point."""


@dataclass(frozen=True)
class LatencySample:
    """Raw latencies of one callable in ms, in the order of the rounds.

    samples_ms: on CUDA, time between two events around the call, with calls queued without waiting; otherwise
        wall-clock time.
    wall_ms: wall-clock time from the call until its result is available.
    device: as torch writes it. threads: `torch.get_num_threads()`.
    others: processor cores that other programs used meanwhile, on average; None if unknown.
    """

    samples_ms: tuple[float, ...]
    wall_ms: tuple[float, ...]
    device: str
    threads: int
    others: float | None = None

    @property
    def n(self) -> int:
        """Number of timed iterations."""
        return len(self.samples_ms)

    @property
    def p50(self) -> float:
        """Median in ms."""
        return float(np.percentile(self.samples_ms, 50))

    @property
    def p90(self) -> float:
        """90th percentile in ms."""
        return float(np.percentile(self.samples_ms, 90))

    @property
    def busy(self) -> bool:
        """Whether something else used the machine: the p90 is far above the median, or too few cores were left."""
        return self.p90 > BUSY_RATIO * self.p50 or disturbed(self.others, self.threads, os.cpu_count())

    @property
    def mean(self) -> float:
        """Arithmetic mean in ms."""
        return float(np.mean(self.samples_ms))


@dataclass(frozen=True)
class LatencyRatio:
    """Ratio of two medians, with its bootstrap interval."""

    ratio: float
    low: float
    high: float
    confidence: float


def measure_latency(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    min_iterations: int = 30,
    min_seconds: float = 1.0,
    warmup: int = 3,
    clock: Clock = time.perf_counter,
) -> dict[str, LatencySample]:
    """Latency of each of `runs`: at least `min_iterations` calls and `min_seconds` of running time each.

    Every callable is first called `warmup` times. All are timed in the same number of rounds; the order rotates by
    one each round. On CUDA, as many rounds again are queued with events, with one synchronisation at the end.
    Garbage is collected before the timing, not during it. Whether gradients are recorded is up to the callables.

    Raises:
        MeasurementError: there is no callable, or `min_iterations` is below 1.
    """
    if not runs or min_iterations < 1:
        raise MeasurementError("latency needs at least one callable and one iteration")
    for run in runs.values():
        for _ in range(warmup):
            run()
    _synchronize(device)
    programs = OtherPrograms()
    with _without_garbage_collection():
        wall = _time_rounds(runs, device, min_iterations, min_seconds, clock)
        rounds = len(next(iter(wall.values())))
        samples = _time_events(runs, device, rounds) if device.type == "cuda" else wall
    threads, others = torch.get_num_threads(), programs.cores()
    return {
        name: LatencySample(tuple(samples[name]), tuple(wall[name]), str(device), threads, others)
        for name in runs
    }


def _rotated(names: list[str], turn: int) -> list[str]:
    start = turn % len(names)
    return names[start:] + names[:start]


def _time_rounds(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    min_iterations: int,
    min_seconds: float,
    clock: Clock,
) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in runs}
    turn = 0
    while turn < min_iterations or min(map(sum, taken.values())) < 1000 * min_seconds:
        for name in _rotated(list(runs), turn):
            start = clock()
            runs[name]()
            _synchronize(device)
            taken[name].append(1000 * (clock() - start))
        turn += 1
    return taken


def _time_events(
    runs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, list[float]]:
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in runs}
    with torch.cuda.device(device):
        for turn in range(rounds):
            for name in _rotated(list(runs), turn):
                start = torch.cuda.Event(enable_timing=True)
                end = torch.cuda.Event(enable_timing=True)
                start.record()
                runs[name]()
                end.record()
                events[name].append((start, end))
        _synchronize(device)
    return {name: [start.elapsed_time(end) for start, end in pairs] for name, pairs in events.items()}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def graphed(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same call as a replayed CUDA graph: all its kernels are launched at once.

    The call is run three times first. It must do the same work on the same tensors whenever it is called.

    Raises:
        MeasurementError: the call cannot be captured, for example because it waits for the device.
    """
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError as error:
            raise MeasurementError(f"the forward pass is no CUDA graph: {one_line(error)}") from error

    def replay() -> object:
        graph.replay()
        return run  # what the call holds must live as long as the graph, which reads its memory

    return replay


def executions(
    eager: Mapping[str, Callable[[], object]],
    device: torch.device,
    on_failure: Callable[[str], None] = lambda text: None,
    graphs: bool = True,
) -> dict[Execution, Mapping[str, Callable[[], object]]]:
    """The ways to run the same calls on a device: one by one, and on CUDA also as replayed graphs.

    If one of the calls cannot be captured, none is, so that all stay comparable; `on_failure` is told why.
    """
    found: dict[Execution, Mapping[str, Callable[[], object]]] = {"eager": eager}
    if device.type == "cuda" and graphs:
        try:
            found["graph"] = {name: graphed(run, device) for name, run in eager.items()}
        except MeasurementError as error:
            on_failure(str(error))
    return found


def weights_type(precision: str) -> torch.dtype:
    """The type that weights are deployed in after training in one of Fabric's precisions, such as `bf16-mixed`."""
    return {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}.get(
        precision.split("-")[0], torch.float32
    )


def latency_ratio(
    a: LatencySample, b: LatencySample, *, resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> LatencyRatio:
    """Median of `a` over median of `b`, with a percentile bootstrap interval.

    Samples with equal numbers of iterations are taken as one measurement and resampled by rounds, so that a
    disturbed round counts for both; others are resampled separately. Rounds are treated as independent.
    """
    first, second = np.asarray(a.samples_ms), np.asarray(b.samples_ms)
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(first), size=(resamples, len(first)))
    columns = (
        rows if len(first) == len(second) else generator.integers(len(second), size=(resamples, len(second)))
    )
    ratios = np.median(first[rows], axis=1) / np.median(second[columns], axis=1)
    tail = 50 * (1 - confidence)
    low, high = np.percentile(ratios, [tail, 100 - tail])
    return LatencyRatio(float(np.median(first) / np.median(second)), float(low), float(high), confidence)
