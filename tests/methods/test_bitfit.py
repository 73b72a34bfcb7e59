from __future__ import annotations

import torch

from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from methods.bitfit import BitFit


def test_every_bias_of_the_blocks_trains_and_nothing_else() -> None:
    with torch.device("meta"):
        backbone = ViltBackbone(full_size_config(), ViltProcessor(None, 384, 32, 40))
    BitFit().adapt(backbone, torch.Generator())
    trained = [p for p in backbone.parameters() if p.requires_grad]
    # query, key, value, output, lower projection, two layer norms: 768 each; upper projection: 3072
    assert sum(p.numel() for p in trained) == 12 * (7 * 768 + 3072)
    assert len(trained) == 12 * 8
    assert BitFit().method_modules(backbone) == []
