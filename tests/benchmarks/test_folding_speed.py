"""Time saved by folding: deployed forms against the trained ones and against the folded untouched backbone.

    pytest -o addopts= tests/benchmarks/test_folding_speed.py -s        (-k mini for the small backbones only)

Everything of a table is measured in one interleaved run at batch 1. With OMP_NUM_THREADS=1 times are CPU times,
which other programs on the machine disturb less than the wall clock. The bars are stated beside what was measured;
nothing fails over a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.measure.flops import count_macs
from harness.measure.latency import Clock, LatencySample, latency_ratio, measure_latency
from harness.process import prepare_process
from harness.registry import resolve_backbone
from methods.adapter import SequentialAdapter
from methods.base import Method
from methods.das import DAS, DASOptions
from methods.full import Full
from methods.parallel import ParallelAdapter

CPU = torch.device("cpu")
TEXT = 40
REFERENCE = "untouched, folded"

TWO, FOUR = ("3", "7"), ("2", "5", "7", "9")
TWO_AND_TWO = ("text.2", "text.4", "image.1", "image.3")


@dataclass(frozen=True)
class Case:
    """A method in its trained or deployed form.

    bar: upper limit of its time as a multiple of the reference's, if there is one. margin: instead of a bar, by how
    much the time ratio may exceed the ratio of MACs.
    """

    method: Callable[[], Method[Any]]
    deployed: bool = True
    bar: float | None = None
    margin: float | None = None


def das(blocks: tuple[str, ...]) -> Callable[[], Method[Any]]:
    return lambda: DAS(DASOptions(blocks=blocks))


VILT_MINI = {
    REFERENCE: Case(Full),
    "untouched, as loaded": Case(Full, deployed=False),
    "parallel, as trained": Case(ParallelAdapter, deployed=False),
    "parallel": Case(ParallelAdapter, bar=1.05),
    "adapter, as trained": Case(SequentialAdapter, deployed=False),
    "adapter": Case(SequentialAdapter),
    "DAS, 2 of 12, as trained": Case(das(TWO), deployed=False),
    "DAS, 2 of 12": Case(das(TWO), bar=0.90),
    "DAS, 4 of 12, as trained": Case(das(FOUR), deployed=False),
    "DAS, 4 of 12": Case(das(FOUR), bar=0.76),
}
METER_MINI = {
    REFERENCE: Case(Full),
    "untouched, as loaded": Case(Full, deployed=False),
    "parallel, as trained": Case(ParallelAdapter, deployed=False),
    "parallel": Case(ParallelAdapter),
    "DAS, 2 + 2 of 12, as trained": Case(das(TWO_AND_TWO), deployed=False),
    "DAS, 2 + 2 of 12": Case(das(TWO_AND_TWO)),
}
VILT = {
    REFERENCE: Case(Full),
    "untouched, as loaded": Case(Full, deployed=False),
    "DAS, 4 of 12": Case(das(FOUR), margin=0.02),
}
METER = {
    REFERENCE: Case(Full),
    "untouched, as loaded": Case(Full, deployed=False),
    "DAS, 2 + 2 of 12": Case(das(TWO_AND_TWO), margin=0.02),
}


@contextmanager
def threads(count: int) -> Iterator[Clock]:
    """Run the block with this number of torch threads; yields the clock for measurements."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield time.process_time if count == 1 else time.perf_counter
    finally:
        torch.set_num_threads(before)


def build(name: str, case: Case, weights: str | None) -> Backbone:
    backbone = resolve_backbone(name)(BackboneOptions(weights=weights))
    method = case.method()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in method.method_parameters(backbone):
            parameter.add_(torch.empty_like(parameter).normal_(std=0.02, generator=generator))
    if case.deployed:
        method.finalize(backbone)
    return backbone.requires_grad_(False).eval()


def fusion(backbone: Backbone, streams: Any) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run() -> Tensor:
        return backbone.fuse(streams)

    return run


def forward(backbone: Backbone, inputs: Any) -> Callable[[], Tensor]:
    @torch.inference_mode()
    def run() -> Tensor:
        pooled: Tensor = backbone(inputs)
        return pooled

    return run


def compare(
    title: str,
    cases: dict[str, Case],
    runs: dict[str, Callable[[], object]],
    backbones: dict[str, Backbone],
    clock: Clock,
    iterations: int,
) -> None:
    macs = {
        name: count_macs(
            backbone, nn.Identity(), runs[name], (), text_length=TEXT, image_size=(1, 1)
        ).macs_total
        for name, backbone in backbones.items()
    }
    samples = measure_latency(
        runs, CPU, min_iterations=iterations, min_seconds=0, warmup=min(10, iterations), clock=clock
    )
    first = samples[REFERENCE]
    print(f"\n{title}, batch 1, text {TEXT}, {first.threads} thread(s), n = {first.n}, {clock.__name__}")
    print(f"{'':32}{'p50 ms':>9}{'p90 ms':>9}{'GMACs':>9}{'share':>7}  time / {REFERENCE} [95 %]")
    for name, sample in samples.items():
        print(line(name, cases[name], sample, first, macs))


def line(name: str, case: Case, sample: LatencySample, first: LatencySample, macs: dict[str, int]) -> str:
    ratio = latency_ratio(sample, first)
    share = macs[name] / macs[REFERENCE]
    text = (
        f"{name:32}{sample.p50:9.3f}{sample.p90:9.3f}{macs[name] / 1e9:9.3f}{share:7.3f}"
        f"  {ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    )
    bar = case.bar if case.margin is None else share + case.margin
    return text if bar is None else f"{text}  bar {bar:.3f}: {'kept' if ratio.ratio <= bar else 'missed'}"


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2], ids=lambda count: f"{count}-threads")
def test_vilt_mini(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_process()  # as every run does
    backbones = {name: build("vilt-mini", case, None) for name, case in VILT_MINI.items()}
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, (64, 64), torch.Generator().manual_seed(0))
    runs = {name: forward(backbone, inputs) for name, backbone in backbones.items()}
    with capsys.disabled(), threads(count) as clock:
        compare("vilt-mini, forward", VILT_MINI, runs, backbones, clock, 400)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("count", [1, 2], ids=lambda count: f"{count}-threads")
def test_meter_mini(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_process()
    backbones = {name: build("meter-mini", case, None) for name, case in METER_MINI.items()}
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, (64, 64), torch.Generator().manual_seed(0))
    with torch.inference_mode():
        streams = backbones[REFERENCE].encode(inputs)
    runs = {name: fusion(backbone, streams) for name, backbone in backbones.items()}
    with capsys.disabled(), threads(count) as clock:
        compare("meter-mini, fusion stage", METER_MINI, runs, backbones, clock, 400)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 2], ids=lambda count: f"{count}-threads")
def test_full_size_vilt(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_process()
    backbones = {name: build("vilt", case, "random") for name, case in VILT.items()}
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, (384, 576), torch.Generator().manual_seed(0))
    runs = {name: forward(backbone, inputs) for name, backbone in backbones.items()}
    with capsys.disabled(), threads(count) as clock:
        compare("ViLT-B/32, 384x576, forward", VILT, runs, backbones, clock, 15)


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 2], ids=lambda count: f"{count}-threads")
def test_full_size_meter(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    prepare_process()
    backbones = {name: build("meter", case, "random") for name, case in METER.items()}
    generator = torch.Generator().manual_seed(0)
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, (384, 384), generator)
    with torch.inference_mode():
        streams = backbones[REFERENCE].encode(inputs)
    runs = {name: fusion(backbone, streams) for name, backbone in backbones.items()}
    with capsys.disabled(), threads(count) as clock:
        compare("METER, 384x384, fusion stage", METER, runs, backbones, clock, 15)
