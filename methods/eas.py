"""EAS, skipping attention modules (Wu et al., arXiv:2403.15226), on METER's fusion layers, ViLT's blocks and LLaVA's.

Feed-forwards stay. A small adapter takes the place of each skipped attention; it also reads the mean of the tokens
that the attention would have read. The other sublayers read their input through linear adapters, which fold into the
projections. Which attentions are skipped is searched with the bandit of DAS.

Written from a description of the authors' code. Differences on METER: padding does not enter the mean, parameters that
never get a gradient are left out, and all 24 attentions can be skipped (`order`). The forms on ViLT and LLaVA are this
harness's; those of LLaVA-EAS and LaVIN-EAS are options (`form`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.errors import UserError, did_you_mean
from methods.bandit_search import check_search, holdout, search_with_bandit, warm_starts
from methods.base import CostCase, Method, SearchTrainer, freeze
from methods.das_decision import DASDecision
from methods.decoder_search import LAYERS, Form, Recipe, recipe_of, search_by_recipe
from methods.eas_adapters import InputAdapter, SkipAdapter
from methods.option_checks import LARGEST, at_least, fraction, positive
from methods.skipping import add_classification_token

SHORT = {"self_attention": "self", "cross_attention": "cross", "attention": "attention"}
"""A sublayer's part of a module's name."""


@dataclass(frozen=True)
class EASOptions:
    """What can be chosen about EAS.

    skip: number of attention modules to skip; by default 10 of the 24 on two streams (as published for METER's VQA),
        4 of the 12 on one, and with a published form for a decoder 12 of 32.
    modules: skip exactly these, without a search: `text-self.0+image-cross.3`; on one stream `joint-attention.5`, or
        just `5`.
    variant, reward, search_epochs, warmup_epochs, period, sets, warm_start: of the search, as in DAS. The authors
        search for 10 epochs.
    bottleneck: hidden size of the adapters in front of projections; by default width / 8 (96 at 768).
    skip_bottleneck: hidden size of the adapters in place of attentions; by default 3/16 of the width (144).
    dropout: probability of dropping a hidden unit of an adapter.
    order: on two streams, what the last six gates skip: `fixed` the image stream's cross-attentions, `published` its
        self-attentions again, as the authors' code does, so that sets may hold a module twice.
    form: on LLaVA, the adapters and the search: `own` has one linear adapter per sublayer, which folds, and the search
        above; `llava` and `lavin` are the authors' LLaVA-EAS and LaVIN-EAS, with two experts per adapter, which do not
        fold, their schedule, and new adapters after the search. LaVIN's has search_epochs=10, warmup_epochs=5.
    gate_step, reward_on, reward_dropout: of the search of a published form: factor of an update of the gates (1 and
        2), what rewards are computed on (`training`: a batch that is trained on; `held_out`: fresh data) and whether
        with dropout. By default as published: LLaVA on training data without dropout, LaVIN on held-out data with it.
    summary: what the experts of a published form read in training: `prompt`, or `all` tokens, the answer too, as in
        LaVIN's code. At inference it is the prompt.
    """

    skip: int | None = None
    modules: tuple[str, ...] = ()
    variant: Literal["sound", "published"] = "sound"
    reward: Literal["standardized", "exponential"] | None = None
    search_epochs: int = 3
    warmup_epochs: int = 1
    period: int | None = None
    sets: int = 3
    warm_start: bool | None = None
    bottleneck: int | None = None
    skip_bottleneck: int | None = None
    dropout: float = 0.1
    order: Literal["fixed", "published"] = "fixed"
    form: Form = "own"
    gate_step: float | None = None
    reward_on: Literal["held_out", "training"] | None = None
    reward_dropout: bool | None = None
    summary: Literal["prompt", "all"] | None = None

    def __post_init__(self) -> None:
        positive("eas", gate_step=self.gate_step)
        at_least("eas", 1, skip=self.skip)
        fraction("eas", dropout=self.dropout)
        for name in ("bottleneck", "skip_bottleneck"):
            size = getattr(self, name)
            if size is not None and (not 2 <= size <= LARGEST or size % 2):
                raise UserError(f"eas: {name} must be an even number from 2 to {LARGEST:,}, got {size}.")
        check_search("eas", self, searches=not self.modules)


class EAS(Method[EASOptions]):
    """Search for the attentions to skip, then train without them; the pretrained weights never change."""

    name: ClassVar[str] = "eas"
    summary: ClassVar[str] = (
        "skips attention modules that a bandit finds redundant; linear adapters that fold"
    )
    source: ClassVar[str] = "Wu et al., arXiv:2403.15226"
    family: ClassVar[str] = "module skipping"
    Options: ClassVar[type[Any]] = EASOptions
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    Decision: ClassVar[type[Any]] = DASDecision

    def __init__(self, options: EASOptions | None = None) -> None:
        super().__init__(options)
        self.chosen: tuple[str, ...] = ()

    @property
    def searches(self) -> bool:  # type: ignore[override]
        """True unless the modules are given."""
        return not self.options.modules

    @property
    def search_epochs(self) -> int:  # type: ignore[override]
        """The option; 0 without a search."""
        return self.options.search_epochs if self.searches else 0

    @property
    def search_holdout(self) -> float:  # type: ignore[override]
        """0 if rewards use the training data."""
        if self.options.form != "own":
            return 0.2 if self._recipe.reward_on == "held_out" else 0.0
        return holdout(self.options)

    @property
    def _recipe(self) -> Recipe:
        """That of a published form for a decoder."""
        recipe = recipe_of("eas", self.options)
        return recipe if self.options.summary is None else replace(recipe, summary=self.options.summary)

    def decide(self, decision: DASDecision) -> None:
        """Skip the modules that the search has chosen."""
        self.chosen = decision.skipped

    def cost_cases(self, backbone: Backbone) -> Sequence[CostCase]:
        """Before a search: the first, evenly divided set. Other sets of the same size cost otherwise on two streams."""
        if not self.searches:
            return (CostCase(),)
        names, skip = attention_names(backbone), self._number_to_skip(backbone)
        spread = tuple(names[(2 * i + 1) * len(names) // (2 * skip)] for i in range(skip))
        return (CostCase(f"{skip} evenly spaced", DASDecision(spread)),)

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Put the adapters in; the chosen attentions leave the model."""
        chosen = self.chosen or resolve_modules(self.options.modules, backbone)
        if not chosen:
            raise RuntimeError("eas: adapt was called before search and decide")
        self._insert(backbone, generator, set(self._skipped_by(chosen)))

    def _insert(self, backbone: Backbone, generator: torch.Generator, skipped: set[str] | None) -> None:
        """skipped: names of modules to remove; None: keep all, with both adapters, for a search."""
        check_blocks(backbone, self.options.form)
        freeze(backbone)
        add_classification_token(backbone)
        width, options = backbone.width, self.options
        if options.form != "own":
            self._insert_published(backbone, generator, skipped)
            return
        small = options.bottleneck or max(2, width // 16 * 2)
        large = options.skip_bottleneck or max(2, width * 3 // 32 * 2)
        for index, block in enumerate(cast(Sequence[Any], backbone.blocks)):
            kept: dict[str, InputAdapter] = {}
            skips: dict[str, SkipAdapter] = {}
            gone = {each for each in block.sublayers if module_name(block.name, each) in (skipped or ())}
            for sublayer in block.sublayers:
                # Without attention, one linear path leads to a pre-norm block's feed-forward.
                useless = sublayer == "mlp" and "attention" in gone
                if sublayer not in gone and not useless:
                    kept[sublayer] = InputAdapter(width, small, options.dropout, generator)
                if sublayer in gone or (skipped is None and sublayer != "mlp"):
                    skips[sublayer] = SkipAdapter(width, large, options.dropout, generator)
            backbone.blocks[index] = _wrap(block, kept, skips)

    def _insert_published(
        self, backbone: Backbone, generator: torch.Generator, skipped: set[str] | None
    ) -> None:
        from methods.decoder_forms import insert_published

        options = self.options
        insert_published(
            "eas",
            backbone,
            options.form,
            self._recipe,
            generator,
            skipped,
            name_of=lambda block: module_name(block, "attention"),
            dropout=options.dropout,
            bottleneck=options.bottleneck,
            skip_bottleneck=options.skip_bottleneck,
        )

    def _skipped_by(self, gates: Sequence[str]) -> tuple[str, ...]:
        """The modules that gates skip; with `order=published` they may be fewer than the gates."""
        if self.options.order == "fixed":
            return tuple(gates)
        return tuple(dict.fromkeys(gate.replace("image-cross", "image-self") for gate in gates))

    def _number_to_skip(self, backbone: Backbone) -> int:
        skip = self.options.skip
        if skip is None:
            skip = 4 if len(backbone.stream_names) == 1 else 10
            if self.options.form != "own":
                skip = max(1, self._recipe.skip * len(backbone.block_names) // LAYERS)
        names = attention_names(backbone)
        if skip >= len(names):
            raise UserError(
                f"eas: skip must be from 1 to {len(names) - 1}, as {backbone.name} has {len(names)} attention modules; "
                f"got {skip}."
            )
        return skip

    def search(self, trainer: SearchTrainer) -> DASDecision:
        """Train the super-network on the trainer's training part while the gates learn."""
        backbone = trainer.backbone
        skip = self._number_to_skip(backbone)
        names = attention_names(backbone)
        self._insert(backbone, trainer.generator, None)
        skip_only = partial(self._skip_only, backbone, names)
        if self.options.form != "own":
            return search_by_recipe(trainer, self._recipe, self.options, names, skip, skip_only)
        return search_with_bandit(trainer, self.options, names, skip, skip_only)

    def _skip_only(self, backbone: Backbone, names: Sequence[str], chosen: Sequence[int]) -> None:
        skipped = self._skipped_by([names[index] for index in chosen])
        for block in cast(Sequence[Any], backbone.blocks):
            block.skipped = {each for each in block.skips if module_name(block.name, each) in skipped}

    def warm_start(self, backbone: Backbone, searched: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The searched weights of everything that is in the model."""
        if self.options.form != "own" or not warm_starts(self.options):
            return {}
        inside = {f"backbone.{name}" for name, _ in backbone.named_parameters()}
        return {
            name: tensor
            for name, tensor in searched.items()
            if name in inside or not name.startswith("backbone.")
        }

    def merge(self, backbone: Backbone) -> None:
        """Fold the adapters of kept sublayers into the projections, and ViLT's blocks without attention altogether."""
        for index, block in enumerate(cast(Sequence[Any], backbone.blocks)):
            with torch.no_grad():
                backbone.blocks[index] = block.merged().train(block.training)


def module_name(block: str, sublayer: str) -> str:
    """`text-self.0`: the name of a block's attention."""
    stream, _, index = block.partition(".")
    return f"{stream}-{SHORT.get(sublayer, sublayer)}.{index}"


def attention_names(backbone: Backbone) -> tuple[str, ...]:
    """Names of all attentions: by stream, then by sublayer (self before cross), then by depth."""
    return tuple(_attention_names(backbone))


def _attention_names(backbone: Backbone) -> Iterator[str]:
    blocks = list(zip(backbone.block_names, cast(Sequence[Any], backbone.blocks), strict=True))
    for stream in backbone.stream_names:
        own = [(name, block) for name, block in blocks if name.partition(".")[0] == stream]
        for sublayer in own[0][1].sublayers:
            if sublayer != "mlp":
                yield from (module_name(name, sublayer) for name, _ in own)


def resolve_modules(modules: Sequence[str], backbone: Backbone) -> tuple[str, ...]:
    """Full names of modules, which may be given as numbers on a single-stream backbone.

    Raises:
        UserError: the backbone has no such module, one appears twice, or all are named.
    """
    names = attention_names(backbone)
    found = []
    for module in modules:
        number = module.isdigit() and len(backbone.stream_names) == 1
        name = f"{names[0].partition('.')[0]}.{module}" if number else module
        if name not in names:
            raise UserError(f"eas: {backbone.name} has no attention '{module}'.{did_you_mean(module, names)}")
        found.append(name)
    if len(set(found)) != len(found) or len(found) >= len(names):
        raise UserError(f"eas: modules={'+'.join(modules)} must be different, and fewer than {len(names)}.")
    return tuple(found)


def check_blocks(backbone: Backbone, form: Form = "own") -> None:
    """Check that all blocks are ViLT's, METER's or LLaVA's own; LLaVA's for a published form of a decoder.

    Raises:
        UserError: one is not.
    """
    # Imported only here: the list of methods should not wait for transformers.
    from harness.backbones.llava.block import LlavaBlock
    from harness.backbones.meter.block import MeterBlock
    from harness.backbones.vilt.block import ViltBlock

    for block in backbone.blocks:
        if type(block) not in (MeterBlock, ViltBlock, LlavaBlock):
            raise UserError(
                f"eas: a block of {backbone.name} is a {type(block).__name__}; attention can be skipped in blocks of "
                "ViLT, METER, BridgeTower and LLaVA only."
            )
        if form != "own" and type(block) is not LlavaBlock:
            raise UserError(f"eas: form={form} is for LLaVA; leave it out on {backbone.name}.")


def _wrap(block: Any, kept: dict[str, InputAdapter], skips: dict[str, SkipAdapter]) -> nn.Module:
    from harness.backbones.llava.block import LlavaBlock
    from harness.backbones.vilt.block import ViltBlock
    from methods.decoder_blocks import AdaptedLlavaBlock
    from methods.eas_meter import EasMeterBlock
    from methods.eas_vilt import EasViltBlock

    kinds: dict[type, Any] = {ViltBlock: EasViltBlock, LlavaBlock: AdaptedLlavaBlock}
    wrapped: nn.Module = kinds.get(type(block), EasMeterBlock)(block, kept, skips)
    return wrapped
