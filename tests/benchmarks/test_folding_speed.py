"""Time saved by folding: deployed forms against the trained ones and against the folded untouched backbone.

    pytest -o addopts= tests/benchmarks/test_folding_speed.py        (-m quick for the small backbones, one thread)

Everything of a group is measured in one interleaved run at batch 1. With one thread times are CPU times, which other
programs on the machine disturb less than the wall clock. Bars are kept beside the times; no test fails because of a
time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone, BackboneOptions
from harness.measure.flops import count_macs
from harness.measure.latency import Clock, measure_latency
from harness.process import prepare_process
from harness.registry import resolve_backbone
from methods.adapter import SequentialAdapter
from methods.base import Method
from methods.das import DAS, DASOptions
from methods.full import Full
from methods.parallel import ParallelAdapter
from tests.benchmarks.groups import Group, Measured, in_groups

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


def measure(
    cases: dict[str, Case],
    backbones: dict[str, Backbone],
    runs: dict[str, Callable[[], object]],
    count: int,
    iterations: int,
) -> Measured:
    """All of a group, interleaved. With one thread, times are CPU times."""
    macs = {
        name: count_macs(
            backbone, nn.Identity(), runs[name], (), text_length=TEXT, image_size=(1, 1)
        ).macs_total
        for name, backbone in backbones.items()
    }
    with threads(count) as clock:
        samples = measure_latency(
            runs, CPU, min_iterations=iterations, min_seconds=0, warmup=min(10, iterations), clock=clock
        )
    found = {}
    for name, case in cases.items():
        share = macs[name] / macs[REFERENCE]
        bar = case.bar if case.margin is None else share + case.margin
        kept = {
            "macs": macs[name],
            "share_of_macs": share,
            "bar": bar,
            "threads": count,
            "clock": clock.__name__,
        }
        found[name] = ([each / 1000 for each in samples[name].samples_ms], kept)
    return found


def measure_forward(
    name: str, cases: dict[str, Case], size: tuple[int, int], weights: str | None, count: int, iterations: int
) -> Measured:
    prepare_process()  # as every run does
    backbones = {label: build(name, case, weights) for label, case in cases.items()}
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, size, torch.Generator().manual_seed(0))
    runs = {label: forward(backbone, inputs) for label, backbone in backbones.items()}
    return measure(cases, backbones, runs, count, iterations)


def measure_fusion(
    name: str, cases: dict[str, Case], size: tuple[int, int], weights: str | None, count: int, iterations: int
) -> Measured:
    prepare_process()
    backbones = {label: build(name, case, weights) for label, case in cases.items()}
    inputs = backbones[REFERENCE].example_inputs(1, TEXT, size, torch.Generator().manual_seed(0))
    with torch.inference_mode():
        streams = backbones[REFERENCE].encode(inputs)
    runs = {label: fusion(backbone, streams) for label, backbone in backbones.items()}
    return measure(cases, backbones, runs, count, iterations)


def groups() -> list[Group]:
    found = []
    for title, how, name, cases, size, weights, iterations in (
        ("vilt-mini, forward", measure_forward, "vilt-mini", VILT_MINI, (64, 64), None, 400),
        ("meter-mini, fusion stage", measure_fusion, "meter-mini", METER_MINI, (64, 64), None, 400),
        ("ViLT-B/32, 384x576, forward", measure_forward, "vilt", VILT, (384, 576), "random", 15),
        ("METER, 384x384, fusion stage", measure_fusion, "meter", METER, (384, 384), "random", 15),
    ):
        for count in (1, 2):
            run = partial(how, name, cases, size, weights, count, iterations)
            quick = weights is None and count == 1
            found.append(Group(f"{title}, {count} thread(s)", tuple(cases), REFERENCE, run, quick))
    return found


@in_groups(groups())
def test_folding(group: Group, contestant: str, benchmark: Any) -> None:
    group.hand_over(contestant, benchmark)
