"""How the backbone runs while a model is trained: compiled blocks, recomputed activations, faster frozen products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch import compile as compile_function
from torch.utils.checkpoint import checkpoint

from harness.backbones import kernels
from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput
from harness.config import TrainingSettings

Forward = Callable[[BlockInput], BlockOutput]


@contextmanager
def optimized_blocks(backbone: Backbone, training: TrainingSettings) -> Iterator[None]:
    """Within the block, the backbone's blocks run as `training` says; names and parameters stay the same.

    activation_checkpointing: only the input of a block is kept; the block is run again in the backward pass, with the
    same dropout. compile: blocks are compiled by `torch.compile`; else linear maps that
    suit oneDNN run as `harness.backbones.kernels.product`.
    """
    changed: list[nn.Module] = []
    if not training.compile:
        for module in backbone.modules():
            if type(module) is not nn.Linear or "forward" in vars(module):
                continue
            if kernels.suits_onednn(module.weight):
                module.forward = partial(_product, module)  # type: ignore[method-assign]
                changed.append(module)
    for block in backbone.blocks if training.activation_checkpointing or training.compile else ():
        forward: Forward = block.forward
        if training.compile:
            forward = compile_function(forward)
        if training.activation_checkpointing:
            forward = _recomputed(forward)
        block.forward = forward  # type: ignore[assignment]
        changed.append(block)
    try:
        yield
    finally:
        for module in changed:
            del module.forward  # the class's own shows again


def _product(linear: nn.Linear, hidden: Tensor) -> Tensor:
    return kernels.product(hidden, linear.weight, linear.bias)


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
