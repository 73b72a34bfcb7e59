"""Baselines of block skipping: DAS's model, with the blocks chosen by a simple rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from harness.backbones.base import Backbone
from harness.backbones.generative import GenerativeBackbone
from harness.errors import UserError
from methods.alignment import alignment_gates, best_spread
from methods.bandit import Bandit, Findings
from methods.base import CostCase, SearchTrainer
from methods.option_checks import at_least, module_size
from methods.skip_choices import (
    alternate_blocks,
    block_influences,
    closest_runs,
    last_blocks,
    lowest,
    random_blocks,
    remove_greedily,
    run_distances,
)
from methods.skip_decision import SkipDecision
from methods.skipping import SkippingMethod, by_stream, skip_only, skippable_sets

MEASURED = ("influence", "contiguous", "alignment", "greedy")
"""The rules that look at held-out data."""


@dataclass(frozen=True)
class SkipOptions:
    """What can be chosen about baselines of block skipping.

    choice: the rule. On two streams, `last`, `alternate` and `contiguous` skip equally many blocks of each; an odd
        one is of the image stream.

        - `random`: a set drawn uniformly from all sets, by `draw`; every seed of a run has the same set.
        - `last`: the last blocks ("top-layer dropping", Sajjad et al., arXiv:2004.03844).
        - `alternate`: evenly spaced blocks ("every other" layer, Fan et al., arXiv:1909.11556).
        - `influence`: the blocks with the lowest block influence, 1 − the mean cosine similarity of a block's input
          and output (ShortGPT, Men et al., arXiv:2403.03853), on the pretrained backbone.
        - `contiguous`: the run of consecutive blocks that moves the pooled token least, by angular distance (Gromov
          et al., arXiv:2403.17887), on the pretrained backbone.
        - `alignment`: blocks are left out of the pretrained backbone in random sets, and the features that its head
          reads are compared with the answers (centred kernel alignment). Those are skipped whose absence is
          best for it; neighbours are avoided (`methods.alignment`).
        - `greedy`: DAS's super-network is trained with random sets skipped; then the block whose removal leaves the
          lowest loss is removed, one after another. Training continues with its weights, as in DAS.
    skip: number of blocks to skip; by default 4 on a two-stream backbone and 2 on a single-stream one.
    draw: number of the random set.
    keep_final: `last` skips the blocks before the final block of each stream instead.
    batches: number of held-out batches of training data that `influence`, `contiguous` and `greedy` measure on.
    search_epochs: epochs that `greedy` trains the super-network; by default as many as DAS searches.
    bottleneck: as in DAS.
    shortcut_bottleneck: as in DAS.
    """

    choice: Literal["random", "last", "alternate", "influence", "contiguous", "alignment", "greedy"] = (
        "random"
    )
    skip: int | None = None
    draw: int = 0
    keep_final: bool = False
    batches: int = 8
    search_epochs: int = 3
    bottleneck: int | None = None
    shortcut_bottleneck: int | None = None

    def __post_init__(self) -> None:
        at_least("skip", 0, draw=self.draw)
        at_least("skip", 1, skip=self.skip, batches=self.batches, search_epochs=self.search_epochs)
        module_size("skip", bottleneck=self.bottleneck, shortcut_bottleneck=self.shortcut_bottleneck)
        if self.draw and self.choice != "random":
            raise UserError(f"skip: draw numbers random sets; choice={self.choice} has only one.")
        if self.keep_final and self.choice != "last":
            raise UserError(f"skip: keep_final belongs to choice=last, not to choice={self.choice}.")


class Skip(SkippingMethod[SkipOptions]):
    """Skip blocks chosen by a rule; shortcuts, adapters and classification token are those of DAS."""

    name: ClassVar[str] = "skip"
    summary: ClassVar[str] = "skips blocks chosen by a simple rule; shortcuts and adapters of DAS"
    source: ClassVar[str] = "baselines of DAS; sources: harness list skip"
    family: ClassVar[str] = "block skipping"
    Options: ClassVar[type[Any]] = SkipOptions
    Decision: ClassVar[type[Any]] = SkipDecision
    searches: ClassVar[bool] = True

    @property
    def search_epochs(self) -> int:  # type: ignore[override]
        """Only `greedy` trains before it chooses."""
        return self.options.search_epochs if self.options.choice == "greedy" else 0

    @property
    def search_holdout(self) -> float:  # type: ignore[override]
        """0 for rules that look at no data."""
        return 0.2 if self.options.choice in MEASURED else 0.0

    @property
    def warm_starts(self) -> bool:
        """True if a super-network has been trained."""
        return self.options.choice == "greedy"

    def number_to_skip(self, backbone: Backbone) -> int:
        """The number of blocks to skip: the option, or the backbone's default.

        Raises:
            UserError: the backbone has no more blocks than that, or no head whose features could be aligned.
        """
        if self.options.choice == "alignment" and isinstance(backbone, GenerativeBackbone):
            raise UserError(
                f"skip: choice=alignment compares the features that a head reads, and {backbone.name} writes its "
                "answers without one."
            )
        return super().number_to_skip(backbone)

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """One case for a rule that needs no data; else one for each way to divide the blocks among the streams."""
        skip = self.number_to_skip(backbone)
        fixed = self._by_position(backbone, skip)
        sets = skippable_sets(skip, backbone) if fixed is None else [fixed]
        names, choice = backbone.block_names, self.options.choice
        return [self.cost_case(backbone, SkipDecision(skipped, names, choice)) for skipped in sets]

    def search(self, trainer: SearchTrainer) -> SkipDecision:
        """Choose the blocks."""
        backbone = trainer.backbone
        skip = self.number_to_skip(backbone)
        names = backbone.block_names
        fixed = self._by_position(backbone, skip)
        if fixed is not None:
            return SkipDecision(fixed, names, self.options.choice)
        if self.options.choice == "greedy":
            self._train_supernet(trainer, skip)
        if self.options.choice == "alignment":
            gates = alignment_gates(trainer, skip)
            streams = [name.split(".")[0] for name in names]
            best = best_spread(gates, streams, skip)
            measured = {name: -gate for name, gate in zip(names, gates, strict=True)}
            return SkipDecision(tuple(names[index] for index in best), names, "alignment", (measured,))
        batches = [trainer.held_out_batch() for _ in range(self.options.batches)]
        scores: list[dict[str, float]]
        if self.options.choice == "influence":
            scores = [block_influences(trainer, batches)]
            chosen = lowest(scores[0], skip)
        elif self.options.choice == "contiguous":
            scores = run_distances(trainer, batches, skip)
            chosen = list(closest_runs(scores, skip, backbone))
        else:
            scores = remove_greedily(trainer, batches, skip)
            chosen = [lowest(losses, 1)[0] for losses in scores]
        return SkipDecision(tuple(sorted(chosen, key=names.index)), names, self.options.choice, tuple(scores))

    def _by_position(self, backbone: Backbone, skip: int) -> tuple[str, ...] | None:
        """The blocks of a rule that looks at no data; None for the other rules."""
        if self.options.choice == "random":
            return random_blocks(backbone, skip, self.options.draw)
        if self.options.choice == "alternate":
            self._check_streams(backbone, skip)
            return alternate_blocks(backbone, skip)
        if self.options.choice == "last":
            self._check_streams(backbone, skip + int(self.options.keep_final) * len(backbone.stream_names))
            return last_blocks(backbone, skip, self.options.keep_final)
        if self.options.choice == "contiguous":
            self._check_streams(backbone, skip)
        return None

    def _check_streams(self, backbone: Backbone, blocks: int) -> None:
        """Rules that divide the blocks among the streams need that many in each of them."""
        fewest = min(map(len, by_stream(backbone)))
        if -(-blocks // len(backbone.stream_names)) > fewest:
            raise UserError(
                f"skip: choice={self.options.choice} with skip={self.options.skip} needs more blocks in each "
                f"stream than the {fewest} of {backbone.name}."
            )

    def _train_supernet(self, trainer: SearchTrainer, skip: int) -> None:
        """Train adapters and shortcuts with uniformly drawn sets skipped, as DAS does before its gates learn."""
        self.build_supernet(trainer)
        uniform = Bandit(len(trainer.backbone.blocks), skip, trainer.generator)

        def before_step(epoch: int, step: int) -> None:  # noqa: ARG001 - the trainer passes both
            skip_only(trainer.backbone, uniform.draw())

        trainer.train(self.options.search_epochs, before_step, lambda epoch, step: None, Findings(uniform))
