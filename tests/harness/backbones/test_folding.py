"""Deployed blocks are equal to the trained ones, for every method, backbone, mask and batch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones import kernels
from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, Tokens
from harness.backbones.folded import FoldedPart, Reading
from harness.backbones.folding import Affine, Branch, Norm, fold
from harness.backbones.inputs import Stream, Streams
from harness.backbones.meter.block import MeterBlock
from harness.backbones.meter.folded import FoldedMeterBlock
from harness.backbones.vilt.block import ViltBlock
from harness.backbones.vilt.folded import FoldedViltBlock
from methods.base import Method
from methods.bottleneck import BottleneckAdapter
from methods.parallel import ParallelAdapter
from tests.support.folding import (
    METHODS,
    adapted,
    das,
    kept_blocks,
    randomize,
    streams_of,
    tiny_vilt,
    tokens_after,
)

MAKERS: dict[str, Callable[[Backbone], Method[Any]]] = {
    **{name: (lambda backbone, make=make: make()) for name, make in METHODS.items()},
    "das": das,
    "das, published": lambda backbone: das(backbone, variant="published"),
}
every_method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
HOOKED = ("seq_bn", "par_bn")
"""The adapters library's bottlenecks are called by hooks."""


@pytest.fixture(params=["vilt", "meter"])
def fresh(request: pytest.FixtureRequest, make_meter: Callable[..., Backbone]) -> Callable[[], Backbone]:
    return tiny_vilt if request.param == "vilt" else make_meter  # type: ignore[no-any-return]


def branch_on(norm: Norm, activation: Any = "relu") -> Branch:
    """Two hidden units, x and −x of the first feature, that are passed on as they are."""
    down = Affine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(2))
    return Branch(down, Affine(torch.eye(2), torch.zeros(2)), activation, norm, residual=False)


def test_relu_beside_gelu_becomes_a_steep_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    norm = Norm(torch.ones(2), torch.zeros(2), eps=1e-12)
    found = branch_on(norm).with_gelu_if_faster(eps=1e-12)
    assert found.activation == "gelu"
    x = torch.cat([torch.linspace(-8, 8, 10_001), torch.tensor([-1e30, 1e30])])[:, None]
    inner = F.gelu(F.linear(F.pad(x, (0, 1)), found.down.weight, found.down.bias))
    result = F.linear(inner, found.up.weight, found.up.bias)
    torch.testing.assert_close(result, torch.cat([x, -x], 1).relu(), atol=2e-7, rtol=0)


@pytest.mark.parametrize("kept", ["gelu", "another epsilon", "an accelerator"])
def test_relu_stays_where_gelu_would_not_be_faster(kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kept == "an accelerator")
    branch = branch_on(Norm(torch.ones(2), torch.zeros(2), 1e-12), "gelu" if kept == "gelu" else "relu")
    assert branch.with_gelu_if_faster(eps=1e-5 if kept == "another epsilon" else 1e-12) is branch


def doubled(streams: Streams) -> Streams:
    return {
        name: Stream(stream.hidden.double(), stream.mask, stream.token_type, stream.text_length)
        for name, stream in streams.items()
    }


def cases(backbone: Backbone) -> dict[str, tuple[Streams, int | None]]:
    return {
        f"padded {padded}, batch {batch}, queries {queries}": (streams_of(backbone, batch, padded), queries)
        for padded in (None, "text", "image")
        for batch in (1, 3)
        for queries in (None, 1, 2)
    }


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float, what: str) -> None:
    """The largest difference is at most `tolerance` times 1 or the largest absolute value, whichever is greater."""
    assert found.keys() == expected.keys()
    for name in expected:
        assert found[name].shape == expected[name].shape
        allowed = tolerance * max(1.0, expected[name].abs().max().item())
        assert (found[name] - expected[name]).abs().max().item() <= allowed, f"{what}: {name}"


@every_method
def test_the_deployed_form_equals_the_trained_one(
    make: Callable[[Backbone], Method[Any]], fresh: Callable[[], Backbone]
) -> None:
    backbone = fresh()
    method = make(backbone)
    adapted(backbone, method)
    before = {what: tokens_after(backbone, *case) for what, case in cases(backbone).items()}
    method.finalize(backbone)
    for what, case in cases(backbone).items():
        assert_equal(tokens_after(backbone, *case), before[what], 1e-5, what)
    if method.name not in HOOKED:
        folded = {FoldedViltBlock, FoldedMeterBlock}
        assert {type(block) for block in kept_blocks(backbone)} <= folded


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("name", ["full", "adapter", "parallel", "das", "das, published"])
def test_the_deployed_form_equals_the_trained_one_by_onednn(
    name: str, fresh: Callable[[], Backbone], monkeypatch: pytest.MonkeyPatch
) -> None:
    onednn, runs = kernels._onednn, []
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(kernels, "WIDE", 8)
    monkeypatch.setattr(kernels, "_onednn", lambda *inputs: runs.append(0) or onednn(*inputs))
    backbone = fresh()
    method = MAKERS[name](backbone)
    adapted(backbone, method)
    before = {what: tokens_after(backbone, *case) for what, case in cases(backbone).items()}
    assert not runs
    method.finalize(backbone)
    for what, case in cases(backbone).items():
        assert_equal(tokens_after(backbone, *case), before[what], 1e-5, what)
    assert len(runs) >= 4 * len(list(kept_blocks(backbone))) * len(before)


@every_method
def test_forms_differ_only_by_rounding_in_double_precision(
    make: Callable[[Backbone], Method[Any]], fresh: Callable[[], Backbone]
) -> None:
    backbone = fresh()
    method = make(backbone)
    adapted(backbone, method).double()
    streams = doubled(streams_of(backbone, 3, "text"))
    before = tokens_after(backbone, streams)
    method.finalize(backbone)
    assert_equal(tokens_after(backbone, streams), before, 1e-12, method.name)


@pytest.mark.parametrize("name", ["full", "lora", "adapter", "parallel", "parallel without norm", "das"])
def test_half_precision_is_close(name: str, fresh: Callable[[], Backbone]) -> None:
    backbone = fresh()
    method = MAKERS[name](backbone)
    adapted(backbone, method)
    streams = streams_of(backbone, 3, "text")
    before = tokens_after(backbone, streams)
    method.finalize(backbone)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = tokens_after(backbone, streams)
    backbone.to(torch.bfloat16)
    halved = {
        key: Stream(each.hidden.bfloat16(), each.mask, each.token_type, each.text_length)
        for key, each in streams.items()
    }
    for found in (tokens_after(backbone, halved), mixed):
        for stream, expected in before.items():
            error = (found[stream].float() - expected).square().mean().sqrt()
            assert error < 0.03 * expected.square().mean().sqrt()


@pytest.mark.parametrize("name", ["full", "adapter", "parallel", "das", "das, published", "deep_prompt"])
def test_copies_and_saved_weights_compute_the_same(name: str, fresh: Callable[[], Backbone]) -> None:
    backbone, other = fresh(), fresh()
    for each in (backbone, other):
        method = MAKERS[name](each)
        adapted(each, method)
        method.finalize(each)
    streams = streams_of(backbone, 2)
    before = tokens_after(backbone, streams)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.normal_()
    other.load_state_dict(backbone.state_dict())
    twin = copy.deepcopy(backbone)
    for parameter in backbone.parameters():
        nn.init.zeros_(parameter)
    assert_equal(tokens_after(twin, streams), before, 0, "copy")
    assert_equal(tokens_after(other, streams), before, 0, "loaded")


def test_folded_blocks_keep_no_module_of_the_training_form(fresh: Callable[[], Backbone]) -> None:
    backbone = fresh()
    method = MAKERS["parallel"](backbone)
    adapted(backbone, method)
    method.finalize(backbone)
    left = {type(module) for block in backbone.blocks for module in block.modules()}
    assert not left & {nn.ModuleDict, nn.Dropout, nn.Linear, nn.LayerNorm, BottleneckAdapter}
    assert not any(parameter.requires_grad for parameter in backbone.blocks.parameters())
    assert not backbone.blocks.training


def test_folding_leaves_shared_weights_alone(fresh: Callable[[], Backbone]) -> None:
    backbone = adapted(fresh(), MAKERS["parallel"](fresh()))
    kept = copy.deepcopy(backbone.state_dict())
    sharing = copy.deepcopy(backbone, {id(parameter): parameter for parameter in backbone.parameters()})
    fold(sharing)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in backbone.state_dict().items())


def test_folding_a_second_time_changes_nothing(fresh: Callable[[], Backbone]) -> None:
    backbone = adapted(fresh(), MAKERS["das"](fresh()))
    fold(backbone)
    once = list(backbone.blocks)
    fold(backbone)
    for before, after in zip(once, backbone.blocks, strict=True):
        assert after.state_dict().keys() == before.state_dict().keys()
        assert all(torch.equal(after.state_dict()[name], each) for name, each in before.state_dict().items())


class Shift(nn.Module):
    """A module that folding does not know."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + 1


class OtherAdapter(BottleneckAdapter):
    """Has the parameters of a branch but another forward pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * 2


def put_module(block: Any) -> None:
    block.sequential[block.sublayers[0]] = Shift()


def put_subclass(block: Any) -> None:
    width = block.projections()["mlp.up"].in_features
    block.parallel["mlp"] = OtherAdapter(width, 3, torch.Generator().manual_seed(0))


def put_two(block: Any) -> None:
    width = block.projections()["mlp.up"].in_features
    block.parallel["mlp"] = BottleneckAdapter(width, 3, torch.Generator().manual_seed(0))
    block.sequential["mlp"] = BottleneckAdapter(width, 3, torch.Generator().manual_seed(1), residual=True)


def put_residual_beside(block: Any) -> None:
    width = block.projections()["mlp.up"].in_features
    block.parallel["mlp"] = BottleneckAdapter(width, 3, torch.Generator().manual_seed(0), residual=True)


def put_norm_in_series(block: Any) -> None:
    width = block.projections()["mlp.up"].in_features
    adapter = BottleneckAdapter(width, 3, torch.Generator(), residual=True, layer_norm=True)
    block.sequential["mlp"] = adapter


def wrap_projection(block: Any) -> None:
    block.set_projection("mlp.up", nn.Sequential(block.projections()["mlp.up"], Shift()))


def prune(block: Any) -> None:
    width = block.projections()["mlp.up"].in_features
    block.set_projection("mlp.up", nn.Linear(width, 10))
    block.set_projection("mlp.down", nn.Linear(10, width))


def hook(block: Any) -> None:
    block.projections()["mlp.down"].register_forward_hook(lambda module, args, out: out + 1)


def replace_forward(block: Any) -> None:
    linear = block.projections()["mlp.down"]
    linear.forward = lambda hidden: hidden @ linear.weight.T


@pytest.mark.parametrize(
    "change",
    [
        put_module,
        put_subclass,
        put_two,
        put_residual_beside,
        put_norm_in_series,
        wrap_projection,
        prune,
        hook,
        replace_forward,
    ],
    ids=lambda change: change.__name__,
)
def test_block_with_an_unknown_module_is_not_folded(
    change: Callable[[Any], None], fresh: Callable[[], Backbone]
) -> None:
    backbone = adapted(fresh(), MAKERS["full"](fresh()))
    change(backbone.blocks[1])
    streams = streams_of(backbone, 2, "text")
    before, unknown = tokens_after(backbone, streams), backbone.blocks[1]
    fold(backbone)
    assert backbone.blocks[1] is unknown
    assert isinstance(backbone.blocks[0], FoldedViltBlock | FoldedMeterBlock)
    assert_equal(tokens_after(backbone, streams), before, 1e-5, change.__name__)


def test_subclass_of_a_block_is_not_folded() -> None:
    class Loud(ViltBlock):
        pass

    backbone = tiny_vilt()
    backbone.blocks[0] = Loud(backbone.config, 0)
    fold(backbone)
    assert type(backbone.blocks[0]) is Loud


def test_meters_block_needs_its_context(make_meter: Callable[..., Backbone]) -> None:
    backbone = make_meter().eval()
    assert isinstance(backbone.blocks[0], MeterBlock)
    fold(backbone)
    with pytest.raises(ValueError, match=r"text\.0 attends to the other stream"):
        backbone.blocks[0](BlockInput(Tokens(torch.zeros(1, 2, 64))))


def test_adapter_with_the_blocks_epsilon_becomes_rows_of_the_blocks_product() -> None:
    backbone = tiny_vilt()
    method = ParallelAdapter()
    adapted(backbone, method)
    adapter = backbone.blocks[0].parallel["attention"]
    assert adapter.norm.eps == backbone.blocks[0].layernorm_before.eps == 1e-6
    expected = adapter.down.weight * adapter.norm.weight
    method.finalize(backbone)
    reading = backbone.blocks[0].attention.reading
    assert isinstance(reading, Reading)
    assert reading.rescaled is None
    assert reading.weight.shape == (4 + 3 * 32, 32)
    torch.testing.assert_close(reading.weight[:4], expected)


def test_gain_and_offset_of_a_norm_are_merged_into_the_next_map() -> None:
    hidden, map_ = torch.randn(5, 6), Affine(torch.randn(3, 6), torch.randn(3))
    norm = Norm(torch.randn(6), torch.randn(6), 1e-5)
    plain = torch.nn.functional.layer_norm(hidden, (6,), eps=1e-5)
    folded = map_.after_norm(norm)
    torch.testing.assert_close(
        plain @ folded.weight.T + folded.bias,
        (plain * norm.gain + norm.offset) @ map_.weight.T + map_.bias,
    )


def test_centred_map_ignores_the_mean() -> None:
    hidden, map_ = torch.randn(5, 6), Affine(torch.randn(3, 6), torch.zeros(3))
    centred = map_.centred().weight
    torch.testing.assert_close(hidden @ centred.T, (hidden - hidden.mean(1, keepdim=True)) @ map_.weight.T)


@pytest.mark.parametrize("name", ["full", "adapter", "parallel", "das, published"])
def test_gradients_are_those_of_the_trained_form(name: str, fresh: Callable[[], Backbone]) -> None:
    trained = adapted(fresh(), MAKERS[name](fresh()))
    trained.requires_grad_(False)
    gradients = []
    for backbone in (trained, copy.deepcopy(trained)):
        if gradients:
            fold(backbone)
        streams = streams_of(backbone, 2)
        for stream in streams.values():
            stream.hidden.requires_grad_(True)
        after = backbone.run_blocks(streams)  # type: ignore[operator]
        sum(tokens.hidden.square().sum() for tokens in after.values()).backward()
        gradients.append({key: stream.hidden.grad for key, stream in streams.items()})
    assert_equal(gradients[1], gradients[0], 1e-5, name)


def test_randomize_changes_every_gain_and_bias() -> None:
    backbone = tiny_vilt()
    before = copy.deepcopy(backbone.blocks.state_dict())
    randomize(backbone)
    assert not any(torch.equal(each, before[name]) for name, each in backbone.blocks.state_dict().items())
    assert not any(isinstance(module, FoldedPart) for module in backbone.modules())
