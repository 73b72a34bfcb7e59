"""Blocks: the units of the fusion stage that methods replace, wrap, or insert modules into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import ClassVar, Protocol, Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one stream between two blocks, with their mask and sizes.

    A block may return fewer tokens than it was given (merging, pruning). Mask, text length and sizes then describe
    the returned tokens.

    hidden: hidden states `(B, T, D)`.
    mask: additive float `(B, 1, 1, T)`, 0 for tokens that may be attended to and the lowest number for others; None:
        all may be attended to.
    text_length: in a stream that joins both modalities, the number of text tokens, which come first; None in a stream
        of one modality.
    sizes: `(B, T)` float, the number of original tokens that each token stands for; None: all 1.
    links: states `(B, T, D)` that the backbone adds to the tokens before its later blocks, in that order. They stay
        with the tokens whatever the blocks do, also where a block is skipped.
    """

    hidden: Tensor
    mask: Tensor | None = None
    text_length: int | None = None
    sizes: Tensor | None = None
    links: tuple[Tensor, ...] = ()

    def with_hidden(self, hidden: Tensor) -> Self:
        """The same tokens with other hidden states `(B, T, D)`."""
        return type(self)(
            hidden, self.mask, self.text_length, self.sizes, self.links
        )  # a third of `replace`'s time

    def first(self, count: int) -> Self:
        """The leading `count` tokens."""
        return replace(
            self,
            hidden=self.hidden[:, :count],
            mask=None if self.mask is None else self.mask[..., :count],
            text_length=None if self.text_length is None else min(self.text_length, count),
            sizes=None if self.sizes is None else self.sizes[:, :count],
            links=tuple(states[:, :count] for states in self.links),
        )

    def __len__(self) -> int:
        """Number of tokens T."""
        return self.hidden.shape[1]


class KeyValueCache:
    """Keys and values of earlier tokens, by the name of the block that computed them.

    A skipped block has none; nothing else may be read off it, least of all how many tokens there were.

    notes: what a block has derived from the prompt and reads again for later tokens, by the block's name: which rows
        run it, or the mean of its tokens.
    """

    def __init__(
        self,
        kept: Mapping[str, tuple[Tensor, Tensor]] = MappingProxyType({}),
        grows: bool = True,
        notes: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self._kept = dict(kept)
        self._grows = grows
        self.notes = dict(notes)

    def extend(self, name: str, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(B, heads, S + T, head size)` of the earlier S tokens and of these T."""
        if name in self._kept:
            earlier_key, earlier_value = self._kept[name]
            key, value = torch.cat([earlier_key, key], dim=2), torch.cat([earlier_value, value], dim=2)
        if self._grows:
            self._kept[name] = key, value
        return key, value

    def frozen(self) -> KeyValueCache:
        """The same content; what is added to it is not kept, so that several continuations can be tried."""
        return KeyValueCache(self._kept, grows=False, notes=self.notes)

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(state.nbytes for pair in self._kept.values() for state in pair)


@dataclass(frozen=True, slots=True)
class Causal:
    """What a decoder's block reads beside its tokens.

    cosines, sines: of the tokens' rotary positions, `(B, 1, T, head size)`.
    past: earlier tokens; None if all are among the block's tokens.
    prompt: how many of the block's tokens belong to the prompt, which comes first; the others follow it. None: all.
    """

    cosines: Tensor
    sines: Tensor
    past: KeyValueCache | None = None
    prompt: int | None = None


@dataclass(frozen=True, slots=True)
class BlockInput:
    """The input of a block.

    tokens: the tokens of its own stream.
    context: the other stream's tokens, for blocks with cross-attention; None if there is one stream.
    queries: compute only the first so many tokens, the "wanted" ones; the others are only attended to. None: all.
    causal: positions and earlier tokens, for a decoder's blocks; None elsewhere. The tokens' mask is then
        `(B, 1, T, S)`, or None where each token attends to all tokens up to itself.
    """

    tokens: Tokens
    context: Tokens | None = None
    queries: int | None = None
    causal: Causal | None = None

    @property
    def asking(self) -> Tensor:
        """Hidden states of the wanted tokens, `(B, queries, D)`."""
        hidden = self.tokens.hidden
        return hidden if self.queries is None else hidden[:, : self.queries]

    def result(self, hidden: Tensor) -> BlockOutput:
        """An output with these hidden states of the wanted tokens; mask and sizes are those of the input."""
        tokens = self.tokens if self.queries is None else self.tokens.first(self.queries)
        return BlockOutput(tokens.with_hidden(hidden))


@dataclass(frozen=True, slots=True)
class BlockOutput:
    """The output of a block: the wanted tokens, or all that are left.

    context: the other stream's tokens if the block has changed them too (a text layer that prunes image tokens); None:
        they are unchanged.
    """

    tokens: Tokens
    context: Tokens | None = None


class BlockLike(Protocol):
    """Anything in place of a block: the pretrained block, or one that is skipped, gated or routed."""

    name: str
    stream: str

    def __call__(self, inputs: BlockInput) -> BlockOutput:
        """Run on the tokens of its stream."""


class Block(nn.Module, ABC):
    """A pretrained block of the fusion stage.

    Its sublayers (attention, feed-forward, …) are named in `sublayers`, and each has two slots:

    - `sequential[name]` is applied to the sublayer's output before the residual is added;
    - `parallel[name]` reads the block's residual stream before the sublayer (before the norm in a pre-norm block) and
      is added to the sublayer's output.

    A post-norm block, which normalises after adding the residual, has a third:

    - `post_norm[name]` reads the same input as `parallel[name]` and is added to the output of the norm.

    Empty slots cost nothing.
    """

    name: str
    stream: str
    sublayers: ClassVar[tuple[str, ...]]
    sequential: nn.ModuleDict
    parallel: nn.ModuleDict
    normalizes_last: ClassVar[bool] = False
    """True for a post-norm block, which has `post_norm` slots."""
    post_norm: nn.ModuleDict
    norm_eps: float | None = None
    """Epsilon of the LayerNorms before the sublayers; None for a block without them. A parallel branch that normalises
    with the same epsilon reads what the sublayer reads, so that folding needs no correction."""

    @abstractmethod
    def forward(self, inputs: BlockInput) -> BlockOutput:
        """Run the block. It must return exactly the wanted tokens, and need not compute others."""

    @abstractmethod
    def projections(self) -> dict[str, nn.Linear]:
        """The block's linear maps by role: `attention.query`, `attention.key`, `attention.value`,
        `attention.output`, `mlp.up`, `mlp.down` (METER: `self_attention.…`, `cross_attention.…`).
        """

    @abstractmethod
    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace the projection `role` by `module`, a map `(…, in) → (…, out)`."""

    def folded(self) -> nn.Module:
        """The deployed form, with the same outputs; by default the block itself."""
        return self


def own_blocks(blocks: Iterable[nn.Module]) -> Iterator[Block]:
    """The blocks with projections and slots; methods may have replaced the others."""
    return (block for block in blocks if isinstance(block, Block))


def run_block(block: nn.Module, inputs: BlockInput) -> BlockOutput:
    """Run a block or its replacement.

    If it ignores `inputs.queries` and returns all tokens, the unwanted ones are dropped here.
    """
    output: BlockOutput = block(inputs)
    if inputs.queries is None or len(output.tokens) <= inputs.queries:
        return output
    return replace(output, tokens=output.tokens.first(inputs.queries))
