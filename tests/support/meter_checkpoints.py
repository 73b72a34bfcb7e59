"""Checkpoints with the names and shapes of the original METER and random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from harness.backbones.base import BackboneOptions
from harness.backbones.meter.config import MeterConfig

CLIP_TEXT_POSITIONS, CLIP_TEXT_WIDTH = 77, 512


def original_shapes(config: MeterConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of each tensor of a pretrained METER of these sizes, its matching head included."""
    return dict(_shapes(config))


def _shapes(config: MeterConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config.hidden_size
    for stream in ("text", "image"):
        yield from _linear(f"cross_modal_{stream}_transform", width, width)
        yield from _linear(f"cross_modal_{stream}_pooler.dense", width, width)
        for depth in range(config.num_hidden_layers):
            layer = f"cross_modal_{stream}_layers.{depth}"
            yield from _layer(layer, width, config.intermediate_size, ("attention", "crossattention"))
    yield "token_type_embeddings.weight", (config.modality_type_vocab_size, width)
    yield from _text_encoder("text_transformer", config)
    yield from _image_encoder("vit_model.visual", config)
    yield "vit_model.positional_embedding", (CLIP_TEXT_POSITIONS, CLIP_TEXT_WIDTH)
    yield from _norm("vit_model.ln_final", CLIP_TEXT_WIDTH)
    yield from _linear("itm_score.fc", 2 * width, 2)


def _text_encoder(name: str, config: MeterConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width = config.hidden_size
    rows = {"word": config.vocab_size, "position": config.max_position_embeddings, "token_type": 1}
    for table, count in rows.items():
        yield f"{name}.embeddings.{table}_embeddings.weight", (count, width)
    yield from _norm(f"{name}.embeddings.LayerNorm", width)
    for index in range(config.text_layers):
        layer = f"{name}.encoder.layer.{index}"
        yield from _layer(layer, width, config.text_intermediate_size, ("attention",))
    yield from _linear(f"{name}.pooler.dense", width, width)


def _image_encoder(name: str, config: MeterConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, patch = config.hidden_size, config.patch_size
    yield f"{name}.class_embedding", (width,)
    yield f"{name}.positional_embedding", (1 + (config.image_size // patch) ** 2, width)
    yield f"{name}.conv1.weight", (width, config.num_channels, patch, patch)
    for norm in ("ln_pre", "ln_post"):
        yield from _norm(f"{name}.{norm}", width)
    for index in range(config.image_layers):
        block = f"{name}.transformer.resblocks.{index}"
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from _linear(f"{block}.attn.out_proj", width, width)
        yield from _linear(f"{block}.mlp.c_fc", width, config.image_intermediate_size)
        yield from _linear(f"{block}.mlp.c_proj", config.image_intermediate_size, width)
        for norm in ("ln_1", "ln_2"):
            yield from _norm(f"{block}.{norm}", width)


def _layer(
    name: str, width: int, inner: int, attentions: tuple[str, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A BERT layer: its attentions and its feed-forward, each followed by a norm."""
    for attention in attentions:
        for role in ("query", "key", "value"):
            yield from _linear(f"{name}.{attention}.self.{role}", width, width)
        yield from _linear(f"{name}.{attention}.output.dense", width, width)
        yield from _norm(f"{name}.{attention}.output.LayerNorm", width)
    yield from _linear(f"{name}.intermediate.dense", width, inner)
    yield from _linear(f"{name}.output.dense", inner, width)
    yield from _norm(f"{name}.output.LayerNorm", width)


def _linear(name: str, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def random_original(config: MeterConfig) -> dict[str, Tensor]:
    """Weights N(0, 0.02), biases as well; those of norms around 1."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in original_shapes(config).items():
        state[name] = torch.empty(shape).normal_(std=0.02, generator=generator)
        if ".ln_" in name or "LayerNorm" in name:
            state[name] += name.endswith("weight")
    return state


def save_lightning(path: Path, state: dict[str, Tensor]) -> BackboneOptions:
    """A `.ckpt` as Lightning saves it, and the options that load it."""
    torch.save({"epoch": 3, "global_step": 10, "state_dict": state}, path)
    return BackboneOptions(weights=str(path))
