"""Merging EAS's adapters into projections, and turning its blocks back into the backbone's."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

import torch
from torch import nn

from harness.backbones.folding import Affine
from methods.eas_adapters import InputAdapter

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
