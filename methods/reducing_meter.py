"""METER's fusion layer with token reduction between cross-attention and feed-forward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from harness.backbones.block import Block, BlockInput, BlockOutput
from harness.backbones.folded_sublayers import in_rows
from harness.backbones.meter.block import MeterBlock
from harness.backbones.meter.folded import FoldedMeterBlock
from methods.token_attention import AttentionStyle
from methods.token_reduction import PairReduction


class ReducingMeterBlock(MeterBlock):
    """A layer of METER whose feed-forward runs on the remaining tokens. It adds no parameters.

    attention: style of both attentions; attention weights are computed for the cross-attention only.
    """

    def __init__(
        self, block: MeterBlock, attention: AttentionStyle, reduce: PairReduction | None = None
    ) -> None:
        """Takes the modules of `block`, under the same names."""
        super(Block, self).__init__()  # MeterBlock's own would draw new weights
        vars(self).update(vars(block))
        self.self_attention_style = replace(attention, weights=False)
        self.cross_attention_style = attention
        self.reduce = reduce

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, K, D)`, K ≤ T; the context, `(B, S, D)`, may be reduced too.

        The first token is never merged or moved. So if only this token is wanted, its stream is not reduced. A layer
        that reduces the context by its attention weights computes all tokens.

        Raises:
            ValueError: there is no context.
        """
        context = inputs.context
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        if self.cross_attention_style.weights or inputs.queries not in (None, 1):
            inputs = replace(inputs, queries=None)
        asking, tokens = inputs.asking, inputs.tokens
        dropout = self.attention_dropout if self.training else 0.0
        maps = self.attention.self
        query, own_key, value = (
            self._by_head(states)
            for states in (maps.query(asking), maps.key(tokens.hidden), maps.value(tokens.hidden))
        )
        mixed, _ = self.self_attention_style(query, own_key, value, tokens, dropout=dropout)
        own = self._close("self_attention", self.attention.output, _joined(mixed), asking)
        key, value = self.keys_and_values(context.hidden)
        (asked,) = self.query(own)
        mixed, weights = self.cross_attention_style(asked, key, value, context, dropout=dropout)
        hidden = self._close("cross_attention", self.crossattention.output, _joined(mixed), own)
        left, other = inputs.result(hidden).tokens, None
        if self.reduce is not None and inputs.queries is None:
            left, other = self.reduce(
                left,
                context,
                own_key.mean(dim=1).detach(),
                key.mean(dim=1).detach(),
                None if weights is None else weights.detach(),
            )
        fed = self._close("mlp", self.output, self.intermediate(left.hidden), left.hidden)
        return BlockOutput(left.with_hidden(fed), other)

    def folded(self) -> nn.Module:
        """The deployed form; the block itself if something in it is unknown."""
        return self._folded(
            partial(FoldedReducingMeterBlock, attention=self.cross_attention_style, reduce=self.reduce)
        )


class FoldedReducingMeterBlock(FoldedMeterBlock):
    """The deployed form of `ReducingMeterBlock`."""

    def __init__(self, *parts: Any, attention: AttentionStyle, reduce: PairReduction | None) -> None:
        """parts: as for `FoldedMeterBlock`."""
        super().__init__(*parts)
        self.self_attention_style = replace(attention, weights=False)
        self.cross_attention_style = attention
        self.reduce = reduce

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """As in `ReducingMeterBlock`."""
        context = inputs.context
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        if self.cross_attention_style.weights or inputs.queries not in (None, 1):
            inputs = replace(inputs, queries=None)
        tokens, shape = inputs.tokens, inputs.asking.shape
        asking, (query, own_key, value), inner = self.self_attention.states(tokens, inputs.queries)
        mixed, _ = self.self_attention_style(query, own_key, value, tokens)
        own = self.self_attention.closing.close(in_rows(mixed), inner, asking)
        query, *of_branch = self.query(own.view(shape))
        key, value = self.keys_and_values(context.hidden)
        mixed, weights = self.cross_attention_style(query, key, value, context)
        inner = of_branch[0].flatten(0, 1) if of_branch else None
        hidden = self.cross_attention.closing.close(in_rows(mixed), inner, own)
        left, other = inputs.result(hidden.view(shape)).tokens, None
        if self.reduce is not None and inputs.queries is None:
            left, other = self.reduce(left, context, own_key.mean(dim=1), key.mean(dim=1), weights)
        fed = self.mlp.feed(left.hidden.flatten(0, 1))
        return BlockOutput(left.with_hidden(fed.view(left.hidden.shape)), other)


def _joined(mixed: Tensor) -> Tensor:
    """`(B, H, T, C)` → `(B, T, H · C)`."""
    return mixed.transpose(1, 2).flatten(2)
