"""BitFit (Ben Zaken et al., ACL 2022): only bias terms train."""

from __future__ import annotations

from typing import ClassVar

import torch

from harness.backbones.base import Backbone
from harness.errors import UserError
from methods.base import Method, NoOptions, Slot, freeze


class BitFit(Method[NoOptions]):
    """All biases of the blocks train, including those of LayerNorms. Nothing is inserted."""

    name: ClassVar[str] = "bitfit"
    summary: ClassVar[str] = "the bias terms of the blocks train, including those of LayerNorms"
    source: ClassVar[str] = "Ben Zaken et al., ACL 2022"
    family: ClassVar[str] = "pretrained weights"
    learning_rate_scale: ClassVar[float] = 10.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.WEIGHTS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze everything except the biases of the blocks.

        Raises:
            UserError: the blocks have no biases (LLaMA's).
        """
        freeze(backbone)
        named = backbone.blocks.named_parameters()
        biases = [parameter for name, parameter in named if name.rsplit(".", 1)[-1] == "bias"]
        if not biases:
            raise UserError(f"bitfit: the blocks of {backbone.name} have no biases to train.")
        for parameter in biases:
            parameter.requires_grad_(True)
