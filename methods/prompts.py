"""Visual-language prompts (after VPT, Jia et al., ECCV 2022): trained tokens among the hidden states."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block, BlockInput, BlockOutput, run_block
from harness.backbones.folding import fold_block
from harness.backbones.inputs import Streams
from methods.base import Inserted, Method, freeze
from methods.option_checks import at_least

INITIAL_STD = 0.02
"""Of the tokens, normal. VPT draws them uniformly with a deviation of 0.0228 (patch 32, width 768)."""


@dataclass(frozen=True)
class PromptOptions:
    """What can be chosen about prompts.

    tokens: number of prompt tokens in each stream (deep: in each block); by default 200, as in DAS's
        comparison, and 16 where the hidden size is below 512.
    """

    tokens: int | None = None

    def __post_init__(self) -> None:
        at_least("prompt", 1, tokens=self.tokens)


class Prompt(Inserted):
    """Trained tokens `(N, D)` that go right behind a sequence's first token, the classification token."""

    def __init__(self, tokens: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        nn.init.normal_(self.tokens, std=INITIAL_STD, generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(B, T, D)` → `(B, T + N, D)`."""
        tokens = self.tokens.to(hidden.dtype).expand(hidden.shape[0], -1, -1)
        return torch.cat([hidden[:, :1], tokens, hidden[:, 1:]], dim=1)

    def widen(self, mask: Tensor) -> Tensor:
        """A mask `(…, T)` → `(…, T + N)` under which the prompt can be attended to.

        Boolean masks are True where there is a token, others are added to the attention's scores.
        """
        attend = mask.new_full((*mask.shape[:-1], len(self.tokens)), mask.dtype == torch.bool)
        return torch.cat([mask[..., :1], attend, mask[..., 1:]], dim=-1)

    def widen_sizes(self, sizes: Tensor) -> Tensor:
        """Token sizes `(B, T)` → `(B, T + N)`: a prompt token stands for itself."""
        ones = sizes.new_ones(len(sizes), len(self.tokens))
        return torch.cat([sizes[:, :1], ones, sizes[:, 1:]], dim=1)


class StreamPrompts(nn.Module):
    """One prompt for each stream, for `Backbone.prompt`."""

    def __init__(self, prompts: dict[str, Prompt]) -> None:
        super().__init__()
        self.prompts = nn.ModuleDict(prompts)

    def forward(self, streams: Streams) -> Streams:
        """Every stream with its prompt in it."""
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
            )
        return prompted


class PromptedBlock(Block):
    """A block that sees its own prompt; outside of it the hidden states are as many as before."""

    def __init__(self, block: Block, prompt: Prompt) -> None:
        super().__init__()
        self.name = block.name
        self.stream = block.stream
        self.block = block
        self.prompt = prompt

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; the other stream comes in without a prompt.

        Where only the first token is wanted the prompt's own states need not be computed: it stands behind it.
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
        """Those of the block inside."""
        return self.block.sublayers

    @property
    def sequential(self) -> nn.ModuleDict:  # type: ignore[override]
        """Those of the block inside."""
        return self.block.sequential

    @property
    def parallel(self) -> nn.ModuleDict:  # type: ignore[override]
        """Those of the block inside."""
        return self.block.parallel

    def projections(self) -> dict[str, nn.Linear]:
        """Those of the block inside."""
        return self.block.projections()

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace one in the block inside."""
        self.block.set_projection(role, module)

    def folded(self) -> nn.Module:
        """Itself with the block inside in its deployed form."""
        self.add_module("block", fold_block(self.block))
        return self


class ShallowPrompt(Method[PromptOptions]):
    """Prompt tokens join each stream before the first block and stay for all of them."""

    name: ClassVar[str] = "shallow_prompt"
    summary: ClassVar[str] = "trained tokens in each stream, from the first block on"
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    Options: ClassVar[type[Any]] = PromptOptions
    learning_rate_scale: ClassVar[float] = 15.0
    per_token: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Hang the prompts between `encode` and the first block."""
        freeze(backbone)
        tokens = prompt_length(backbone.width, self.options.tokens)
        backbone.prompt = StreamPrompts(
            {name: Prompt(tokens, backbone.width, generator) for name in backbone.stream_names}
        )


class DeepPrompt(Method[PromptOptions]):
    """Each block gets prompt tokens of its own, and their states are dropped behind it."""

    name: ClassVar[str] = "deep_prompt"
    summary: ClassVar[str] = "trained tokens in every block, dropped behind it"
    source: ClassVar[str] = "Jia et al., ECCV 2022"
    Options: ClassVar[type[Any]] = PromptOptions
    learning_rate_scale: ClassVar[float] = 1.5
    per_token: ClassVar[bool] = True

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Wrap every block."""
        freeze(backbone)
        tokens = prompt_length(backbone.width, self.options.tokens)
        for index, block in enumerate(cast(Iterable[Block], backbone.blocks)):
            prompt = Prompt(tokens, backbone.width, generator)
            backbone.blocks[index] = PromptedBlock(block, prompt)


def prompt_length(width: int, tokens: int | None) -> int:
    """What was chosen, or the default at this hidden size."""
    if tokens is not None:
        return tokens
    return 200 if width >= 512 else 16
