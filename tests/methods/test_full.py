from __future__ import annotations

import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from methods.full import Full


def test_frozen_backbone_becomes_trainable() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random")).requires_grad_(False)
    Full().adapt(backbone, torch.Generator())
    assert all(p.requires_grad for p in backbone.parameters())
    assert Full().method_modules(backbone) == []
