"""PuMer (Cao, Paranjape and Hajishirzi, ACL 2023): prune image tokens that the text attends to least, merge similar
ones among the rest, and merge similar text tokens, in a few blocks.

Written from the paper and its public code, csarron/PuMer. No parameters are added. The authors train with a
distillation loss from the unreduced model, which is not part of this method (`methods.distillation` has the loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import Tokens
from harness.errors import UserError
from methods.base import Method, Slot, freeze
from methods.option_checks import fraction
from methods.token_attention import AttentionStyle, additive, mask_weights
from methods.token_merging import (
    Merges,
    best_first,
    best_in_place,
    bipartite_matching,
    cap_merges,
    is_own,
    merge,
    share,
    take,
)
from methods.token_reduction import join, merge_similar, own_lengths, pick, require_own_blocks, split

Score = Literal["mean_head", "first_head"]


@dataclass(frozen=True)
class Setting:
    """Shares of tokens to prune and merge, and the blocks (METER: depths) that do it."""

    prune: float
    merge: float
    text: float
    layers: tuple[int, ...]


PUBLISHED: Mapping[tuple[str, str], Setting] = {
    ("vilt", "vqa"): Setting(0.1, 0.3, 0.2, (2, 5, 8)),
    ("vilt", "snli_ve"): Setting(0.1, 0.3, 0.2, (2, 4, 6, 8)),
    ("vilt", "nlvr2"): Setting(0.1, 0.3, 0.2, (2, 5, 8)),
    ("meter", "vqa"): Setting(0.2, 0.2, 0.2, (0, 1, 2, 3)),
    ("meter", "snli_ve"): Setting(0.3, 0.5, 0.2, (0, 1, 2, 3)),
    ("meter", "nlvr2"): Setting(0.3, 0.5, 0.2, (1, 2, 3)),
}
"""Settings of the authors' checkpoints and operation counts, by backbone and task. Their code counts two layers per
depth of METER (0, 2, 4, …). Their training script for ViLT on SNLI-VE has layers 2, 5, 8 instead."""


@dataclass(frozen=True)
class PumerOptions:
    """Options of PuMer.

    prune: share of the image tokens that a layer drops; by default as published.
    merge: share of the image tokens, counted before any is dropped, that a layer merges into others; by default as
        published.
    text: share of the text tokens that a layer merges; by default as published.
    layers: blocks that reduce tokens, numbered from 0 (`2+5+8`); on METER they are depths, whose text layers reduce
        tokens. By default the published ones that the backbone has.
    settings: the task whose published settings are the defaults: `vqa`, `snli_ve` or `nlvr2`. There are none for
        retrieval.
    variant: `sound` ignores padding and keeps the class tokens in their place; `published` does what the authors'
        code does. docs/token-reduction.md lists the differences.
    score: attention weights that decide which image tokens are dropped: `mean_head` (mean over heads) or
        `first_head`. By default mean_head; with variant=published what the authors used, which is first_head for
        ViLT on VQA.
    sizes: when merged tokens are merged again, weight them by the number of tokens they stand for. By default true;
        false with variant=published.
    tune: `full` trains all parameters, as published; `classifier` freezes the backbone.
    """

    prune: float | None = None
    merge: float | None = None
    text: float | None = None
    layers: tuple[int, ...] | None = None
    settings: Literal["vqa", "snli_ve", "nlvr2"] = "vqa"
    variant: Literal["sound", "published"] = "sound"
    score: Score | None = None
    sizes: bool | None = None
    tune: Literal["full", "classifier"] = "full"

    def __post_init__(self) -> None:
        shares = {"prune": self.prune, "merge": self.merge, "text": self.text}
        fraction("pumer", **{name: value for name, value in shares.items() if value is not None})
        if self.sizes and self.variant == "published":
            raise UserError("pumer: variant=published knows no token sizes; leave out sizes=true.")


class Pumer(Method[PumerOptions]):
    """Token reduction guided by the text, between attention and feed-forward of a few blocks."""

    name: ClassVar[str] = "pumer"
    summary: ClassVar[str] = (
        "prunes image tokens the text ignores, merges similar tokens; all parameters train"
    )
    source: ClassVar[str] = "Cao et al., ACL 2023"
    family: ClassVar[str] = "token reduction"
    Options: ClassVar[type[Any]] = PumerOptions
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.TOKENS})

    @property
    def learning_rate_scale(self) -> float:  # type: ignore[override]
        """The scale of `full` or of `classifier`."""
        return 1.0 if self.options.tune == "full" else 5.0

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Make all parameters trainable or freeze them, and make the chosen layers reduce tokens."""
        if self.options.tune == "full":
            backbone.requires_grad_(True)
        else:
            freeze(backbone)
        self.reduce_tokens(backbone)

    def reduce_tokens(self, backbone: Backbone) -> None:
        """Replace blocks by ones that reduce tokens, with the same parameters. `requires_grad` is not changed.

        Raises:
            UserError: another method has replaced a block, or the backbone has no such layers.
        """
        if len(backbone.stream_names) == 1:
            self._reduce_vilt(backbone)
        else:
            self._reduce_meter(backbone)

    def setting(self, backbone: Backbone) -> Setting:
        """The chosen options, completed by the published ones.

        Raises:
            UserError: the backbone has no such layers.
        """
        options, depths = self.options, len(backbone.blocks) // len(backbone.stream_names)
        published = PUBLISHED[_kind(backbone), options.settings]
        layers = options.layers
        if layers is None:
            layers = tuple(layer for layer in published.layers if layer < depths)
        if not layers or not all(0 <= layer < depths for layer in layers):
            given = "+".join(map(str, layers)) or "none"
            raise UserError(
                f"pumer: layers must be numbers from 0 to {depths - 1} on {backbone.name}; got {given}."
            )
        return Setting(
            published.prune if options.prune is None else options.prune,
            published.merge if options.merge is None else options.merge,
            published.text if options.text is None else options.text,
            layers,
        )

    def _reduction(self, backbone: Backbone) -> SoundReduction | PublishedReduction:
        options, setting = self.options, self.setting(backbone)
        shares = (setting.prune, setting.merge, setting.text)
        if options.variant == "sound":
            return SoundReduction(*shares, options.score or "mean_head", options.sizes is not False)
        kind = _kind(backbone)
        in_force: Score = "first_head" if (kind, options.settings) == ("vilt", "vqa") else "mean_head"
        return PublishedReduction(*shares, options.score or in_force, meter=kind == "meter")

    def _reduce_vilt(self, backbone: Backbone) -> None:
        # Imported only here: the list of methods should not wait for transformers.
        from harness.backbones.vilt.block import ViltBlock
        from methods.reducing_vilt import ReducingViltBlock

        require_own_blocks(self.name, backbone, ViltBlock)
        published = self.options.variant == "published"
        reduction, layers = WithinJoint(self._reduction(backbone)), self.setting(backbone).layers
        for index, block in enumerate(backbone.blocks):
            if index in layers or published:
                style = AttentionStyle(weights=index in layers, published=published)
                backbone.blocks[index] = ReducingViltBlock(
                    cast(ViltBlock, block), style, reduction if index in layers else None
                )

    def _reduce_meter(self, backbone: Backbone) -> None:
        from harness.backbones.meter.block import MeterBlock
        from harness.backbones.meter.model import MeterBackbone
        from methods.reducing_meter import ReducingMeterBlock

        require_own_blocks(self.name, backbone, MeterBlock)
        published = self.options.variant == "published"
        reduction, layers = self._reduction(backbone), self.setting(backbone).layers
        cast(MeterBackbone, backbone).sequential = published
        # Text layers come first, so an index below the number of depths is a text layer.
        for index, block in enumerate(backbone.blocks):
            if index in layers or published:
                style = AttentionStyle(weights=index in layers, published=published)
                backbone.blocks[index] = ReducingMeterBlock(
                    cast(MeterBlock, block), style, reduction if index in layers else None
                )


def _kind(backbone: Backbone) -> str:
    return "vilt" if len(backbone.stream_names) == 1 else "meter"


@dataclass(frozen=True)
class SoundReduction:
    """Prune and merge as if there were no padding. Class tokens stay at position 0, other tokens in their order.

    Each of the three steps is done if its own count is above 0.
    """

    prune: float
    merge: float
    text: float
    score: Score
    track_sizes: bool

    def __call__(
        self, text: Tokens, image: Tokens, text_keys: Tensor, image_keys: Tensor, weights: Tensor | None
    ) -> tuple[Tokens, Tokens]:
        """A `PairReduction` that needs the text's attention weights on the image."""
        assert weights is not None
        return self._merge_text(text, text_keys), self._reduce_image(image, image_keys, text, weights)

    def _merge_text(self, text: Tokens, keys: Tensor) -> Tokens:
        lengths = range(len(text) + 1)
        counts = [cap_merges(share(self.text, length), length) for length in lengths]
        merges = Merges.by_length(lengths, counts, own_lengths(text))
        return merge_similar(text, keys, merges, track_sizes=self.track_sizes)

    def _reduce_image(self, image: Tokens, keys: Tensor, text: Tokens, weights: Tensor) -> Tokens:
        lengths, count = own_lengths(image), len(image)
        keep = [max(length - share(self.prune, length), 1) for length in range(count + 1)]
        counts = [cap_merges(share(self.merge, length), kept) for length, kept in enumerate(keep)]
        merges = Merges.by_length(keep, counts, lengths)
        if keep[count] < count:
            scores = text_attention(weights, self.score, own_lengths(text))
            scores[:, 0] = torch.inf
            rows = None
            if lengths is not None:
                scores = scores.masked_fill(~is_own(lengths, count), -torch.inf)
                rows = torch.tensor(keep, device=lengths.device)[lengths]
            positions = best_in_place(scores, keep[count], rows)
            image, keys = pick(image, positions, rows), take(keys, positions)
        return merge_similar(image, keys, merges, track_sizes=self.track_sizes)


@dataclass(frozen=True)
class PublishedReduction:
    """Prune and merge as the authors' code does, padding included.

    meter: as for METER, where tokens are pruned only if tokens are merged too.
    """

    prune: float
    merge: float
    text: float
    score: Score
    meter: bool = False

    def __call__(
        self, text: Tokens, image: Tokens, text_keys: Tensor, image_keys: Tensor, weights: Tensor | None
    ) -> tuple[Tokens, Tokens]:
        """A `PairReduction` that needs the text's attention weights on the image."""
        assert weights is not None
        count = len(image)
        pruned, merged = share(self.prune, count), share(self.merge, count)
        if self.prune == 0 or (pruned == 0 and not self.meter):
            return text, image
        if merged or not self.meter:
            keep = max(count - pruned, 1)
            positions = best_first(text_attention(weights, self.score), keep)
            hidden = _mean_merged(
                take(image.hidden, positions), take(image_keys, positions), cap_merges(merged, keep)
            )
            # Padding that was kept can be attended to from here on.
            mask = None if image.mask is None else torch.zeros_like(image.mask[..., : hidden.shape[1]])
            image = Tokens(hidden, mask)
        return self._merge_text(text, text_keys), image

    def _merge_text(self, text: Tokens, keys: Tensor) -> Tokens:
        merged = cap_merges(share(self.text, len(text)), len(text))
        hidden = _mean_merged(text.hidden, keys, merged)
        if text.mask is None:
            return Tokens(hidden)
        return Tokens(
            hidden, additive(_mean_merged(mask_weights(text.mask)[..., None], keys, merged)[..., 0])
        )


@dataclass(frozen=True)
class WithinJoint:
    """Applies a reduction of text and image tokens to a joint stream, as a `JointReduction`."""

    reduction: SoundReduction | PublishedReduction

    def __call__(self, tokens: Tokens, keys: Tensor, weights: Tensor | None) -> Tokens:
        """A `JointReduction`."""
        assert weights is not None
        text, image = split(tokens)
        length = len(text)
        return join(*self.reduction(text, image, keys[:, :length], keys[:, length:], weights[..., length:]))


def text_attention(weights: Tensor, score: Score, lengths: Tensor | None = None) -> Tensor:
    """Attention that each image token gets from the text: weights `(B, H, L, S)` → `(B, S)`, float32.

    lengths: `(B,)`, number of text tokens that are not padding; None: all L count.
    """
    of_rows = (weights[:, 0] if score == "first_head" else weights.mean(dim=1)).float()
    if lengths is not None:
        of_rows = of_rows.masked_fill(~is_own(lengths, of_rows.shape[1])[..., None], 0)
    return of_rows.sum(dim=1)


def _mean_merged(values: Tensor, keys: Tensor, merged: int) -> Tensor:
    """`(B, T, C)` with `merged` tokens averaged with the most similar ones; similarity is that of `keys`."""
    if merged == 0:
        return values
    matching = bipartite_matching(keys, Merges(merged, values.shape[1] - merged))
    return merge(matching, values)[0]
