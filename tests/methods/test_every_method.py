"""Properties of every method: trained parameters, source of new weights, equal outputs, published sizes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from methods.adapter import SequentialAdapter
from methods.adapters_library import AdaptersMethod
from methods.base import Method
from methods.bitfit import BitFit
from methods.classifier import Classifier
from methods.composed import Composed
from methods.das import DAS, DASOptions
from methods.full import Full
from methods.lora import LoRA, LoRAOptions
from methods.lst import LST
from methods.parallel import ParallelAdapter, ParallelAdapterOptions
from methods.prompts import DeepPrompt, ShallowPrompt
from methods.pumer import Pumer, PumerOptions
from methods.roe import RoE, RoEOptions
from methods.tome import Tome, TomeOptions
from methods.visual_prompt import TVP, VP, TVPOptions
from tests.support.small_vilt import mini

MAKERS: dict[str, Callable[[], Method[Any]]] = {
    "full": Full,
    "classifier": Classifier,
    "bitfit": BitFit,
    "lora": LoRA,
    "lora everywhere": lambda: LoRA(
        LoRAOptions(r=3, alpha=12.0, targets=("query", "key", "value", "output", "up", "down"), dropout=0.5)
    ),
    "adapter": SequentialAdapter,
    "parallel": ParallelAdapter,
    "parallel, learned scale": lambda: ParallelAdapter(ParallelAdapterOptions(learn_scale=True)),
    "shallow_prompt": ShallowPrompt,
    "deep_prompt": DeepPrompt,
    "roe": RoE,
    "roe, full": lambda: RoE(RoEOptions(tune="full")),
    "vp": VP,
    "tvp": lambda: TVP(TVPOptions(tse=0.0)),
    "lora+vp": lambda: Composed([LoRA(), VP()]),
    "lora+roe": lambda: Composed([LoRA(), RoE()]),
    "tome": Tome,
    "tome, joint": lambda: Tome(TomeOptions(joint=True)),
    "pumer": Pumer,
    "pumer, published": lambda: Pumer(PumerOptions(variant="published")),
    "lst": LST,
    "seq_bn": lambda: AdaptersMethod("seq_bn"),
    "dora": lambda: AdaptersMethod("dora"),
    "bitfit+adapter": lambda: Composed([BitFit(), SequentialAdapter()]),
    "das+lora": lambda: Composed([LoRA(), DAS(DASOptions(blocks=("3",)))]),
    "lora+pumer": lambda: Composed([LoRA(), Pumer()]),
    "adapter+seq_bn+tome": lambda: Composed([SequentialAdapter(), AdaptersMethod("seq_bn"), Tome()]),
    "das+deep_prompt": lambda: Composed([DAS(DASOptions(blocks=("3",))), DeepPrompt()]),
}
every_method = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())


def pooled(backbone: Backbone) -> torch.Tensor:
    return backbone(backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1)))


def adapted(method: Method[Any], seed: int = 0) -> ViltBackbone:
    backbone = mini()
    method.adapt(backbone, torch.Generator().manual_seed(seed))
    return backbone


def randomize(method: Method[Any], backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(7)
    for parameter in method.method_parameters(backbone):
        parameter.data.normal_(std=0.1, generator=generator)


@every_method
def test_exactly_the_methods_own_and_chosen_parameters_train(make: Callable[[], Method[Any]]) -> None:
    method = make()
    backbone = mini()
    kept = list(backbone.parameters())  # so that no new parameter gets the id of one that left
    pretrained = {id(p) for p in kept}
    method.adapt(backbone, torch.Generator().manual_seed(0))
    by_method = {
        "full": pretrained,
        "pumer": pretrained,
        "roe": pretrained if method.config().get("tune") == "full" else set(),
        "bitfit": pretrained & {id(p) for n, p in backbone.blocks.named_parameters() if n.endswith("bias")},
    }
    alone = [each.name for each in method.members if each.name != "pumer"] or [method.name]
    chosen = set().union(*(by_method.get(name, set()) for name in alone))
    own = {id(p) for p in method.method_parameters(backbone)}
    assert own == {id(p) for p in backbone.parameters()} - pretrained
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == own | chosen
    assert pretrained <= {id(p) for p in backbone.parameters()} or "das" in alone


@every_method
def test_every_trained_parameter_gets_a_gradient(make: Callable[[], Method[Any]]) -> None:
    method = make()
    backbone = adapted(method)
    randomize(method, backbone)
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    pooled(backbone.train()).square().sum().backward()
    trained = [(name, p.grad) for name, p in backbone.named_parameters() if p.requires_grad]
    assert [name for name, grad in trained if grad is None] == []
    # softmax does not see a shift of all scores: a key's bias has gradient 0 but for rounding
    assert [name for name, grad in trained if not grad.any() and not name.endswith("key.bias")] == []


@every_method
def test_weights_come_from_the_generator_alone(make: Callable[[], Method[Any]]) -> None:
    mini()
    before = torch.random.get_rng_state()
    first, again, other = (
        [p.detach() for p in method.method_parameters(adapted(method, seed))]
        for method, seed in ((make(), 0), (make(), 0), (make(), 1))
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = bool(first) and method_draws(make())
    assert drawn == any(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def method_draws(method: Method[Any]) -> bool:
    """Frames of pixels start at 0."""
    return any(each.name not in ("vp", "tvp") for each in method.members or (method,))


@every_method
@torch.no_grad()
def test_finalizing_keeps_the_outputs(make: Callable[[], Method[Any]]) -> None:
    method = make()
    backbone = adapted(method)
    randomize(method, backbone)
    backbone.eval()
    before = pooled(backbone)
    method.finalize(backbone)
    torch.testing.assert_close(pooled(backbone), before, atol=1e-5, rtol=0)
    if method.name not in ("full", "classifier", "bitfit"):
        assert (before - pooled(mini())).abs().max() > 1e-3


@every_method
@torch.no_grad()
def test_a_copy_computes_the_same_on_its_own_weights(make: Callable[[], Method[Any]]) -> None:
    method = make()
    backbone = adapted(method).eval()
    randomize(method, backbone)
    before = pooled(backbone)
    twin = copy.deepcopy(backbone)
    for parameter in backbone.parameters():
        parameter.zero_()
    assert torch.equal(pooled(twin), before)


@every_method
@torch.no_grad()
def test_saved_weights_can_be_loaded_into_a_freshly_adapted_backbone(
    make: Callable[[], Method[Any]],
) -> None:
    method = make()
    backbone = adapted(method).eval()
    randomize(method, backbone)
    fresh = adapted(make(), seed=5).eval()
    fresh.load_state_dict(backbone.state_dict())
    assert torch.equal(pooled(fresh), pooled(backbone))


@pytest.mark.parametrize(
    "name", ["lora", "lora everywhere", "parallel", "bitfit", "classifier", "dora", "lst"]
)
@torch.no_grad()
def test_methods_that_should_start_as_the_identity_do(name: str) -> None:
    backbone = adapted(MAKERS[name]()).eval()
    torch.testing.assert_close(pooled(backbone), pooled(mini()), atol=1e-6, rtol=0)


class Shapes(nn.Module):
    """The parts of METER's fusion blocks that methods use: projections, slots, streams."""

    width = 768
    name = "meter"
    stream_names = ("text", "image")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ShapesBlock(stream) for stream in self.stream_names for _ in range(6))


class ShapesBlock(nn.Module):
    sublayers = ("self_attention", "cross_attention", "mlp")

    def __init__(self, stream: str) -> None:
        super().__init__()
        self.name = self.stream = stream
        self.maps = nn.ModuleDict(
            {
                f"{kind}:{role}": nn.Linear(768, 768)
                for kind in self.sublayers[:2]
                for role in ("query", "value")
            }
        )
        self.sequential = nn.ModuleDict()
        self.parallel = nn.ModuleDict()

    def projections(self) -> dict[str, nn.Module]:
        return {role.replace(":", "."): module for role, module in self.maps.items()}

    def set_projection(self, role: str, module: nn.Module) -> None:
        self.maps[role.replace(".", ":")] = module


def count(method: Method[Any], backbone: Any) -> int:
    method.adapt(backbone, torch.Generator())
    return sum(p.numel() for p in method.method_parameters(backbone))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (LoRA(), 294_912),
        (SequentialAdapter(), 5_339_520),
        (ParallelAdapter(), 3_596_544),
        (ShallowPrompt(), 307_200),
        (DeepPrompt(), 1_843_200),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_sizes_on_meter_are_the_published_ones(method: Method[Any], expected: int) -> None:
    with torch.device("meta"):
        backbone = Shapes()
    assert count(method, backbone) == expected


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (LoRA(), 12 * 2 * 4 * (768 + 768)),
        (SequentialAdapter(), 12 * 2 * 148_320),
        (ParallelAdapter(), 12 * 2 * 149_856),
        (ShallowPrompt(), 200 * 768),
        (DeepPrompt(), 12 * 200 * 768),
        (Full(), 0),
        (Classifier(), 0),
        (BitFit(), 0),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_sizes_on_full_size_vilt_follow_the_closed_form(method: Method[Any], expected: int) -> None:
    with torch.device("meta"):
        backbone = ViltBackbone(full_size_config(), ViltProcessor(None, 384, 32, 40))
    assert count(method, backbone) == expected
