"""Folding: turn a trained block into a deployed one with the same outputs.

After training all weights are fixed, so linear maps that follow each other, or read the same input, become one. This
module has the algebra, and `harness.backbones.folded` the parts that run. Each backbone defines the deployed form of
its blocks in `Block.folded`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block

Activation = Literal["relu", "gelu"]

GELU_SCALE = 2.0**20


@runtime_checkable
class Foldable(Protocol):
    """A block, or a replacement of one, that has a deployed form."""

    folded: Callable[[], nn.Module]
    """The deployed form: another module with the same outputs, or itself."""


@torch.no_grad()
def fold(backbone: Backbone) -> None:
    """Replace every block by its deployed form, except for those that have none or contain an unknown module."""
    for index, block in enumerate(backbone.blocks):
        backbone.blocks[index] = fold_block(block)


@torch.no_grad()
def fold_block(block: nn.Module) -> nn.Module:
    """The deployed form of a block, in the same mode (evaluation or training)."""
    return block.folded().train(block.training) if isinstance(block, Foldable) else block


@dataclass(frozen=True)
class Norm:
    """Gain and offset `(D,)` of a LayerNorm, and its epsilon."""

    gain: Tensor
    offset: Tensor
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm) -> Self:
        """The norm of a module."""
        return cls(_precise(module.weight), _precise(module.bias), module.eps)


@dataclass(frozen=True)
class Affine:
    """`x → weight x + bias`, weight `(out, in)`, bias `(out,)`; in float32 or better."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, module: nn.Linear) -> Self:
        """The map of a module."""
        weight = _precise(module.weight)
        return cls(weight, weight.new_zeros(len(weight)) if module.bias is None else _precise(module.bias))

    @classmethod
    def stack(cls, *maps: Affine) -> Self:
        """One map whose result is the concatenated results of `maps`: `(Σ out, in)`."""
        return cls(torch.cat([each.weight for each in maps]), torch.cat([each.bias for each in maps]))

    def after_norm(self, norm: Norm) -> Affine:
        """The same map of a norm's output, as a map of the standardised input x: W (x·g + o) + b."""
        return Affine(self.weight * norm.gain, self.bias + self.weight @ norm.offset)

    def after(self, first: Affine) -> Affine:
        """The composition with `first`: a map of the input of `first`."""
        return Affine(self.weight @ first.weight, self.bias + self.weight @ first.bias)

    def centred(self) -> Affine:
        """The same map of an input minus its mean: W (x − mean x) = (W − row means of W) x."""
        return Affine(self.weight - self.weight.mean(dim=1, keepdim=True), self.bias)

    def plus_identity(self) -> Affine:
        """The map with its input added to its result."""
        identity = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return Affine(self.weight + identity, self.bias)

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

    def with_gelu_if_faster(self, eps: float) -> Branch:
        """The branch for a product whose other rows get GELU, so that one operator activates all of them.

        ReLU is replaced by GELU: relu(x) = gelu(s·x) / s up to 0.17 / s, which is 1.6e-7. s is a power of two, so
        nothing else is rounded. Where there is an accelerator ReLU stays: one kernel does both there, and float16
        cannot hold the scaled numbers.

        eps: epsilon of the block's norm; a branch with another one is rescaled before its activation.
        """
        apart = self.norm is None or self.norm.eps != eps
        if self.activation == "gelu" or apart or torch.accelerator.is_available():
            return self
        up = Affine(self.up.weight / GELU_SCALE, self.up.bias)
        return replace(self, down=self.down.scaled(GELU_SCALE), up=up, activation="gelu")

    def reading(self) -> Affine:
        """The down-projection, with the gain and offset of the norm, if there is one, merged into it."""
        return self.down if self.norm is None else self.down.after_norm(self.norm)


@runtime_checkable
class HasBranch(Protocol):
    """A module in a slot that folding can merge."""

    branch: Callable[[], Branch | None]
    """The branch that it computes; None if it computes something else."""


@dataclass(frozen=True)
class Slots:
    """The branches in a block's slots by sublayer; a sublayer has at most one branch."""

    sequential: Mapping[str, Branch]
    parallel: Mapping[str, Branch]
    post_norm: Mapping[str, Branch]


def read_slots(block: Block) -> Slots | None:
    """The branches in a block's slots; None if a slot holds something that cannot be folded.

    Sequential branches must have a residual and no norm, all others no residual.
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
    """A block's slots by name; a pre-norm block has no `post_norm` slots."""
    return {
        "sequential": dict(block.sequential.items()),
        "parallel": dict(block.parallel.items()),
        "post_norm": dict(block.post_norm.items()) if block.normalizes_last else {},
    }


def structure_of(block: Block) -> dict[str, tuple[object, ...]]:
    """Type and shapes of all modules of a block, except those in its slots, by path; of the block itself no type."""
    slots = ("sequential.", "parallel.", "post_norm.")
    return {
        path: (
            type(module) if path else None,
            *(parameter.shape for parameter in module.parameters(recurse=False)),
        )
        for path, module in block.named_modules()
        if not path.startswith(slots)
    }


def is_hooked(block: nn.Module) -> bool:
    """True if one of its modules has a hook, or a replaced `forward`."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in block.modules()
    )


def _precise(tensor: Tensor) -> Tensor:
    """The tensor without gradient, and in at least 32 bits, because rounding errors would add up."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
