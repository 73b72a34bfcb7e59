"""Full fine-tuning: every parameter of the backbone trains."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from methods.base import Method, NoOptions


class Full(Method[NoOptions]):
    """What every other method is compared with; nothing is inserted."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = "all parameters of the backbone train"
    source: ClassVar[str] = "Devlin et al., NAACL 2019"
    learning_rate_scale: ClassVar[float] = 1.0
    per_token: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Let everything train."""
        backbone.requires_grad_(True)
