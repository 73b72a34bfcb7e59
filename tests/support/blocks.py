"""Blocks called with plain tensors."""

from __future__ import annotations

from torch import Tensor, nn

from harness.backbones.block import BlockInput, BlockOutput, Tokens


def run(
    block: nn.Module,
    hidden: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
) -> Tensor:
    """Hidden states `(B, T, D)` after a block; masks are additive."""
    other = None if context is None else Tokens(context, context_mask)
    output: BlockOutput = block(BlockInput(Tokens(hidden, mask), other))
    return output.tokens.hidden
