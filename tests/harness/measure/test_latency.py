from __future__ import annotations

import gc
import os
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from harness.measure.errors import MeasurementError
from harness.measure.latency import LatencySample, executions, latency_ratio, measure_latency, weights_type

CPU = torch.device("cpu")


class Stage:
    """A clock that advances only while a contestant runs; records the order of the contestants."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order = ""

    def clock(self) -> float:
        return self.now

    def contestant(self, name: str, *seconds: float) -> Callable[[], None]:
        calls = iter(range(10**9))

        def run() -> None:
            self.now += seconds[next(calls) % len(seconds)]
            self.order += name

        return run


def test_contestants_take_turns_in_a_rotating_order_after_warming_up() -> None:
    stage = Stage()
    runs = {name: stage.contestant(name, 1.0) for name in "ABC"}
    measure_latency(runs, CPU, min_iterations=4, min_seconds=0, warmup=2, clock=stage.clock)
    assert stage.order == "AABBCC" + "ABC" + "BCA" + "CAB" + "ABC"


def test_runs_until_the_fastest_has_its_iterations_and_its_seconds() -> None:
    stage = Stage()
    runs = {"fast": stage.contestant("F", 0.25), "slow": stage.contestant("S", 2.0)}
    samples = measure_latency(runs, CPU, min_iterations=2, min_seconds=1.5, warmup=0, clock=stage.clock)
    assert samples["fast"].samples_ms == (250.0,) * 6
    assert samples["slow"].samples_ms == (2000.0,) * 6
    samples = measure_latency(runs, CPU, min_iterations=9, min_seconds=1.5, warmup=0, clock=stage.clock)
    assert samples["fast"].n == 9


def test_raw_samples_are_kept_and_summarised() -> None:
    stage = Stage()
    runs = {"A": stage.contestant("A", *(k / 1000 for k in range(1, 12)))}
    sample = measure_latency(runs, CPU, min_iterations=11, min_seconds=0, warmup=0, clock=stage.clock)["A"]
    assert sample.samples_ms == pytest.approx(range(1, 12))
    assert sample.wall_ms == sample.samples_ms
    assert (sample.p50, sample.p90, sample.mean, sample.n) == pytest.approx((6, 10, 6, 11))
    assert sample.device == "cpu"
    assert sample.threads == torch.get_num_threads()


def test_garbage_collection_is_off_during_timing_only() -> None:
    seen = []
    measure_latency(
        {"A": lambda: seen.append(gc.isenabled())}, CPU, min_iterations=2, min_seconds=0, warmup=1
    )
    assert seen == [True, False, False]
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_a_failure() -> None:
    calls = iter([None])
    with pytest.raises(StopIteration):
        measure_latency({"A": lambda: next(calls)}, CPU, min_iterations=2, min_seconds=0, warmup=1)
    assert gc.isenabled()


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(MeasurementError, match="at least one"):
        measure_latency({}, CPU)


def sample(*ms: float) -> LatencySample:
    return LatencySample(ms, ms, "cpu", 1)


def test_measurement_is_busy_if_its_tail_is_long_or_its_cores_were_taken() -> None:
    quiet = sample(*[10.0] * 8, 12.0, 12.0)
    assert not quiet.busy
    assert sample(*[10.0] * 8, 14.0, 14.0).busy
    cores = os.cpu_count() or 1
    assert replace(quiet, threads=cores, others=1.0).busy
    assert not replace(quiet, threads=cores, others=0.1).busy


def test_only_cuda_replays_graphs() -> None:
    eager = {"A": lambda: None}
    assert executions(eager, CPU) == {"eager": eager}


@pytest.mark.parametrize(
    ("precision", "expected"),
    [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)],
)
def test_weights_are_deployed_in_the_type_of_training(precision: str, expected: torch.dtype) -> None:
    assert weights_type(precision) is expected


def test_ratio_of_medians_with_its_interval() -> None:
    slow, fast = sample(20, 22, 24, 26, 28), sample(10, 11, 12, 13, 14)
    result = latency_ratio(slow, fast)
    # The rounds are shared, so a disturbed round disturbs both and the ratio is certain.
    assert (result.ratio, result.low, result.high) == pytest.approx((2, 2, 2))
    other = latency_ratio(slow, sample(10, 11, 12, 13, 14, 12))
    assert other.low < other.ratio < other.high
    assert other.low >= 20 / 14
    assert other.high <= 28 / 10
    assert other == latency_ratio(slow, sample(10, 11, 12, 13, 14, 12))
