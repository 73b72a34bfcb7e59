"""Parameters and MACs of deployed models, whose matrices hold backbone and method weights, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.folding import fold
from harness.backbones.inputs import Stream
from harness.backbones.meter.model import MeterBackbone
from harness.measure.flops import ComputeCounts, common_elements, count_forward, count_macs
from harness.measure.parameters import ParameterCounts, count_parameters
from methods.adapter import SequentialAdapter, SequentialAdapterOptions
from methods.base import Method, freeze
from methods.das import DAS, DASOptions
from methods.parallel import ParallelAdapter, ParallelAdapterOptions
from tasks.base import Batch
from tests.support.folding import METHODS, das, tiny_vilt

D, BLOCKS = 32, 3
"""Of the small ViLT."""
METER_D = 64
R = 5
LENGTH, SIZE = 6, (32, 32)
TOKENS = LENGTH + 1 + 4


class Features:
    images_per_example = 1

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        logits: Tensor = head(backbone(batch.inputs[0]))
        return logits


def deploy(backbone: Backbone, method: Method[Any]) -> tuple[ParameterCounts, ParameterCounts]:
    """Adapt and finalize; returns the parameter counts before and after."""
    method.adapt(backbone, torch.Generator().manual_seed(0))
    head = nn.Linear(backbone.feature_dim, 3)
    before = count_parameters(backbone, head, method.method_modules(backbone))
    method.finalize(backbone)
    return before, count_parameters(backbone, head, method.method_modules(backbone))


def macs(backbone: Backbone, method: Method[Any] | None) -> ComputeCounts:
    head = nn.Linear(backbone.feature_dim, 3)
    return count_forward(Features(), backbone, head, method, image_size=SIZE, text_length=LENGTH)


def of_both(method: Method[Any], backbone: Backbone) -> tuple[ComputeCounts, ComputeCounts]:
    method.adapt(backbone, torch.Generator().manual_seed(0))
    before = macs(backbone, method)
    method.finalize(backbone)
    return before, macs(backbone, method)


def test_gains_and_offsets_of_vilts_norms_are_folded_away() -> None:
    backbone = tiny_vilt()
    total = count_parameters(backbone, nn.Linear(D, 3), []).total
    fold(backbone)
    counts = count_parameters(backbone, nn.Linear(D, 3), [])
    assert counts.total == total - BLOCKS * 2 * 2 * D
    assert counts.method == counts.method_frozen == 0


def test_meters_norms_keep_their_parameters(make_meter: Callable[..., MeterBackbone]) -> None:
    backbone = make_meter()
    total = count_parameters(backbone, nn.Linear(2 * METER_D, 3), []).total
    fold(backbone)
    assert count_parameters(backbone, nn.Linear(2 * METER_D, 3), []).total == total


def test_two_matrices_and_the_inner_bias_of_a_parallel_adapter_remain() -> None:
    before, after = deploy(tiny_vilt(), ParallelAdapter(ParallelAdapterOptions(bottleneck=R)))
    adapters = BLOCKS * 2
    assert before.method == adapters * (2 * D * R + R + D + 2 * D)
    assert (after.method, after.method_frozen) == (0, adapters * (2 * D * R + R))
    untouched = tiny_vilt()
    fold(untouched)
    assert after.backbone == count_parameters(untouched, nn.Linear(D, 3), []).total - 3 * D - 3


def test_a_sequential_adapter_has_the_same_two_matrices() -> None:
    _, after = deploy(tiny_vilt(), SequentialAdapter(SequentialAdapterOptions(bottleneck=R)))
    assert after.method_frozen == BLOCKS * 2 * (2 * D * R + R)


def test_rescaled_rows_have_a_bias_of_their_own(make_meter: Callable[..., MeterBackbone]) -> None:
    published = DAS(DASOptions(blocks=("0",), variant="published", bottleneck=R, shortcut_bottleneck=7))
    _, after = deploy(tiny_vilt(), published)
    shortcut = 2 * D * 7 + 7 + D
    assert after.method + after.method_frozen == 2 * 2 * (2 * D * R + 2 * R) + shortcut
    on_meter = DAS(DASOptions(blocks=("text.0",), bottleneck=R, shortcut_bottleneck=7))
    _, after = deploy(make_meter(), on_meter)
    shortcut, token = 2 * METER_D * 7 + 7 + METER_D, METER_D
    assert after.method + after.method_frozen == 3 * 3 * (2 * METER_D * R + 2 * R) + shortcut + token


@pytest.mark.parametrize("name", [*METHODS, "das"])
def test_deployed_model_has_no_more_parameters_than_the_trained_one(
    name: str, make_meter: Callable[..., MeterBackbone]
) -> None:
    for backbone in (tiny_vilt(), make_meter()):
        before, after = deploy(backbone, das(backbone) if name == "das" else METHODS[name]())
        assert after.total <= before.total
        assert after.backbone <= before.backbone


@pytest.mark.parametrize("name", [*METHODS, "das"])
def test_macs_are_the_same_by_component_or_fewer(name: str, make_meter: Callable[..., MeterBackbone]) -> None:
    for backbone in (tiny_vilt(), make_meter()):
        untouched = macs(backbone, None)
        method = das(backbone) if name == "das" else METHODS[name]()
        before, after = of_both(method, backbone)
        if "lora" in name or name in ("ia3", "dora"):
            assert after.macs == untouched.macs
        else:
            assert after.macs == before.macs


def test_adapters_of_kept_blocks_are_counted_in_closed_form() -> None:
    method = DAS(DASOptions(blocks=("1",), bottleneck=R, shortcut_bottleneck=7))
    before, after = of_both(method, tiny_vilt())
    block = (4 * D**2 + 2 * D * 64) * TOKENS + 2 * D * TOKENS**2
    assert after.macs["fusion"] == 2 * block
    assert after.macs["method"] == (2 * 2 * 2 * D * R + 2 * D * 7) * TOKENS
    assert after.macs == before.macs
    # The block's own norms serve its adapters; the shortcut has one.
    elements = after.layer_norm_elements
    assert elements["method"] == TOKENS * D
    assert elements["fusion"] == 2 * 2 * TOKENS * D + D


def test_a_composed_product_counts_the_adapters_share(make_meter: Callable[..., MeterBackbone]) -> None:
    method = SequentialAdapter(SequentialAdapterOptions(bottleneck=R))
    _, after = of_both(method, make_meter())
    tokens = LENGTH + 1 + 4
    assert after.macs["method"] == 2 * 3 * 2 * METER_D * R * tokens


def test_norms_of_adapters_on_post_norm_blocks_are_still_counted(
    make_meter: Callable[..., MeterBackbone],
) -> None:
    before, after = of_both(ParallelAdapter(), make_meter())
    assert sum(after.layer_norm_elements.values()) == sum(before.layer_norm_elements.values())
    assert after.with_layer_norm_total == before.with_layer_norm_total


def test_only_keys_and_values_are_counted_for_unwanted_tokens() -> None:
    backbone, method = tiny_vilt(), ParallelAdapter(ParallelAdapterOptions(bottleneck=R))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    freeze(backbone)
    method.finalize(backbone)
    streams = {"joint": Stream(torch.randn(1, TOKENS, D))}
    counts = count_macs(
        backbone,
        nn.Identity(),
        lambda: backbone.run_blocks(streams, 1),
        (),
        text_length=LENGTH,
        image_size=SIZE,
    )
    adapters, block = 2 * 2 * D * R, 4 * D**2 + 2 * D * 64
    last = 2 * D**2 * TOKENS + 2 * D**2 + 2 * D * 64 + 2 * D * TOKENS
    assert counts.macs["method"] == 2 * adapters * TOKENS + adapters
    assert counts.macs["fusion"] == 2 * (block * TOKENS + 2 * D * TOKENS**2) + last


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (lambda m: m, lambda m: m[:2], 2 * 7),
        (lambda m: m.t(), lambda m: m[:2], 2 * 7),
        (lambda m: m.t(), lambda m: m[:, :3], 5 * 3),
        (lambda m: m[1:4], lambda m: m[:2], 7),
        (lambda m: m[2:].t(), lambda m: m[:2], 0),
        (lambda m: m[1:3, 2:6], lambda m: m[2:, :4], 2),
        (lambda m: m[:1].t(), lambda m: m[:1], 7),
        (lambda m: m, lambda m: m[0], 0),
    ],
)
def test_common_elements_of_two_views(
    one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], expected: int
) -> None:
    matrix = torch.zeros(5, 7)
    assert common_elements(one(matrix), other(matrix)) == expected
