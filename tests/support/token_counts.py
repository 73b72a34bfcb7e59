"""For backbones that reduce tokens: number of tokens per block, closed forms of costs, padded inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, Tokens
from harness.backbones.inputs import Inputs
from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.measure.flops import ComputeCounts, count_forward
from methods.base import Method
from tasks.base import Batch
from tests.support.measured_models import build

D = 768


class Features:
    """A task that ends with the pooled features."""

    images_per_example = 1

    def forward(self, backbone: Backbone, head: nn.Module, batch: Batch) -> Tensor:
        return backbone(batch.inputs[0])


def full_size_vilt() -> ViltBackbone:
    """On the meta device."""
    with torch.device("meta"):
        return build(full_size_config())


def count(backbone: Backbone, method: Method[Any], size: tuple[int, int], text: int) -> ComputeCounts:
    """One pass of the adapted backbone over unpadded inputs."""
    return count_forward(Features(), backbone, nn.Identity(), method, image_size=size, text_length=text)


def tokens_read(backbone: Backbone, run: Callable[[], object]) -> list[Tokens]:
    """Number of tokens of its own stream that each block reads in `run`, in the order of the calls."""
    seen: list[Tokens] = []

    def note(_module: nn.Module, args: tuple[BlockInput]) -> None:
        seen.append(args[0].tokens)

    handles = [block.register_forward_pre_hook(note) for block in backbone.blocks]
    run()
    for handle in handles:
        handle.remove()
    return seen


def lengths_read(backbone: Backbone, run: Callable[[], object]) -> list[tuple[int, int]]:
    """Text and image tokens that each block of ViLT, or each depth of METER, reads."""
    seen = tokens_read(backbone, run)
    if len(backbone.stream_names) == 1:
        lengths = [(tokens.text_length or 0, len(tokens)) for tokens in seen]
        return [(text, total - text) for text, total in lengths]
    # An image layer is called when its depth's text layer has reduced the image tokens.
    return [(len(text), len(image)) for text, image in zip(seen[::2], seen[1::2], strict=True)]


def vilt_block_macs(before: int, after: int) -> int:
    """Attention over `before` tokens, feed-forward over `after`."""
    return 4 * D**2 * before + 2 * D * before**2 + 8 * D**2 * after


def meter_layer_macs(own: int, other: int, after: int) -> int:
    """Self-attention, attention to `other` tokens, feed-forward over `after` of the own tokens."""
    to_itself = 4 * D**2 * own + 2 * D * own**2
    across = 2 * D**2 * own + 2 * D**2 * other + 2 * D * own * other
    return to_itself + across + 8 * D**2 * after


def matching_macs(tokens: int, channels: int = 64) -> int:
    """MACs of the similarities between tokens at even and odd positions."""
    return (tokens + 1) // 2 * (tokens // 2) * channels


def padded_inputs(backbone: Backbone, side: int, image_sizes: Tensor | None = None) -> Inputs:
    """Three examples with texts of 9, 6 and 3 tokens, images padded to `image_sizes` if there are any."""
    inputs = backbone.example_inputs(3, 9, (side, side), torch.Generator().manual_seed(1))
    mask = torch.arange(9) < torch.tensor([[9], [6], [3]])
    return replace(inputs, text_mask=mask, image_sizes=image_sizes)


def alone(inputs: Inputs, row: int) -> Inputs:
    """One of the examples without its padding."""
    assert inputs.text_mask is not None
    length = int(inputs.text_mask[row].sum())
    pixels = inputs.pixels[row : row + 1]
    if inputs.image_sizes is not None:
        height, width = inputs.image_sizes[row].tolist()
        pixels = pixels[..., :height, :width]
    return Inputs(inputs.input_ids[row : row + 1, :length], None, pixels)
