"""BitFit (Ben Zaken et al., ACL 2022): only bias terms train."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from methods.base import Method, NoOptions, Slot, freeze


class BitFit(Method[NoOptions]):
    """All biases of the blocks train, including those of LayerNorms. Nothing is inserted."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the bias terms of the blocks train, including those of LayerNorms"
    source: ClassVar[str] = "Ben Zaken et al., ACL 2022"
    learning_rate_scale: ClassVar[float] = 10.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.WEIGHTS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze everything except the biases of the blocks."""
        freeze(backbone)
        for name, parameter in backbone.blocks.named_parameters():
            if name.rsplit(".", 1)[-1] == "bias":
                parameter.requires_grad_(True)
