"""DAS, dynamic architecture skipping (Wu et al., NeurIPS 2023, arXiv:2309.01479).

A k-armed bandit finds the blocks that a task can do without. Each block has a gate. While adapters are trained,
sub-networks with some blocks skipped are sampled by the gates, and the gates learn from the losses of sub-networks
on held-out data. The chosen blocks are then removed from the model. A small adapter takes the place of each of them,
and the remaining blocks get parallel adapters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch

from harness.backbones.base import Backbone
from methods.bandit_search import check_search, holdout, search_with_bandit, warm_starts
from methods.base import CostCase, Recipe, SearchTrainer
from methods.bottleneck import LAYER_NORM_EPS
from methods.das_decision import DASDecision
from methods.das_decoder import adapt_decoder, published_skip, search_decoder
from methods.decoder_search import Form, recipe_of
from methods.option_checks import at_least, module_size, positive
from methods.recipes import recipes_of
from methods.skipping import SkippingMethod, skip_only, skippable_sets


@dataclass(frozen=True)
class DASOptions:
    """What can be chosen about DAS.

    skip: number of blocks to skip; by default 4 on a two-stream backbone (as published for METER) and 2 on a
        single-stream one (the public ViLT scripts skip 1).
    blocks: skip exactly these, without a search (`joint.3+joint.7`, or just `3+7`).
    variant: `sound` computes rewards on fresh batches of held-out training data, in evaluation mode and without
        regard to the loss's scale, and continues with the weights that the search trained. `published` is the
        authors' code: rewards exp(−loss) on a single batch of the data trained on, with dropout, taken before the
        optimiser's step, and retraining with new adapters and a new head. On ViLT the text embedding's token types
        train too.
    reward: `standardized` (mean 0 and deviation 1 within the sampled sets) or `exponential` (exp(−loss)); by
        default what the variant uses.
    search_epochs: epochs of the search.
    warmup_epochs: first epochs of the search, in which the gates stay at 0.
    period: training steps between two updates of the gates; by default 10. With `sound`, small training sets get at
        least 60 updates per epoch, or one per step: with 20, the gates depend on which sets were sampled.
    sets: number of different sets of skipped blocks that an update compares.
    warm_start: training starts with the adapters and the head that the search trained, instead of new ones; by
        default what the variant does.
    bottleneck: hidden size of the parallel adapters, one per sublayer of each remaining block (two in ViLT, three in
        METER); by default width / 8 (96 at 768).
    shortcut_bottleneck: hidden size of the adapter that takes a skipped block's place; by default width / 4 on one
        stream (192) and 3/8 of the width on two (288).
    form: on LLaVA, the adapters and the search: `own`, or those of the authors' `llava` (LLaVA-DAS, adapters behind
        both norms) and `lavin` (LaVIN-DAS, adapters with two experts behind the first norm), with new adapters
        after the search. LaVIN's warm-up has 5 epochs.
    gate_step, reward_on, reward_dropout: of the search of these two forms: factor of an update of the gates (0.1 and
        0.05), what rewards are computed on (`training`: a batch that is trained on; `held_out`: fresh data) and whether
        with dropout. By default as published: LLaVA on training data with dropout, LaVIN on held-out data without.
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
    form: Form = "own"
    gate_step: float | None = None
    reward_on: Literal["held_out", "training"] | None = None
    reward_dropout: bool | None = None

    def __post_init__(self) -> None:
        positive("das", gate_step=self.gate_step)
        at_least("das", 0, skip=self.skip)
        module_size("das", bottleneck=self.bottleneck, shortcut_bottleneck=self.shortcut_bottleneck)
        check_search("das", self, searches=not self.blocks)


class DAS(SkippingMethod[DASOptions]):
    """Search for the blocks to skip, then train without them; the pretrained weights never change."""

    name: ClassVar[str] = "das"
    summary: ClassVar[str] = "skips the blocks a bandit finds redundant; adapters beside the others"
    source: ClassVar[str] = "Wu et al., NeurIPS 2023"
    family: ClassVar[str] = "block skipping"
    Options: ClassVar[type[Any]] = DASOptions
    Decision: ClassVar[type[Any]] = DASDecision
    uncounted: ClassVar[bool] = True
    recipes: ClassVar[Mapping[tuple[str, str], Recipe]] = recipes_of("das")
    rivals: ClassVar[tuple[str, ...]] = (
        "skip[choice=last]",
        "skip[choice=alternate]",
        "skip[choice=influence]",
        "skip[choice=contiguous]",
        "skip[choice=alignment]",
        "skip[choice=greedy]",
    )

    @property
    def searches(self) -> bool:  # type: ignore[override]
        """True unless the blocks are given or none are skipped."""
        return not self.options.blocks and self.options.skip != 0

    @property
    def search_epochs(self) -> int:  # type: ignore[override]
        """The option; 0 without a search."""
        return self.options.search_epochs if self.searches else 0

    @property
    def search_holdout(self) -> float:  # type: ignore[override]
        """0 if rewards use the training data."""
        if self.options.form != "own":
            return 0.2 if recipe_of("das", self.options).reward_on == "held_out" else 0.0
        return holdout(self.options)

    @property
    def warm_starts(self) -> bool:
        """True if training starts with the weights that the search trained."""
        return self.options.form == "own" and warm_starts(self.options)

    def _eps(self, block: object) -> float:
        """The block's own, or that of the authors' code."""
        return LAYER_NORM_EPS if self.options.variant == "published" else super()._eps(block)

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Replace the chosen blocks by shortcuts and add adapters to the others."""
        backbone.tunes_text_types = self.options.variant == "published"
        if self.options.form == "own":
            super().adapt(backbone, generator)
        else:
            adapt_decoder(backbone, self.options, generator, self.blocks_to_skip(backbone))

    def number_to_skip(self, backbone: Backbone) -> int:
        """The number of blocks to skip: the option, or the default."""
        if self.options.form != "own" and self.options.skip is None:
            return published_skip(self.options, backbone)
        return super().number_to_skip(backbone)

    def blocks_to_skip(self, backbone: Backbone) -> tuple[str, ...]:
        """The blocks that the search has chosen, or the option's."""
        return self.chosen or self.resolve_blocks(self.options.blocks, backbone)

    def fixed(self, chosen: Sequence[str]) -> Mapping[str, str]:
        """Skip these blocks."""
        return {"blocks": "+".join(chosen)}

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """Before a search: one case for each number of blocks skipped in each stream."""
        if not self.searches:
            return (CostCase(),)
        sets = skippable_sets(self.number_to_skip(backbone), backbone)
        return [self.cost_case(backbone, DASDecision(skipped)) for skipped in sets]

    def search(self, trainer: SearchTrainer) -> DASDecision:
        """Train the super-network on the trainer's training part while the gates learn."""
        backbone = trainer.backbone
        skip = self.number_to_skip(backbone)
        if self.options.form != "own":
            return search_decoder(trainer, self.options, skip)
        backbone.tunes_text_types = self.options.variant == "published"
        self.build_supernet(trainer)
        return search_with_bandit(
            trainer, self.options, backbone.block_names, skip, partial(skip_only, backbone)
        )
