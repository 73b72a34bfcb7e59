"""Compile the blocks and recompute their activations, while a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import compile as compile_function
from torch.utils.checkpoint import checkpoint

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput
from harness.config import TrainingSettings

Forward = Callable[[BlockInput], BlockOutput]


@contextmanager
def optimized_blocks(backbone: Backbone, training: TrainingSettings) -> Iterator[None]:
    """Within the block, the backbone's blocks run as `training` says; names and parameters stay the same.

    activation_checkpointing: only the input of a block is kept; the block is run again in the backward pass, with the
    same dropout. compile: blocks are compiled by `torch.compile`.
    """
    if not (training.activation_checkpointing or training.compile):
        yield
        return
    blocks = list(backbone.blocks)
    for block in blocks:
        forward: Forward = block.forward
        if training.compile:
            forward = compile_function(forward)
        if training.activation_checkpointing:
            forward = _recomputed(forward)
        block.forward = forward  # type: ignore[assignment]
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own shows again


def _recomputed(forward: Forward) -> Forward:
    def run(inputs: BlockInput) -> BlockOutput:
        if not torch.is_grad_enabled():
            return forward(inputs)
        # The tensor tells torch on which device random states, and so dropout, must be repeated.
        output: BlockOutput = checkpoint(
            lambda hidden, inputs: forward(inputs), inputs.tokens.hidden, inputs, use_reentrant=False
        )
        return output

    return run
