"""A tiny LLaVA with random weights, for tests."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlavaConfig

from harness.backbones.base import BackboneOptions
from harness.backbones.inputs import Inputs
from harness.backbones.llava.loading import build_llava
from harness.backbones.llava.model import LlavaBackbone

VOCABULARY, IMAGE_ID, PATCHES = 60, 59, 4


def tiny_config() -> LlavaConfig:
    """Four layers of width 64 with grouped-query attention."""
    return LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 16,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": 64,
        },
        image_token_index=IMAGE_ID,
        image_seq_length=PATCHES,
    )


@torch.no_grad()
def randomize(model: nn.Module) -> None:
    """Draw all parameters; gains are random too."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 0.3 if parameter.dim() == 1 else 0.15
        noise = scale * torch.randn(parameter.shape, generator=generator)
        parameter.copy_(noise + 1 if parameter.dim() == 1 else noise)


def tiny_llava() -> LlavaBackbone:
    """The backbone of this configuration with random weights."""
    backbone = build_llava(tiny_config(), {}, None, BackboneOptions())
    randomize(backbone)
    return backbone


def prompts(rows: int = 3) -> Inputs:
    """Prompts of 9 tokens, the second of only 6."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 50, (rows, 9), generator=generator)
    mask = torch.ones(rows, 9, dtype=torch.bool)
    ids[1, 6:], mask[1, 6:] = 1, False
    return Inputs(ids, mask, torch.randn(rows, 3, 32, 32, generator=generator))
