"""DAS, dynamic architecture skipping (Wu et al., NeurIPS 2023, arXiv:2309.01479).

A k-armed bandit finds the blocks a task can do without: each block has a gate, sub-networks with some
blocks skipped are drawn by the gates while adapters are trained, and the gates learn from the loss the
sub-networks have on held-out data. The chosen blocks leave the model for good; a small adapter carries
the hidden states past each of them, and the blocks that stay get parallel adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import comb
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block, BlockInput, BlockOutput, run_block
from harness.backbones.folded import Shortcut
from harness.backbones.folding import HasBranch, is_hooked
from harness.backbones.inputs import Streams
from harness.errors import UserError, did_you_mean
from methods.bandit import Bandit, Findings, Update, reward_of
from methods.base import CostCase, Inserted, Method, SearchTrainer, Slot, freeze
from methods.bottleneck import BottleneckAdapter
from methods.das_decision import DASDecision


@dataclass(frozen=True)
class DASOptions:
    """What can be chosen about DAS.

    skip: number of blocks to skip; by default 4 of a two-stream backbone (as published for METER) and 2 of
        a single-stream one (the public ViLT scripts skip 1).
    blocks: skip exactly these, without a search (`joint.3+joint.7`, or just `3+7`).
    variant: `sound` rewards on fresh batches of a split kept apart from the one trained on, in evaluation
        mode, with a reward that has no scale, and keeps what the search has trained; `published` is the
        authors' code: one and the same batch, part of the training data, dropout on, reward exp(−loss),
        retrained with fresh adapters and a fresh head.
    reward: `standardized` (mean 0, deviation 1 within the sampled sets) or `exponential` (exp(−loss)); by
        default what the variant uses.
    search_epochs: epochs of the search; gates stay at 0 in the first `warmup_epochs` of them.
    period: training steps between two updates of the gates; by default 10, but small training sets get at
        least 60 updates an epoch, or one a step (`sound` only): with 20 the gates depend on which sets were drawn.
    sets: distinct sets of skipped blocks compared in an update.
    warm_start: the retraining begins with the adapters and the head as the search has trained them, instead of
        fresh ones; by default what the variant does.
    bottleneck: of the parallel adapters (one a sublayer of each block kept: two in ViLT, three in METER); by
        default width / 8 (96 at 768).
    shortcut_bottleneck: of the adapter in a skipped block's place; by default width / 4 on one stream (192)
        and 3/8 of the width on two (288).
    """

    skip: int | None = None
    blocks: tuple[str, ...] = ()
    variant: Literal["sound", "published"] = "sound"
    reward: Literal["standardized", "exponential"] | None = None
    search_epochs: int = 3
    warmup_epochs: int = 1
    period: int | None = None
    sets: int = 3
    warm_start: bool | None = None
    bottleneck: int | None = None
    shortcut_bottleneck: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("skip", 0), ("period", 1), ("bottleneck", 1), ("shortcut_bottleneck", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"das: {name} must be at least {least}, got {value}.")
        if self.sets < 2:
            raise UserError(
                f"das: sets must be at least 2, a set is only judged beside others; got {self.sets}."
            )
        if self.search_epochs <= self.warmup_epochs and not self.blocks:
            raise UserError(
                f"das: the gates learn only after warmup_epochs ({self.warmup_epochs}); "
                f"search_epochs must be more, got {self.search_epochs}."
            )


class SkippedBlock(Inserted):
    """What stands in a skipped block's place: `x + up(ReLU(down(LN(x))))`, all tokens alike."""

    def __init__(self, name: str, stream: str, shortcut: nn.Module) -> None:
        super().__init__()
        self.name = name
        self.stream = stream
        self.shortcut = shortcut

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; masks and the other stream are not read."""
        return inputs.result(self.shortcut(inputs.asking))

    def folded(self) -> nn.Module:
        """Its deployed form: the norm's gain and offset in the lower projection."""
        branch = self.shortcut.branch() if isinstance(self.shortcut, HasBranch) else None
        if branch is None or is_hooked(self):
            return self
        return SkippedBlock(self.name, self.stream, Shortcut(branch, next(self.parameters())))


class ClassificationToken(Inserted):
    """A trained token `(1, 1, D)` in the place of a stream's first, for `Backbone.prompt`."""

    def __init__(self, initial: Tensor, stream: str) -> None:
        super().__init__()
        self.token = nn.Parameter(initial.view(1, 1, -1))
        self.stream = stream

    def forward(self, streams: Streams) -> Streams:
        """The streams as they are but for that token."""
        stream = streams[self.stream]
        token = self.token.to(stream.hidden.dtype).expand(len(stream.hidden), -1, -1)
        replaced = replace(stream, hidden=torch.cat([token, stream.hidden[:, 1:]], dim=1))
        return {**streams, self.stream: replaced}


class GatedBlock(nn.Module):
    """A block during the search: itself with its parallel adapters, or its shortcut, as `skip` says."""

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


class DAS(Method[DASOptions]):
    """Search, then train with the chosen blocks gone; the pretrained weights stay as they are in both."""

    name: ClassVar[str] = "das"
    summary: ClassVar[str] = "skips the blocks a bandit finds redundant; adapters beside the others"
    source: ClassVar[str] = "Wu et al., NeurIPS 2023"
    Options: ClassVar[type[Any]] = DASOptions
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.PARALLEL, Slot.BLOCKS})
    Decision: ClassVar[type[Any]] = DASDecision

    def __init__(self, options: DASOptions | None = None) -> None:
        super().__init__(options)
        self.chosen: tuple[str, ...] = ()

    @property
    def searches(self) -> bool:  # type: ignore[override]
        """Unless the blocks are given, or none is to be skipped."""
        return not self.options.blocks and self.options.skip != 0

    @property
    def search_epochs(self) -> int:  # type: ignore[override]
        """As chosen; none where nothing is searched."""
        return self.options.search_epochs if self.searches else 0

    @property
    def search_holdout(self) -> float:  # type: ignore[override]
        """The published variant rewards on what it trains on."""
        return 0.0 if self.options.variant == "published" else 0.2

    def decide(self, decision: DASDecision) -> None:
        """Skip the blocks that a search has chosen."""
        self.chosen = decision.skipped

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """Where a search is still to choose, a case for each number of blocks skipped in each stream."""
        if not self.searches:
            return (CostCase(),)
        cases = []
        for skipped in skippable_sets(self.options, backbone):
            streams = [name.split(".")[0] for name in skipped]
            numbers = " + ".join(f"{streams.count(stream)} {stream}" for stream in backbone.stream_names)
            cases.append(CostCase(f"{numbers} skipped", DASDecision(skipped)))
        return cases

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Shortcuts for the chosen blocks, which leave the module tree; parallel adapters for the rest."""
        chosen = self.chosen or resolve_blocks(self.options.blocks, backbone)
        if self.searches and not chosen:
            raise RuntimeError("das: adapt before search and decide")
        freeze(backbone)
        add_classification_token(backbone)
        for index, name in enumerate(backbone.block_names):
            if name in chosen:
                backbone.blocks[index] = self._shortcut(backbone, index, generator)
            else:
                self._add_parallel(backbone, index, generator)

    @property
    def warm_starts(self) -> bool:
        """Whether training begins with what the search has trained."""
        asked = self.options.warm_start
        return self.options.variant == "sound" if asked is None else asked

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each block's part of its `GatedBlock`, under the block's own name; all else as it is."""
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
            # Published for METER: beside attention inside the norm, beside the feed-forward behind it.
            slots = block.post_norm if block.normalizes_last and sublayer == "mlp" else block.parallel
            slots[sublayer] = BottleneckAdapter(
                backbone.width,
                self.options.bottleneck or max(1, backbone.width // 8),
                generator,
                layer_norm=True,
                residual=False,
            )

    def _shortcut(self, backbone: Backbone, index: int, generator: torch.Generator) -> SkippedBlock:
        block = backbone.blocks[index]
        eighths = 2 if len(backbone.stream_names) == 1 else 3
        bottleneck = self.options.shortcut_bottleneck or max(1, backbone.width * eighths // 8)
        adapter = BottleneckAdapter(backbone.width, bottleneck, generator, layer_norm=True, residual=True)
        return SkippedBlock(str(block.name), str(block.stream), adapter)

    def search(self, trainer: SearchTrainer) -> DASDecision:
        """Train the super-network on `trainer`'s training part and let the gates learn."""
        backbone = trainer.backbone
        freeze(backbone)
        add_classification_token(backbone)
        for index in range(len(backbone.blocks)):
            shortcut = self._shortcut(backbone, index, trainer.generator)
            self._add_parallel(backbone, index, trainer.generator)
            backbone.blocks[index] = GatedBlock(backbone.blocks[index], shortcut)
        bandit = Bandit(len(backbone.blocks), number_to_skip(self.options, backbone), trainer.generator)
        period = self._period(trainer.steps_per_epoch)
        sets = min(self.options.sets, comb(bandit.blocks, bandit.skip))
        reward = self.options.reward or ("standardized" if self.options.variant == "sound" else "exponential")
        names = backbone.block_names
        findings = Findings(bandit)

        def before_step(epoch: int, step: int) -> None:  # noqa: ARG001 - the trainer calls it so
            skip_only(backbone, bandit.draw())

        def after_step(epoch: int, step: int) -> None:
            if epoch < self.options.warmup_epochs or (step + 1) % period or sets < 2:
                return
            drawn = bandit.draw_distinct(sets)
            losses = self._losses(trainer, drawn)
            rewards = reward_of(losses, reward)
            bandit.update(drawn, rewards)
            named = [[names[i] for i in chosen] for chosen in drawn]
            findings.updates.append(Update(epoch, step, named, losses, rewards, bandit.gates.tolist()))

        trainer.train(self.options.search_epochs, before_step, after_step, findings)
        settings = {
            "variant": self.options.variant,
            "reward": reward,
            "skip": bandit.skip,
            "period": period,
            "sets": sets,
            "search_epochs": self.options.search_epochs,
            "warmup_epochs": self.options.warmup_epochs,
            "warm_start": self.warm_starts,
        }
        gates = dict(zip(names, bandit.gates.tolist(), strict=True))
        chosen_blocks = tuple(names[i] for i in bandit.best())
        return DASDecision(chosen_blocks, gates, settings, tuple(findings.updates))

    def _period(self, steps_per_epoch: int) -> int:
        if self.options.period is not None:
            return self.options.period
        return 10 if self.options.variant == "published" else max(1, min(10, steps_per_epoch // 60))

    def _losses(self, trainer: SearchTrainer, drawn: list[tuple[int, ...]]) -> list[float]:
        """Each set's loss, all on the same batch."""
        published = self.options.variant == "published"
        batch = trainer.training_batch() if published else trainer.held_out_batch()
        losses = []
        for chosen in drawn:
            skip_only(trainer.backbone, chosen)
            losses.append(trainer.loss(batch, training_mode=published))
        return losses


def add_classification_token(backbone: Backbone) -> None:
    """Let the text's first token train, on backbones that pool it behind frozen encoders (METER)."""
    initial = backbone.classification_token()
    if initial is not None:
        backbone.prompt = ClassificationToken(initial, backbone.stream_names[0])


def skip_only(backbone: Backbone, chosen: tuple[int, ...]) -> None:
    """Send the hidden states past these blocks and through all others."""
    for index, block in enumerate(backbone.blocks):
        block.skip = index in chosen  # type: ignore[assignment]


def number_to_skip(options: DASOptions, backbone: Backbone) -> int:
    """The number asked for, or the backbone's usual one, checked against its blocks."""
    skip = options.skip
    if skip is None:
        skip = 2 if len(backbone.stream_names) == 1 else 4
    if skip >= len(backbone.block_names):
        raise UserError(f"das: skip={skip}, but {backbone.name} has {len(backbone.block_names)} blocks.")
    return skip


def skippable_sets(options: DASOptions, backbone: Backbone) -> list[tuple[str, ...]]:
    """What a search may choose, one set for each number of blocks skipped in each stream.

    Sets with the same numbers cost the same: a stream's blocks are alike.
    """
    skip = number_to_skip(options, backbone)
    by_stream = [
        [name for name in backbone.block_names if name.split(".")[0] == stream]
        for stream in backbone.stream_names
    ]
    choices = product(*(range(len(names) + 1) for names in by_stream))
    return [
        tuple(name for names, number in zip(by_stream, numbers, strict=True) for name in names[:number])
        for numbers in choices
        if sum(numbers) == skip
    ]


def resolve_blocks(blocks: tuple[str, ...], backbone: Backbone) -> tuple[str, ...]:
    """Full block names of `blocks`, which may be numbers on a backbone with one stream."""
    names = backbone.block_names
    found = []
    for block in blocks:
        name = (
            f"{backbone.stream_names[0]}.{block}"
            if block.isdigit() and len(backbone.stream_names) == 1
            else block
        )
        if name not in names:
            raise UserError(f"das: {backbone.name} has no block '{block}'.{did_you_mean(block, names)}")
        found.append(name)
    if len(set(found)) != len(found) or len(found) >= len(names):
        raise UserError(f"das: blocks={'+'.join(blocks)} must be different ones, and not all {len(names)}.")
    return tuple(found)
