"""ToMe, token merging (Bolya et al., ICLR 2023): every block merges its most similar image tokens.

Written from the paper and its public code, facebookresearch/ToMe. No parameters are trained or added.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import Tokens
from harness.errors import UserError
from methods.base import Method, Slot, freeze
from methods.option_checks import at_least
from methods.token_attention import AttentionStyle, additive, mask_weights
from methods.token_merging import Merges, bipartite_matching, cap_merges, merge, merge_schedule
from methods.token_reduction import (
    JointReduction,
    PairReduction,
    join,
    merge_similar,
    merges_of_constant,
    require_own_blocks,
    split,
)


@dataclass(frozen=True)
class TomeOptions:
    """Options of ToMe.

    r: number of image tokens that a block merges: one number, or one per block (`16+8+4`; missing ones are 0). By
        default 8, or 1 if the hidden size is below 512 (the embedded backbones have 17 image tokens). At most half
        of the unprotected tokens are merged.
    inflection: how a single `r` changes over the blocks: 0 constant, −1 linearly from 2 r down to 0, 1 from 0 up to
        2 r.
    proportional: a merged token of size n gets as much attention as n equal tokens. By default true, as published for
        models that are not trained with merging.
    class_token: never merge the image's class token. False is allowed on ViLT only, where it is not pooled.
    joint: the baseline of PuMer's code (ViLT only): merge `r` of all tokens, whether text, padding or image, with
        plain means, no sizes, and PuMer's masked softmax.
    """

    r: int | tuple[int, ...] | None = None
    inflection: float = 0.0
    proportional: bool | None = None
    class_token: bool = True
    joint: bool = False

    def __post_init__(self) -> None:
        for r in (self.r,) if self.r is None or isinstance(self.r, int) else self.r:
            at_least("tome", 0, r=r)
        if not -1 <= self.inflection <= 1:
            raise UserError(f"tome: inflection must be between -1 and 1, got {self.inflection}.")
        if self.inflection and isinstance(self.r, tuple):
            raise UserError("tome: inflection shapes a single r; with one r per block leave it out.")
        if self.joint and (self.proportional or not self.class_token):
            raise UserError(
                "tome: joint=true has neither token sizes nor an image class token apart from the others; leave "
                "out proportional and class_token."
            )


class Tome(Method[TomeOptions]):
    """Merges tokens between attention and feed-forward. Similarity is that of the keys, averaged over heads.

    In ViLT's joint stream only image tokens are merged with each other. No token then mixes two modalities, and the
    few words all stay. In METER each image layer merges its own tokens after its cross-attention. Pooled tokens stay
    first and are never merged; neither is padding.
    """

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "frozen; every block merges its most similar image tokens"
    source: ClassVar[str] = "Bolya et al., ICLR 2023"
    family: ClassVar[str] = "token reduction"
    Options: ClassVar[type[Any]] = TomeOptions
    learning_rate_scale: ClassVar[float] = 5.0
    per_token: ClassVar[bool] = True
    fills: ClassVar[frozenset[Slot] | None] = frozenset({Slot.TOKENS})

    def adapt(self, backbone: Backbone, generator: torch.Generator) -> None:
        """Freeze the backbone and make its blocks merge tokens."""
        freeze(backbone)
        self.reduce_tokens(backbone)

    def reduce_tokens(self, backbone: Backbone) -> None:
        """Replace the blocks by ones that merge tokens, with the same parameters. `requires_grad` is not changed.

        Raises:
            UserError: another method has replaced a block, or an option does not fit the backbone.
        """
        if len(backbone.stream_names) == 1:
            self._reduce_vilt(backbone)
        else:
            self._reduce_meter(backbone)

    @property
    def _attention(self) -> AttentionStyle:
        options = self.options
        if options.joint:
            return AttentionStyle(published=True)
        return AttentionStyle(proportional=options.proportional is not False)

    def _merged_per_block(self, backbone: Backbone, blocks: int) -> tuple[int, ...]:
        options = self.options
        r = (8 if backbone.width >= 512 else 1) if options.r is None else options.r
        try:
            return merge_schedule(r, blocks, options.inflection)
        except ValueError as error:
            raise UserError(f"tome: r has {error} that merge in {backbone.name}.") from None

    def _reduce_vilt(self, backbone: Backbone) -> None:
        # Imported only here: the list of methods should not wait for transformers.
        from harness.backbones.vilt.block import ViltBlock
        from methods.reducing_vilt import ReducingViltBlock

        require_own_blocks(self.name, backbone, ViltBlock)
        per_block = self._merged_per_block(backbone, len(backbone.blocks))
        for index, r in enumerate(per_block):
            reduce: JointReduction = (
                MergeJoint(r) if self.options.joint else MergeImage(r, self.options.class_token)
            )
            backbone.blocks[index] = ReducingViltBlock(
                cast(ViltBlock, backbone.blocks[index]), self._attention, reduce
            )

    def _reduce_meter(self, backbone: Backbone) -> None:
        from harness.backbones.meter.block import MeterBlock
        from methods.reducing_meter import ReducingMeterBlock

        require_own_blocks(self.name, backbone, MeterBlock)
        if self.options.joint or not self.options.class_token:
            wrong = "joint=true" if self.options.joint else "class_token=false"
            raise UserError(f"tome: {wrong} is for ViLT; {backbone.name} has two streams and pools both.")
        depths = len(backbone.blocks) // 2
        per_depth = self._merged_per_block(backbone, depths)
        for index, block in enumerate(backbone.blocks):
            reduce: PairReduction | None = MergeOwn(per_depth[index - depths]) if index >= depths else None
            if reduce is None and not self._attention.proportional:
                continue  # the text layer does not change
            backbone.blocks[index] = ReducingMeterBlock(cast(MeterBlock, block), self._attention, reduce)


@dataclass(frozen=True)
class MergeImage:
    """Merges `r` image tokens of a joint stream with other image tokens."""

    r: int
    protect_class_token: bool = True

    def __call__(self, tokens: Tokens, keys: Tensor, weights: Tensor | None) -> Tokens:
        """A `JointReduction`."""
        if self.r == 0:
            return tokens
        text, image = split(tokens)
        merges = merges_of_constant(self.r, image, protected=int(self.protect_class_token))
        merged = merge_similar(image, keys[:, len(text) :], merges, protect_first=self.protect_class_token)
        return join(text, merged)


@dataclass(frozen=True)
class MergeJoint:
    """Merges `r` of all tokens of a joint stream as PuMer's code does: states and masks are averaged.

    The first token, the text's class token, is never merged.
    """

    r: int

    def __call__(self, tokens: Tokens, keys: Tensor, weights: Tensor | None) -> Tokens:
        """A `JointReduction`."""
        merged = cap_merges(self.r, len(tokens))
        if merged == 0:
            return tokens
        matching = bipartite_matching(keys, Merges(merged, len(tokens) - merged))
        hidden, _ = merge(matching, tokens.hidden)
        mask = tokens.mask
        if mask is not None:
            mask = additive(merge(matching, mask_weights(mask)[..., None])[0][..., 0])
        return replace(tokens, hidden=hidden, mask=mask, text_length=None)


@dataclass(frozen=True)
class MergeOwn:
    """Merges `r` tokens of an image layer of METER. The text, its context, is not changed."""

    r: int

    def __call__(
        self,
        tokens: Tokens,
        context: Tokens,
        keys: Tensor,
        context_keys: Tensor,
        weights: Tensor | None,
    ) -> tuple[Tokens, None]:
        """A `PairReduction`."""
        return merge_similar(tokens, keys, merges_of_constant(self.r, tokens)), None
