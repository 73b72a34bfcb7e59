"""The embedded ViLT with random weights, biases too."""

from __future__ import annotations

import torch
from torch import nn

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from harness.backbones.vilt.model import ViltBackbone


def mini() -> ViltBackbone:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in backbone.named_parameters():
        if name.endswith("bias"):  # an untrained model's are all 0
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return backbone
