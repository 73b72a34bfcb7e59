"""Training starts with the weights of the search: equal outputs, with the names of the adapted model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.meter.loading import load_meter_mini
from harness.backbones.vilt.loading import load_vilt_mini
from methods.das import DAS, DASOptions
from methods.das_decision import DASDecision
from methods.skipping import skip_only

LOADERS = {"vilt-mini": load_vilt_mini, "meter-mini": load_meter_mini}
SKIPPED = {"vilt-mini": ("joint.1", "joint.10"), "meter-mini": ("text.1", "text.4", "image.0", "image.5")}


class Untrained:
    """A trainer that trains nothing, so that a search only builds its super-network."""

    steps_per_epoch = 1

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.generator = seeded()

    def train(self, *_: Any) -> None:
        pass


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def trained(backbone: Backbone) -> dict[str, Tensor]:
    return {f"backbone.{name}": p for name, p in backbone.named_parameters() if p.requires_grad}


def pooled(backbone: Backbone) -> Tensor:
    return backbone.eval()(backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("name", LOADERS)
def test_training_starts_with_the_outputs_of_the_searched_model(name: str) -> None:
    options = BackboneOptions(weights="random")
    supernet = LOADERS[name](options)
    method = DAS()
    method.search(Untrained(supernet))  # type: ignore[arg-type]
    method.decide(DASDecision(SKIPPED[name]))
    with torch.no_grad():
        for parameter in trained(supernet).values():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=seeded()))
    skip_only(supernet, tuple(supernet.block_names.index(block) for block in method.chosen))

    backbone = LOADERS[name](options)  # the same random weights
    method.adapt(backbone, seeded())
    fresh = pooled(backbone)
    head = {"head.weight": torch.ones(1)}
    start = method.warm_start(backbone, {**trained(supernet), **head})
    assert start.keys() == {*trained(backbone), "head.weight"}
    with torch.no_grad():
        for parameter_name, parameter in trained(backbone).items():
            parameter.copy_(start[parameter_name])
    torch.testing.assert_close(pooled(backbone), pooled(supernet))
    assert not torch.allclose(fresh, pooled(supernet))


@pytest.mark.parametrize(
    ("options", "warm"),
    [
        (DASOptions(), True),
        (DASOptions(warm_start=False), False),
        (DASOptions(variant="published"), False),
        (DASOptions(variant="published", warm_start=True), True),
    ],
)
def test_published_variant_has_no_warm_start(options: DASOptions, warm: bool) -> None:
    method = DAS(options)
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    method.decide(DASDecision(("joint.3", "joint.7")))
    method.adapt(backbone, seeded())
    searched = {"head.weight": torch.ones(1)}
    assert method.warm_start(backbone, searched) == (searched if warm else {})
