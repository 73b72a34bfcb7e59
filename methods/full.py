"""Full fine-tuning: every parameter of the backbone trains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from methods.base import Method, NoOptions, Recipe, Slot
from methods.recipes import recipes_of


class Full(Method[NoOptions]):
    """Full tuning, with which all other methods are compared. Nothing is inserted."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "all parameters of the backbone train"
    source: ClassVar[str] = "Devlin et al., NAACL 2019"
    family: ClassVar[str] = "pretrained weights"
    learning_rate_scale: ClassVar[float] = 1.0
    per_token: ClassVar[bool] = True
    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = recipes_of("full")
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.WEIGHTS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Make all parameters trainable."""
        backbone.requires_grad_(True)
