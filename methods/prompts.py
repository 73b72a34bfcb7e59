"""Prompts (VPT, Jia et al., ECCV 2022): trained tokens that are inserted into the hidden states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block, BlockInput, BlockOutput, run_block
from harness.backbones.folding import fold_block
from harness.backbones.generative import GenerativeBackbone
from harness.backbones.inputs import Streams
from harness.errors import UserError
from methods.base import Inserted, Method, Slot, freeze
from methods.option_checks import between

INITIAL_STD = 0.02
"""Standard deviation of new tokens, drawn from a normal distribution. VPT draws them from a uniform one with a standard
deviation of 0.0228 (patch 32, width 768)."""


MOST = 4096
"""Largest number of prompt tokens: attention takes time and memory in proportion to its square."""


@dataclass(frozen=True)
class PromptOptions:
    """Options of prompts.

    tokens: number of prompt tokens in each stream (deep: in each block); by default 200, as in the DAS paper's
        comparison, or 16 if the hidden size is below 512.
    """

    tokens: int | None = None

    def __post_init__(self) -> None:
        between("prompt", 1, MOST, tokens=self.tokens)


class Prompt(Inserted):
    """Trained tokens `(N, D)`, inserted after the first token of a sequence, the classification token."""

    def __init__(self, tokens: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.tokens, std=INITIAL_STD, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, T, D)` → `(B, T + N, D)`."""
        tokens = self.tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        return torch.cat([hidden[:, :1], tokens, hidden[:, 1:]], dim=1)

    def leave_room(self, states: Tensor) -> Tensor:
        """States `(B, T, D)` that are added to tokens → `(B, T + N, D)`; to the prompt, 0 is added."""
        zeros = states.new_zeros(states.shape[0], len(self.tokens), states.shape[-1])
        return torch.cat([states[:, :1], zeros, states[:, 1:]], dim=1)

    def widen(self, mask: Tensor) -> Tensor:
        """A mask `(…, T)` → `(…, T + N)` that lets tokens attend to the prompt.

        mask: boolean (True for tokens, False for padding), or a number that is added to attention scores.
        """
        attend = mask.new_full((*mask.shape[:-1], len(self.tokens)), mask.dtype == torch.bool)
        return torch.cat([mask[..., :1], attend, mask[..., 1:]], dim=-1)

    def widen_sizes(self, sizes: Tensor) -> Tensor:
        """Token sizes `(B, T)` → `(B, T + N)`; the size of a prompt token is 1."""
        ones = sizes.new_ones(len(sizes), len(self.tokens))
        return torch.cat([sizes[:, :1], ones, sizes[:, 1:]], dim=1)


class StreamPrompts(nn.Module):
    """One prompt for each stream, for `Backbone.prompt`."""

    def __init__(self, prompts: dict[str, Prompt]) -> None:
        super().__init__()
        self.prompts = nn.ModuleDict(prompts)

    def forward(self, streams: Streams) -> Streams:
        """Insert each stream's prompt into it."""
        prompted: Streams = {}
        for name, stream in streams.items():
            prompt = self.prompts[name]
            mask = None if stream.mask is None else prompt.widen(stream.mask)  # type: ignore[operator]
            length = stream.text_length
            prompted[name] = replace(
                stream,
                hidden=prompt(stream.hidden),
                mask=mask,
                text_length=None if length is None else length + len(prompt.tokens),  # type: ignore[arg-type]
                links=tuple(prompt.leave_room(states) for states in stream.links),  # type: ignore[operator]
            )
        return prompted


class PromptedBlock(Block):
    """A block with its own prompt, which is inserted before it and removed after it."""

    def __init__(self, block: Block, prompt: Prompt) -> None:
        super().__init__()
        self.name = block.name
        self.stream = block.stream
        self.block = block
        self.prompt = prompt

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; the other stream has no prompt.

        If only the first token is wanted, the outputs of the prompt, which follows it, need not be computed.
        """
        tokens, count = inputs.tokens, len(self.prompt.tokens)
        prompted = replace(
            tokens,
            hidden=self.prompt(tokens.hidden),
            mask=None if tokens.mask is None else self.prompt.widen(tokens.mask),
            text_length=None if tokens.text_length is None else tokens.text_length + count,
            sizes=None if tokens.sizes is None else self.prompt.widen_sizes(tokens.sizes),
        )
        if inputs.queries == 1:
            return run_block(self.block, replace(inputs, tokens=prompted))
        hidden = run_block(self.block, replace(inputs, tokens=prompted, queries=None)).tokens.hidden
        without = torch.cat([hidden[:, :1], hidden[:, 1 + count :]], dim=1)
        return inputs.result(without if inputs.queries is None else without[:, : inputs.queries])

    @property
    def sublayers(self) -> tuple[str, ...]:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.sublayers

    @property
    def sequential(self) -> nn.ModuleDict:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.sequential

    @property
    def parallel(self) -> nn.ModuleDict:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.parallel

    @property
    def normalizes_last(self) -> bool:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.normalizes_last

    @property
    def norm_eps(self) -> float | None:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.norm_eps

    @property
    def post_norm(self) -> nn.ModuleDict:  # type: ignore[override]
        """The same as the wrapped block's."""
        return self.block.post_norm

    def projections(self) -> dict[str, nn.Linear]:
        """The same as the wrapped block's."""
        return self.block.projections()

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace a projection of the wrapped block."""
        self.block.set_projection(role, module)

    def folded(self) -> nn.Module:
        """Replace the wrapped block by its deployed form."""
        self.add_module("block", fold_block(self.block))
        return self


class ShallowPrompt(Method[PromptOptions]):
    """Prompt tokens are inserted into each stream before the first block and stay in it."""

    name: ClassVar[str] = "shallow_prompt"
    summary: ClassVar[str] = "trained tokens in each stream, from the first block on"
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    family: ClassVar[str] = "prompts"
    Options: ClassVar[type[Any]] = PromptOptions
    learning_rate_scale: ClassVar[float] = 15.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PROMPT})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Insert the prompts between `encode` and the first block."""
        freeze(backbone)
        tokens = prompt_length(backbone.width, self.options.tokens)
        backbone.prompt = StreamPrompts(
            {name: Prompt(tokens, backbone.width, generator) for name in backbone.stream_names}
        )


class DeepPrompt(Method[PromptOptions]):
    """Each block has its own prompt tokens, which are removed after it."""

    name: ClassVar[str] = "deep_prompt"
    summary: ClassVar[str] = "trained tokens in every block, removed after it"
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    family: ClassVar[str] = "prompts"
    Options: ClassVar[type[Any]] = PromptOptions
    learning_rate_scale: ClassVar[float] = 1.5
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.TOKENS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Wrap every block with a prompt.

        Raises:
            UserError: the blocks know each token's position, as those of a decoder do.
        """
        if isinstance(backbone, GenerativeBackbone):
            raise UserError(
                f"{self.name}: {backbone.name}'s blocks read each token's position and keep keys and values, so that "
                "tokens cannot come and go between them; use shallow_prompt."
            )
        freeze(backbone)
        tokens = prompt_length(backbone.width, self.options.tokens)
        for index, block in enumerate(cast(Iterable[Block], backbone.blocks)):
            prompt = Prompt(tokens, backbone.width, generator)
            backbone.blocks[index] = PromptedBlock(block, prompt)


def prompt_length(width: int, tokens: int | None) -> int:
    """The chosen number of tokens, or the default for this hidden size."""
    if tokens is not None:
        return tokens
    return 200 if width >= 512 else 16
