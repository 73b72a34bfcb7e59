from __future__ import annotations

import pytest
import torch
from transformers import ViltConfig

from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from tests.support.measured_models import build


@pytest.fixture
def full_size() -> ViltBackbone:
    """Full-size ViLT-B/32 on the meta device, which needs neither memory nor computation."""
    with torch.device("meta"):
        return build(full_size_config())


@pytest.fixture
def tiny() -> ViltBackbone:
    """Three blocks of width 32 on patches of 16 pixels."""
    config = ViltConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=64,
        patch_size=16,
        max_position_embeddings=12,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return build(config)
