"""The published heads over the pooled feature."""

from __future__ import annotations

import torch
from torch import nn

HEAD_INITIAL_STD = 0.02


def build_classifier(features: int, hidden: int, classes: int, generator: torch.Generator) -> nn.Sequential:
    """Linear → LN → GELU → Linear, weights N(0, 0.02) from `generator`, biases 0 (ViLT, METER)."""
    head = nn.Sequential(
        blank_linear(features, hidden),
        nn.LayerNorm(hidden),
        nn.GELU(),
        blank_linear(hidden, classes),
    )
    for layer in head:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=HEAD_INITIAL_STD, generator=generator)
            nn.init.zeros_(layer.bias)
    return head


def blank_linear(features: int, outputs: int) -> nn.Linear:
    """A linear map with uninitialised values, which draws from no generator."""
    # From the meta device: the default initialisation would draw from the global generator.
    return nn.Linear(features, outputs, device="meta").to_empty(device="cpu")
