"""Models with skipped blocks, as DAS trains them: shared by DAS and the baselines of block skipping.

A shortcut, a small adapter, takes the place of each skipped block. The other blocks have an adapter beside each
sublayer. Which blocks are skipped is the only difference between these methods.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, ClassVar, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block, BlockInput, BlockOutput, run_block
from harness.backbones.folded_sublayers import Shortcut
from harness.backbones.folding import HasBranch, is_hooked
from harness.backbones.inputs import Streams
from harness.errors import UserError, did_you_mean
from methods.base import CostCase, Inserted, Method, SearchTrainer, Slot, freeze
from methods.bottleneck import BottleneckAdapter, eps_beside


class SkippingOptions(Protocol):
    """The options that all methods with skipped blocks have.

    skip: number of blocks to skip; None: 4 on a two-stream backbone, 2 on a single-stream one.
    bottleneck: hidden size of the parallel adapters; None: width / 8.
    shortcut_bottleneck: hidden size of a shortcut; None: width / 4 on one stream and 3/8 of the width on two.
    """

    @property
    def skip(self) -> int | None: ...

    @property
    def bottleneck(self) -> int | None: ...

    @property
    def shortcut_bottleneck(self) -> int | None: ...


class SkippedBlock(Inserted):
    """Takes the place of a skipped block: `x + up(ReLU(down(LN(x))))`, token by token."""

    def __init__(self, name: str, stream: str, shortcut: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.stream = stream
        self.shortcut = shortcut

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; masks and the other stream are not read."""
        return inputs.result(self.shortcut(inputs.asking))

    def folded(self) -> nn.Module:
        """Its deployed form: gain and offset of the norm are folded into the lower projection."""
        branch = self.shortcut.branch() if isinstance(self.shortcut, HasBranch) else None
        if branch is None or is_hooked(self):
            return self
        return SkippedBlock(self.name, self.stream, Shortcut(branch, next(self.parameters())))


class ClassificationToken(Inserted):
    """A trained token `(1, 1, D)` that replaces the first token of a stream; used as `Backbone.prompt`."""

    def __init__(self, initial: Tensor, stream: str) -> None:
        super().__init__()
        self.token = nn.Parameter(initial.view(1, 1, -1))
        self.stream = stream

    def forward(self, streams: Streams) -> Streams:
        """The streams with this token replaced."""
        stream = streams[self.stream]
        token = self.token.to(stream.hidden.dtype).expand(len(stream.hidden), -1, -1)
        replaced = replace(stream, hidden=torch.cat([token, stream.hidden[:, 1:]], dim=1))
        return {**streams, self.stream: replaced}


class GatedBlock(nn.Module):
    """A block during a search: the block with its parallel adapters, or its shortcut if `skip` is true."""

    def __init__(self, block: nn.Module, shortcut: SkippedBlock) -> None:
        super().__init__()
        self.name = shortcut.name
        self.stream = shortcut.stream
        self.block = block
        self.shortcut = shortcut
        self.skip = False

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`."""
        return run_block(self.shortcut if self.skip else self.block, inputs)


OptionsT = TypeVar("OptionsT", bound=SkippingOptions)


class SkippingMethod(Method[OptionsT]):
    """Base class: shortcuts in place of the chosen blocks, parallel adapters beside the others.

    The pretrained weights do not change. On METER the text's first token is trained as well.
    """

    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PARALLEL, Slot.BLOCKS})

    def __init__(self, options: OptionsT | None = None) -> None:
        super().__init__(options)
        self.chosen: tuple[str, ...] = ()

    @property
    def warm_starts(self) -> bool:
        """True if training starts with the weights that the search trained."""
        return False

    def decide(self, decision: Any) -> None:
        """Skip the blocks that `decision.skipped` names."""
        self.chosen = decision.skipped

    def blocks_to_skip(self, backbone: Backbone) -> tuple[str, ...]:
        """The names of the blocks that `adapt` skips."""
        return self.chosen

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Replace the chosen blocks by shortcuts and add parallel adapters to the others."""
        chosen = self.blocks_to_skip(backbone)
        if self.searches and not chosen:
            raise RuntimeError(f"{self.name}: adapt was called before search and decide")
        freeze(backbone)
        add_classification_token(backbone)
        for index, name in enumerate(backbone.block_names):
            if name in chosen:
                backbone.blocks[index] = self._shortcut(backbone, index, generator)
            else:
                self._add_parallel(backbone, index, generator)

    def build_supernet(self, trainer: SearchTrainer) -> None:
        """Give every block of the trainer's backbone parallel adapters and a shortcut, and make it a `GatedBlock`."""
        backbone = trainer.backbone
        freeze(backbone)
        add_classification_token(backbone)
        for index in range(len(backbone.blocks)):
            shortcut = self._shortcut(backbone, index, trainer.generator)
            self._add_parallel(backbone, index, trainer.generator)
            backbone.blocks[index] = GatedBlock(backbone.blocks[index], shortcut)

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The searched weights of each block's form, adapted or shortcut, and all weights outside the blocks."""
        if not self.warm_starts:
            return {}
        paths = {id(module): f"backbone.{path}." for path, module in backbone.named_modules()}
        places = tuple(paths[id(block)] for block in backbone.blocks)
        start = {name: tensor for name, tensor in searched.items() if not name.startswith(places)}
        for place, block in zip(places, backbone.blocks, strict=True):
            within = place + ("shortcut." if isinstance(block, SkippedBlock) else "block.")
            for name, tensor in searched.items():
                if name.startswith(within):
                    start[place + name.removeprefix(within)] = tensor
        return start

    def _add_parallel(self, backbone: Backbone, index: int, generator: torch.Generator) -> None:
        block = cast(Block, backbone.blocks[index])
        for sublayer in block.sublayers:
            # As published for METER: the adapter of attention is before the norm, that of the feed-forward after it.
            slots = block.post_norm if block.normalizes_last and sublayer == "mlp" else block.parallel
            slots[sublayer] = BottleneckAdapter(
                backbone.width,
                self.options.bottleneck or max(1, backbone.width // 8),
                generator,
                layer_norm=True,
                residual=False,
                eps=self._eps(block),
            )

    def _eps(self, block: object) -> float:
        """Epsilon of the LayerNorms of a block's adapters and of its shortcut."""
        return eps_beside(block)

    def _shortcut(self, backbone: Backbone, index: int, generator: torch.Generator) -> SkippedBlock:
        block = backbone.blocks[index]
        eighths = 2 if len(backbone.stream_names) == 1 else 3
        bottleneck = self.options.shortcut_bottleneck or max(1, backbone.width * eighths // 8)
        eps = self._eps(block)
        adapter = BottleneckAdapter(
            backbone.width, bottleneck, generator, layer_norm=True, residual=True, eps=eps
        )
        return SkippedBlock(str(block.name), str(block.stream), adapter)

    def cost_case(self, backbone: Backbone, decision: Any) -> CostCase:
        """The case of a decision, named by the number of blocks skipped in each stream."""
        streams = [name.split(".")[0] for name in decision.skipped]
        numbers = " + ".join(f"{streams.count(stream)} {stream}" for stream in backbone.stream_names)
        return CostCase(f"{numbers} skipped", decision)

    def number_to_skip(self, backbone: Backbone) -> int:
        """The number of blocks to skip: the option, or the backbone's default.

        Raises:
            UserError: the backbone has no more blocks than that.
        """
        skip = self.options.skip
        if skip is None:
            skip = 2 if len(backbone.stream_names) == 1 else 4
        blocks = len(backbone.block_names)
        if skip >= blocks:
            raise UserError(
                f"{self.name}: skip must be from 0 to {blocks - 1}, as {backbone.name} has {blocks} blocks; got {skip}."
            )
        return skip

    def resolve_blocks(self, blocks: Sequence[str], backbone: Backbone) -> tuple[str, ...]:
        """Full names of blocks, which may be given as numbers on a single-stream backbone.

        Raises:
            UserError: the backbone has no such block, one appears twice, or all are named.
        """
        names = backbone.block_names
        found = []
        for block in blocks:
            number = block.isdigit() and len(backbone.stream_names) == 1
            name = f"{backbone.stream_names[0]}.{block}" if number else block
            if name not in names:
                hint = did_you_mean(block, names)
                raise UserError(f"{self.name}: {backbone.name} has no block '{block}'.{hint}")
            found.append(name)
        if len(set(found)) != len(found) or len(found) >= len(names):
            given = "+".join(blocks)
            raise UserError(f"{self.name}: blocks={given} must be different, and fewer than {len(names)}.")
        return tuple(found)


def add_classification_token(backbone: Backbone) -> None:
    """Replace the text's first token by a trained one, on backbones that pool it after frozen encoders (METER)."""
    initial = backbone.classification_token()
    if initial is not None:
        backbone.prompt = ClassificationToken(initial, backbone.stream_names[0])


def skip_only(backbone: Backbone, chosen: Sequence[int]) -> None:
    """In a super-network of `GatedBlock`s, skip the blocks with these indices and no others."""
    for index, block in enumerate(backbone.blocks):
        block.skip = index in chosen  # type: ignore[assignment]


def by_stream(backbone: Backbone) -> list[list[str]]:
    """The names of each stream's blocks, in order."""
    return [
        [name for name in backbone.block_names if name.split(".")[0] == stream]
        for stream in backbone.stream_names
    ]


def skippable_sets(skip: int, backbone: Backbone) -> list[tuple[str, ...]]:
    """One set of `skip` blocks for each way to divide them among the streams.

    Sets with equal numbers per stream cost the same, because all blocks of a stream are alike.
    """
    streams = by_stream(backbone)
    choices = product(*(range(len(names) + 1) for names in streams))
    return [
        tuple(name for names, number in zip(streams, numbers, strict=True) for name in names[:number])
        for numbers in choices
        if sum(numbers) == skip
    ]
