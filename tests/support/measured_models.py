"""Small and full-size models that the tests of this folder measure."""

from __future__ import annotations

import torch
from torch import nn
from transformers import ViltConfig

from harness.backbones.block import BlockInput, BlockOutput
from harness.backbones.vilt.block import ViltBlock
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from methods.base import Inserted


class Bottleneck(Inserted):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down = nn.Linear(width, inner)
        self.up = nn.Linear(inner, width)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.up(torch.relu(self.down(self.norm(hidden))))
        return result


class Bypass(nn.Module):
    """A skipped block: its shortcut alone."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, inputs: BlockInput) -> BlockOutput:
        return inputs.result(self.shortcut(inputs.asking))


def build(config: ViltConfig) -> ViltBackbone:
    processor = ViltProcessor(None, config.image_size, config.patch_size, config.max_position_embeddings)
    return ViltBackbone(config, processor).eval()


def classifier(inputs: int, hidden: int, classes: int) -> nn.Sequential:
    """The heads of VQA and NLVR2."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, classes)
    )


def add_adapters_of_das(backbone: ViltBackbone, skipped: int) -> list[nn.Module]:
    """Two parallel adapters of 96 in a kept block, a shortcut of 192 for each of the first `skipped`."""
    modules: list[nn.Module] = []
    for index, block in enumerate(list(backbone.blocks)):
        assert isinstance(block, ViltBlock)
        if index < skipped:
            shortcut = Bottleneck(backbone.width, 192)
            backbone.blocks[index] = Bypass(shortcut)
            modules.append(shortcut)
            continue
        for sublayer in block.sublayers:
            block.parallel[sublayer] = adapter = Bottleneck(backbone.width, 96)
            modules.append(adapter)
    return modules
