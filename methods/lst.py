"""Ladder side tuning (Sung et al., NeurIPS 2022): a small network beside the frozen one, without gradient through it.

Written from the paper and its public code, ylsung/Ladder-Side-Tuning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from harness.backbones import kernels
from harness.backbones.base import Backbone
from harness.backbones.block import BlockOutput, Tokens
from harness.backbones.inputs import Streams
from harness.errors import UserError
from methods.base import Inserted, Method, freeze
from methods.bottleneck import linear
from methods.option_checks import module_size

GATE_TEMPERATURE = 0.1
"""A gate is `sigmoid(α / 0.1)`, as in the public code."""


@dataclass(frozen=True)
class LSTOptions:
    """Options of ladder side tuning.

    reduction: the side network's width is the backbone's divided by this. The paper uses 8; 4 is its larger variant.
    """

    reduction: int = 4

    def __post_init__(self) -> None:
        module_size("lst", reduction=self.reduction)


@runtime_checkable
class RunsBlocks(Protocol):
    """A backbone whose forward pass has separate steps: input of the blocks, the blocks, and pooling."""

    enter: Callable[[Streams], dict[str, Tokens]]
    run_blocks: Callable[[Streams], dict[str, Tokens]]
    pool: Callable[[Mapping[str, Tokens]], Tensor]


class SideBlock(nn.Module):
    """A pre-norm transformer layer of width s: 12 s² + 13 s parameters."""

    def __init__(self, width: int, heads: int, std: float, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (
            linear(width, width, std, generator) for _ in range(4)
        )
        self.up = linear(width, 4 * width, std, generator)
        self.down = linear(4 * width, width, std, generator)

    def forward(self, side: Tensor, mask: Tensor | None) -> Tensor:
        """`(B, T, s)` → `(B, T, s)`; mask as in `Tokens`."""
        normed = self.attention_norm(side)
        query, key, value = (
            each(normed).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for each in (self.query, self.key, self.value)
        )
        mixed = kernels.attention(query, key, value, mask)
        side = side + self.output(mixed.transpose(1, 2).flatten(2))
        return side + self.down(F.gelu(self.up(self.mlp_norm(side))))  # type: ignore[no-any-return]


class Rung(nn.Module):
    """One layer of the side network: a block of the backbone enters through a gate, then the side block runs."""

    def __init__(
        self, width: int, side_width: int, heads: int, std: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(()))
        self.reduce = _without_bias(width, side_width, std, generator)
        self.block = SideBlock(side_width, heads, std, generator)

    def forward(self, side: Tensor, tokens: Tokens) -> Tensor:
        """The state so far `(B, T, s)` and the backbone's block's tokens `(B, T, D)` → `(B, T, s)`."""
        gate = torch.sigmoid(self.alpha / GATE_TEMPERATURE)
        return self.block(gate * side + (1 - gate) * self.reduce(tokens.hidden), tokens.mask)  # type: ignore[no-any-return]


class Ladder(Inserted):
    """The side network: for each stream an entry and an exit, for each block of the backbone a rung.

    The exits start at 0, so that the model starts with the pretrained outputs.
    """

    def __init__(self, backbone: Backbone, reduction: int, generator: torch.Generator) -> None:
        super().__init__()
        width, std = backbone.width, backbone.initializer_range
        side = width // reduction
        self.streams = [str(block.stream) for block in backbone.blocks]
        self.entries = nn.ModuleDict(
            {name: _without_bias(width, side, std, generator) for name in backbone.stream_names}
        )
        self.rungs = nn.ModuleList(
            Rung(width, side, cast(int, block.heads), std, generator) for block in backbone.blocks
        )
        self.exits = nn.ModuleDict(
            {name: _without_bias(side, width, 0.0, generator) for name in backbone.stream_names}
        )

    def forward(self, entered: Mapping[str, Tokens], after: list[Tokens]) -> dict[str, Tensor]:
        """The addition to each stream's last states, `(B, T, D)`.

        entered: input of the first blocks, by stream. after: output of each block.
        """
        sides = {name: self.entries[name](tokens.hidden) for name, tokens in entered.items()}
        for stream, rung, tokens in zip(self.streams, self.rungs, after, strict=True):
            sides[stream] = rung(sides[stream], tokens)
        return {name: self.exits[name](side) for name, side in sides.items()}


class LST(Method[LSTOptions]):
    """Only the side network trains. The backbone runs without gradient, so its activations need no memory.

    The result of the side network is added to the backbone's last states before the pooler. On two streams each has its
    own ladder; the states that enter it have read the other stream.
    """

    name: ClassVar[str] = "lst"
    summary: ClassVar[str] = "a small network beside the blocks; no gradient through the backbone"
    source: ClassVar[str] = "Sung et al., NeurIPS 2022"
    family: ClassVar[str] = "side network"
    Options: ClassVar[type[Any]] = LSTOptions
    learning_rate_scale: ClassVar[float] = 10.0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Add the ladder.

        Raises:
            UserError: the reduction does not divide the width, or the backbone cannot be taken apart.
        """
        freeze(backbone)
        self._check(backbone)
        backbone.add_module("ladder", Ladder(backbone, self.options.reduction, generator))
        # A partial, not a closure: a copy of the backbone must run its own ladder.
        backbone.fuse = partial(_fuse_beside, backbone)  # type: ignore[method-assign]

    def _check(self, backbone: Backbone) -> None:
        if not isinstance(backbone, RunsBlocks) or not all(
            hasattr(block, "heads") for block in backbone.blocks
        ):
            raise UserError(f"lst: {backbone.name} does not give out the states between its blocks.")
        reduction, heads = self.options.reduction, {cast(int, block.heads) for block in backbone.blocks}
        if any(backbone.width % (reduction * number) for number in heads):
            raise UserError(
                f"lst: reduction={reduction}: the width of {backbone.name}, {backbone.width}, divided by it must be "
                f"a multiple of its {max(heads)} attention heads."
            )


def _fuse_beside(backbone: Backbone, streams: Streams) -> Tensor:
    """`fuse` with the ladder: the blocks run without gradient, their states are read by the side network."""
    runner = cast(RunsBlocks, backbone)
    # Token types train, and enter the side network with gradient.
    entered = runner.enter(streams)
    with _outputs(backbone.blocks) as after, torch.no_grad():
        last = runner.run_blocks(streams)
    added = cast(Ladder, backbone.ladder)(entered, after)
    return runner.pool(
        {name: tokens.with_hidden(tokens.hidden + added[name]) for name, tokens in last.items()}
    )


@contextmanager
def _outputs(blocks: nn.ModuleList) -> Iterator[list[Tokens]]:
    """A list that is filled with the output of each block, in the order of the blocks, when they run."""
    found: list[Any] = [None] * len(blocks)

    def keep(index: int, _module: nn.Module, _args: Any, output: BlockOutput) -> None:
        found[index] = output.tokens

    handles = [block.register_forward_hook(partial(keep, index)) for index, block in enumerate(blocks)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _without_bias(inputs: int, outputs: int, std: float, generator: torch.Generator) -> nn.Linear:
    module: nn.Linear = skip_init(nn.Linear, inputs, outputs, bias=False)  # type: ignore[no-untyped-call]
    nn.init.normal_(module.weight, std=std, generator=generator)
    return module
