from __future__ import annotations

import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from methods.classifier import Classifier


def test_nothing_of_the_backbone_trains() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    Classifier().adapt(backbone, torch.Generator())
    assert not any(p.requires_grad for p in backbone.parameters())
    assert Classifier().method_modules(backbone) == []
