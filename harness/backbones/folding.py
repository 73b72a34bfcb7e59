"""Folding: from a block as it was trained to the block that is deployed, with the same outputs.

After training everything is known and frozen, so that maps which follow each other, or read the same input, become
one. This file has the algebra; `harness.backbones.folded` has the pieces that run; each backbone's block says in
`Block.folded` what takes its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block

Activation = Literal["relu", "gelu"]


@runtime_checkable
class Foldable(Protocol):
    """What stands among a backbone's blocks and has a form of its own for deployment."""

    folded: Callable[[], nn.Module]
    """What takes its place: another module with the same outputs, or itself."""


@torch.no_grad()
def fold(backbone: Backbone) -> None:
    """Replace every block by its deployed form. What defines none, or holds something unknown, stays as it is."""
    for index, block in enumerate(backbone.blocks):
        backbone.blocks[index] = fold_block(block)


@torch.no_grad()
def fold_block(block: nn.Module) -> nn.Module:
    """What is deployed in a block's place, in evaluation or training mode as it was."""
    return block.folded().train(block.training) if isinstance(block, Foldable) else block


@dataclass(frozen=True)
class Norm:
    """Gain and offset `(D,)` of a LayerNorm, and its epsilon."""

    gain: Tensor
    offset: Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> Self:
        """Those of a module."""
        return cls(_precise(module.weight), _precise(module.bias), module.eps)


@dataclass(frozen=True)
class Affine:
    """`x → weight x + bias`, weight `(out, in)`, bias `(out,)`; in float32 or better."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Linear) -> Self:
        """A module's map."""
        weight = _precise(module.weight)
        return cls(weight, weight.new_zeros(len(weight)) if module.bias is None else _precise(module.bias))

    @classmethod
    def stack(cls, *maps: Affine) -> Self:
        """One map whose result is that of `maps`, one after the other: `(Σ out, in)`."""
        return cls(torch.cat([each.weight for each in maps]), torch.cat([each.bias for each in maps]))

    def after_norm(self, norm: Norm) -> Affine:
        """The same map of a norm's result, as a map of the standardised input: W (x·g + o) + b."""
        return Affine(self.weight * norm.gain, self.bias + self.weight @ norm.offset)

    def after(self, first: Affine) -> Affine:
        """The map of `first`'s result as a map of its input."""
        return Affine(self.weight @ first.weight, self.bias + self.weight @ first.bias)

    def centred(self) -> Affine:
        """The same map of an input less its mean: W (x − mean x) = (W − row means of W) x."""
        return Affine(self.weight - self.weight.mean(dim=1, keepdim=True), self.bias)

    def shifted(self, constant: Tensor) -> Affine:
        """The map with `constant` `(out,)` added to its result."""
        return Affine(self.weight, self.bias + constant)

    def scaled(self, factor: Tensor | float) -> Affine:
        """The map with its result multiplied by `factor`."""
        return Affine(self.weight * factor, self.bias * factor)


@dataclass(frozen=True)
class Branch:
    """`up(act(down(norm(x))))`, with `x` added to it if `residual`."""

    down: Affine
    up: Affine
    activation: Activation
    norm: Norm | None
    residual: bool

    @property
    def size(self) -> int:
        """Hidden size between the two maps."""
        return len(self.down.bias)

    def reading(self) -> Affine:
        """The lower map with the gain and offset of the norm, if there is one, in it."""
        return self.down if self.norm is None else self.down.after_norm(self.norm)


@runtime_checkable
class HasBranch(Protocol):
    """A module in a block's slot that folding understands."""

    branch: Callable[[], Branch | None]
    """Its arithmetic; None if it is not that of a branch."""


@dataclass(frozen=True)
class Slots:
    """What has been put into a block's slots, by sublayer; no sublayer has more than one branch."""

    sequential: Mapping[str, Branch]
    parallel: Mapping[str, Branch]
    post_norm: Mapping[str, Branch]


def read_slots(block: Block) -> Slots | None:
    """The branches in a block's slots; None if something in them has no folding.

    In series that is a branch with a residual and without a norm, elsewhere one without a residual.
    """
    found: dict[str, dict[str, Branch]] = {}
    for name, slots in slots_of(block).items():
        found[name] = {}
        for sublayer, module in slots.items():
            branch = module.branch() if isinstance(module, HasBranch) else None
            if branch is None or branch.residual != (name == "sequential"):
                return None
            if name == "sequential" and branch.norm is not None:
                return None
            found[name][sublayer] = branch
    taken = [sublayer for slots in found.values() for sublayer in slots]
    return Slots(**found) if len(taken) == len(set(taken)) else None


def slots_of(block: Block) -> dict[str, Mapping[str, nn.Module]]:
    """A block's slots by name; a pre-norm block has none behind a norm."""
    return {
        "sequential": dict(block.sequential.items()),
        "parallel": dict(block.parallel.items()),
        "post_norm": dict(block.post_norm.items()) if block.normalizes_last else {},
    }


def structure_of(block: Block) -> dict[str, tuple[object, ...]]:
    """Type and shapes of all modules of a block but those in its slots, by path."""
    slots = ("sequential.", "parallel.", "post_norm.")
    return {
        path: (type(module), *(parameter.shape for parameter in module.parameters(recurse=False)))
        for path, module in block.named_modules()
        if not path.startswith(slots)
    }


def is_hooked(block: nn.Module) -> bool:
    """Whether somebody waits for one of its modules to be called, or has replaced a module's `forward`."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in block.modules()
    )


def _precise(tensor: Tensor) -> Tensor:
    """Without gradient, and not in 16 bits: several roundings would add up."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
