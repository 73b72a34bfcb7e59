"""Scaled parallel adapters (He et al., ICLR 2022): a bottleneck beside attention and feed-forward."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch

from harness.backbones.base import Backbone, HuggingFaceForm
from harness.backbones.block import Block
from harness.backbones.folding import Activation
from methods.base import Method, Slot, freeze
from methods.bottleneck import BottleneckAdapter, bottleneck_size, eps_beside
from methods.exporting import Blocks, export_bottlenecks
from methods.option_checks import module_size, positive


@dataclass(frozen=True)
class ParallelAdapterOptions:
    """What can be chosen about scaled parallel adapters.

    bottleneck: hidden size of the adapters; by default width / 8 (96 at 768).
    scale: factor of the adapters' result; 4 as in He et al.
    learn_scale: train that factor, from `scale` on.
    layer_norm: normalise the adapters' input, as in DAS's comparison.
    activation: `relu` or `gelu`.
    """

    bottleneck: int | None = None
    scale: float = 4.0
    learn_scale: bool = False
    layer_norm: bool = True
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        module_size("parallel", bottleneck=self.bottleneck)
        positive("parallel", scale=self.scale)


class ParallelAdapter(Method[ParallelAdapterOptions]):
    """`scale · up(act(down(LN(x))))` beside self-attention and feed-forward, starting at 0 like LoRA.

    On blocks with cross-attention that sublayer gets none, as in DAS's comparison (two per layer).
    """

    name: ClassVar[str] = "parallel"
    summary: ClassVar[str] = "scaled bottleneck adapters beside self-attention and feed-forward"
    source: ClassVar[str] = "He et al., ICLR 2022"
    family: ClassVar[str] = "adapters"
    Options: ClassVar[type[Any]] = ParallelAdapterOptions
    learning_rate_scale: ClassVar[float] = 4.0
    per_token: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ("adapters",)
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PARALLEL})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Fill the parallel slots."""
        freeze(backbone)
        options = self.options
        for block in cast(Iterable[Block], backbone.blocks):
            for sublayer in block.sublayers:
                if sublayer == "cross_attention":
                    continue
                block.parallel[sublayer] = BottleneckAdapter(
                    backbone.width,
                    bottleneck_size(backbone.width, options.bottleneck),
                    generator,
                    layer_norm=options.layer_norm,
                    scale=float(options.scale),
                    learn_scale=options.learn_scale,
                    activation=options.activation,
                    zero_up=True,
                    eps=eps_beside(block),
                )

    def merge(self, backbone: Backbone) -> None:
        """Fold the blocks; where a backbone knows no folding, the factor into the upper projections."""
        for module in self.method_modules(backbone):
            if isinstance(module, BottleneckAdapter):
                module.fold_scale()

    def export(self, form: str, target: HuggingFaceForm, blocks: Blocks, output: Path) -> str:
        """Bottlenecks of the `adapters` library, the scale folded into their upper projection."""
        options = self.options
        size = bottleneck_size(target.model.config.hidden_size, options.bottleneck)
        return export_bottlenecks(
            target,
            blocks,
            "parallel",
            size,
            options.activation,
            options.scale,
            layer_norm=options.layer_norm,
            output=output,
        )
