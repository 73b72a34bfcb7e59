"""Tiny text and image encoders with random weights, as folders of `transformers`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ResNetConfig,
    ResNetModel,
    RobertaConfig,
    RobertaModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTModel,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "dog", "cat", "runs", "sits", "on")
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
PLAIN = {"vocab_size": len(WORDS), "max_position_embeddings": 40, **SIZES}

TEXT: Mapping[str, Callable[[], nn.Module]] = {
    "bert": lambda: BertModel(BertConfig(hidden_size=16, **PLAIN)),
    "roberta": lambda: RobertaModel(RobertaConfig(hidden_size=16, pad_token_id=0, **PLAIN)),
    "electra": lambda: ElectraModel(ElectraConfig(hidden_size=16, embedding_size=8, **PLAIN)),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(
            vocab_size=len(WORDS), max_position_embeddings=40, dim=16, n_layers=2, n_heads=2, hidden_dim=24
        )
    ),
}
IMAGE: Mapping[str, Callable[[], nn.Module]] = {
    "vit": lambda: ViTModel(ViTConfig(hidden_size=24, image_size=32, patch_size=8, **SIZES)),
    "clip": lambda: CLIPVisionModel(CLIPVisionConfig(hidden_size=24, image_size=32, patch_size=8, **SIZES)),
    "swin": lambda: SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=12, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ),
    "convnext": lambda: ConvNextModel(
        ConvNextConfig(hidden_sizes=[8, 12, 20], depths=[1, 1, 1], num_stages=3, image_size=32)
    ),
    "resnet": lambda: ResNetModel(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 20], depths=[1, 1], layer_type="basic")
    ),
}


def save_encoder(make: Callable[[], nn.Module], folder: Path) -> nn.Module:
    """Save a model with its vocabulary or its image processing; returns it in evaluation mode."""
    generator = torch.Generator().manual_seed(3)
    model: Any = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.empty_like(parameter).normal_(std=0.1, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_(generator=generator)
    model.save_pretrained(folder)
    if hasattr(model.config, "vocab_size"):
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    else:
        processing = {"size": {"height": 32, "width": 32}, "image_mean": [0.1] * 3, "image_std": [0.5] * 3}
        (folder / "preprocessor_config.json").write_text(json.dumps(processing))
    return model  # type: ignore[no-any-return]
