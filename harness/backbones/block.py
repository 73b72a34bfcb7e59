"""Blocks: the units of the fusion stage that methods replace, wrap, or put modules into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn


class Block(nn.Module, ABC):
    """One block of the fusion stage: hidden states in, hidden states of the same shape out.

    Its sublayers (attention, feed-forward, …) are named in `sublayers`, and each has two slots:

    - `sequential[name]` is applied to the sublayer's output before the residual is added;
    - `parallel[name]` reads the block's residual stream before the sublayer (un-normalised, where the
      block normalises first) and is added to the sublayer's result.

    A block that normalises after adding the residual has a third:

    - `post_norm[name]` reads what `parallel[name]` reads and is added to the norm's result.

    Empty slots cost nothing.
    """

    name: str
    stream: str
    sublayers: ClassVar[tuple[str, ...]]
    sequential: nn.ModuleDict
    parallel: nn.ModuleDict
    normalizes_last: ClassVar[bool] = False
    """Whether it is a post-norm block, with slots `post_norm`."""
    post_norm: nn.ModuleDict

    @abstractmethod
    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """`hidden` `(B, T, D)` → `(B, T, D)`; masks are additive float `(B, 1, 1, T)` or None.

        `context` is the other stream's hidden states, for blocks with cross-attention.
        """

    def first(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor:
        """The first token of what `forward` returns, `(B, 1, D)`; a block need not compute the others for it."""
        return self(hidden, mask, context, context_mask)[:, :1]  # type: ignore[no-any-return]

    @abstractmethod
    def projections(self) -> dict[str, nn.Linear]:
        """The block's linear maps by role: `attention.query`, `attention.key`, `attention.value`,
        `attention.output`, `mlp.up`, `mlp.down` (METER: `self_attention.…`, `cross_attention.…`).
        """

    @abstractmethod
    def set_projection(self, role: str, module: nn.Module) -> None:
        """Put `module` (a map `(…, in) → (…, out)`) in the place of the projection `role`."""


def run_block(
    block: nn.Module,
    hidden: Tensor,
    mask: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    first_only: bool = False,
) -> Tensor:
    """`(B, T, D)` → `(B, T, D)`, or the first token of it `(B, 1, D)`, the short way if the block has one.

    Whatever stands in a block's place may lack `Block.first`; it is then run whole.
    """
    short = getattr(block, "first", None) if first_only else None
    if short is not None:
        return short(hidden, mask, context, context_mask)  # type: ignore[no-any-return]
    result: Tensor = block(hidden, mask, context, context_mask)
    return result[:, :1] if first_only else result
