"""BitFit (Ben Zaken et al., ACL 2022): only bias terms train."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from methods.base import Method, NoOptions, freeze


class BitFit(Method[NoOptions]):
    """Every bias of the blocks, those of layer norms included, trains; nothing is inserted."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the blocks' bias terms train, layer norms' included"
    source: ClassVar[str] = "Ben Zaken et al., ACL 2022"
    learning_rate_scale: ClassVar[float] = 10.0
    per_token: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze all but the blocks' biases."""
        freeze(backbone)
        for name, parameter in backbone.blocks.named_parameters():
            if name.rsplit(".", 1)[-1] == "bias":
                parameter.requires_grad_(True)
