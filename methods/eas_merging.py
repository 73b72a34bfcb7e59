"""Merging EAS's adapters into projections, and turning its blocks back into the backbone's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from harness.backbones.folded import FoldedPart
from harness.backbones.folding import Affine, Norm
from methods.eas_adapters import InputAdapter, SkipAdapter

_ADDED = ("skipped", "unit", "summary")
"""Attributes of EAS's blocks that the backbones' do not have."""

BlockT = TypeVar("BlockT", bound=nn.Module)


@torch.no_grad()
def merged_projection(projection: nn.Linear, adapter: Any) -> nn.Linear:
    """A frozen linear map of an adapter's input: `W (x + B (C x + c) + b) + bias`."""
    assert isinstance(adapter, InputAdapter)
    merged = Affine.of(projection).after(adapter.affine())
    result = nn.Linear(projection.in_features, projection.out_features, device="meta")
    like = projection.weight
    result.weight = nn.Parameter(merged.weight.to(like.dtype), requires_grad=False)
    result.bias = nn.Parameter(merged.bias.to(like.dtype), requires_grad=False)
    return result.train(projection.training)


def without(block: nn.Module, kind: type[BlockT], names: Collection[str]) -> BlockT:
    """A block of class `kind` with the modules of `block`, except those named."""
    plain = kind.__new__(kind)
    state = {name: value for name, value in vars(block).items() if name not in _ADDED}
    state["_modules"] = {name: module for name, module in block._modules.items() if name not in names}
    vars(plain).update(state)
    return plain


class FoldedSkip(FoldedPart):
    """Base of blocks without attention as they are deployed: a feed-forward on the first norm's result.

    Adapter and both norms' gains are in its first matrix. What depends on the mean over tokens is a bias of the
    example's own, with r (D + M) multiplications, M the outputs of `expand`.

    before, after: the block's two norms. expand: the feed-forward's first map. like: a parameter whose type and device
    are used.
    """

    offsets: ClassVar[bool] = True
    """False if the block's norms have no offset (RMSNorm)."""

    def __init__(
        self, block: Any, adapter: SkipAdapter, before: Norm, after: Norm, expand: Affine, like: Tensor
    ) -> None:
        super().__init__()
        self.name, self.stream, self.eps = block.name, block.stream, before.eps
        up = adapter.up.dense()
        down, context = Affine.of(adapter.down), Affine.of(adapter.context)
        # z + B (C z + A m + c + a) / 2 + b, of which A m is the example's own
        mixed = Affine(up.weight / 2, up.bias).after(Affine(down.weight, down.bias + context.bias))
        own = expand.after_norm(after).after(mixed.plus_identity()).after_norm(before)
        shared = Affine(context.weight, torch.zeros_like(context.bias)).after_norm(before)
        self._hold("weight", own.weight, like)
        self._hold("bias", own.bias, like)
        self._hold("context_weight", shared.weight, like)
        if self.offsets:
            self._hold("context_bias", shared.bias, like)
        self._hold("up_weight", (expand.weight * after.gain) @ up.weight / 2, like)

    def inserted(self) -> list[Tensor]:
        """The maps of the example's own bias."""
        return [value for name, value in self.named_parameters() if name.startswith(("context", "up"))]
