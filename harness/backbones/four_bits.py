"""Frozen maps of the blocks in four bits, as in QLoRA (Dettmers et al., NeurIPS 2023)."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.errors import UserError


class FourBitLinear(nn.Module):
    """A frozen linear map whose weight is kept in 4-bit NormalFloat, with one 8-bit scale for 64 numbers.

    Each product first restores the weight, in the backward pass too, so that no full-size weight is kept between them.
    """

    packed: Tensor

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        packed, self.state = _functions().quantize_4bit(
            base.weight.detach(), quant_type="nf4", compress_statistics=True
        )
        self.register_buffer("packed", packed, persistent=False)
        self.bias = base.bias

    @property
    def weight(self) -> Tensor:
        """The rounded weight `(out, in)`."""
        return _functions().dequantize_4bit(self.packed, self.state)  # type: ignore[no-any-return]

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, in)` → `(…, out)`."""
        result: Tensor = _Product.apply(hidden, self)
        return result if self.bias is None else result + self.bias.to(result.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.state.to(self.packed.device)
        return self


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, module: FourBitLinear) -> Tensor:
        ctx.module = module
        return F.linear(hidden, module.weight.to(hidden.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient @ ctx.module.weight.to(gradient.dtype), None


def hold_in_four_bits(backbone: Backbone) -> None:
    """Round the weight of every frozen linear map in the blocks to four bits, and keep it so.

    Raises:
        UserError: bitsandbytes is not installed, or no map of the blocks is frozen.
    """
    check_library()
    frozen = [
        (parent, name, child)
        for parent, name, child in _maps(backbone, nn.Linear)
        if not child.weight.requires_grad
    ]
    if not frozen:
        raise UserError("backbone_precision: every map of the blocks trains, so none can be kept in 4 bits.")
    for parent, name, child in frozen:
        setattr(parent, name, FourBitLinear(child))


@torch.no_grad()
def restore(backbone: Backbone) -> None:
    """Replace the maps in four bits by ordinary ones with the rounded weights."""
    for parent, name, child in _maps(backbone, FourBitLinear):
        plain = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(child.weight, requires_grad=False)
        plain.bias = child.bias
        setattr(parent, name, plain)


def held_in_four_bits(backbone: Backbone) -> int:
    """How many weights are kept in four bits. They are not among the parameters."""
    return sum(child.in_features * child.out_features for *_, child in _maps(backbone, FourBitLinear))


def _maps(backbone: Backbone, kind: type[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    return [
        (parent, name, child)
        for parent in backbone.blocks.modules()
        for name, child in parent.named_children()
        if type(child) is kind
    ]


def check_library() -> None:
    """Raise `UserError` if bitsandbytes is not installed."""
    if find_spec("bitsandbytes") is None:
        raise UserError("backbone_precision: 4bit needs bitsandbytes; pip install 'petl-harness[4bit]'.")


def _functions() -> Any:
    """The functions of bitsandbytes."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    import bitsandbytes.functional

    return bitsandbytes.functional
