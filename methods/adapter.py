"""Sequential adapters (Houlsby et al., ICML 2019): a bottleneck after every sublayer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from harness.backbones.base import Backbone, HuggingFaceForm
from harness.backbones.block import Block
from harness.backbones.folding import Activation
from harness.errors import UserError
from methods.base import Method, Slot, freeze
from methods.bottleneck import BottleneckAdapter, bottleneck_size
from methods.exporting import Blocks, export_bottlenecks
from methods.option_checks import module_size, width_divisor


@dataclass(frozen=True)
class SequentialAdapterOptions:
    """Options of sequential adapters.

    bottleneck: hidden size of the adapters; by default width / 8 (96 at 768).
    reduction_factor: sets the bottleneck to width / reduction_factor.
    activation: `relu` or `gelu`.
    """

    bottleneck: int | None = None
    reduction_factor: float | None = None
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        module_size("adapter", bottleneck=self.bottleneck)
        width_divisor("adapter", reduction_factor=self.reduction_factor)
        if self.bottleneck is not None and self.reduction_factor is not None:
            raise UserError(
                "adapter: bottleneck and reduction_factor both set the hidden size; give one of them."
            )


class SequentialAdapter(Method[SequentialAdapterOptions]):
    """`x + up(act(down(x)))` applied to the output of every sublayer, before the residual is added."""

    name: ClassVar[str] = "adapter"
    summary: ClassVar[str] = "a bottleneck adapter after every sublayer"
    source: ClassVar[str] = "Houlsby et al., ICML 2019"
    family: ClassVar[str] = "adapters"
    Options: ClassVar[type[Any]] = SequentialAdapterOptions
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ("adapters",)
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.SEQUENTIAL})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Fill every sequential slot. Weights with standard deviation 0.01 start it near the identity (section 2.1)."""
        freeze(backbone)
        size = bottleneck_size(backbone.width, self.options.bottleneck, self.options.reduction_factor)
        for block in cast(Iterable[Block], backbone.blocks):
            for sublayer in block.sublayers:
                block.sequential[sublayer] = BottleneckAdapter(
                    backbone.width,
                    size,
                    generator,
                    residual=True,
                    activation=self.options.activation,
                    std=0.01,
                )

    def export(self, form: str, target: HuggingFaceForm, blocks: Blocks, output: Path) -> str:
        """Write them as bottlenecks of the `adapters` library."""
        options = self.options
        size = bottleneck_size(target.model.config.hidden_size, options.bottleneck, options.reduction_factor)
        return export_bottlenecks(
            target, blocks, "sequential", size, options.activation, 1.0, layer_norm=False, output=output
        )
