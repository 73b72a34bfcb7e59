"""The frozen backbone: only what every method trains (head, pooler, token types) trains."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from methods.base import Method, NoOptions, freeze


class Classifier(Method[NoOptions]):
    """The lower bound: a classifier on frozen features; nothing is inserted."""

    name: ClassVar[str] = "classifier"
    summary: ClassVar[str] = "frozen backbone; only head, pooler and token types train"
    source: ClassVar[str] = "linear probing, Alain and Bengio 2016"
    family: ClassVar[str] = "pretrained weights"
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze."""
        freeze(backbone)
