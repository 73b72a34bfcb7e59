"""ViLT's block with token reduction between attention and feed-forward."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from torch import nn

from harness.backbones.block import Block, BlockInput, BlockOutput
from harness.backbones.folded_sublayers import in_rows
from harness.backbones.vilt.block import ViltBlock
from harness.backbones.vilt.folded import FoldedViltBlock
from methods.token_attention import AttentionStyle
from methods.token_reduction import JointReduction


class ReducingViltBlock(ViltBlock):
    """A block of ViLT whose feed-forward runs on the remaining tokens. It adds no parameters."""

    def __init__(
        self, block: ViltBlock, attention: AttentionStyle, reduce: JointReduction | None = None
    ) -> None:
        """Takes the modules of `block`, under the same names."""
        super(Block, self).__init__()  # ViltBlock's own would draw new weights
        vars(self).update(vars(block))
        self.attention_style = attention
        self.reduce = reduce

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, K, D)`, K ≤ T.

        The first token is never merged or moved. So if only this token is wanted, nothing is reduced.
        """
        if inputs.queries not in (None, 1):
            inputs = replace(inputs, queries=None)
        tokens, asking = inputs.tokens, inputs.asking
        maps = self.attention.attention
        normed = self.layernorm_before(tokens.hidden)
        query = self._by_head(maps.query(normed[:, : asking.shape[1]]))
        key, value = self._by_head(maps.key(normed)), self._by_head(maps.value(normed))
        mixed, weights = self.attention_style(query, key, value, tokens, rows=tokens.text_length)
        output = self.attention.output
        attended = output.dropout(output.dense(mixed.transpose(1, 2).flatten(2)))
        left = inputs.result(self._add("attention", attended, asking)).tokens
        if self.reduce is not None and inputs.queries is None:
            left = self.reduce(left, key.mean(dim=1).detach(), None if weights is None else weights.detach())
        fed = self._add("mlp", self.feed(self.layernorm_after(left.hidden)), left.hidden)
        return BlockOutput(left.with_hidden(fed))

    def folded(self) -> nn.Module:
        """The deployed form; the block itself if something in it is unknown."""
        return self._folded(
            partial(FoldedReducingViltBlock, attention_style=self.attention_style, reduce=self.reduce)
        )


class FoldedReducingViltBlock(FoldedViltBlock):
    """The deployed form of `ReducingViltBlock`."""

    def __init__(self, *parts: Any, attention_style: AttentionStyle, reduce: JointReduction | None) -> None:
        """parts: as for `FoldedViltBlock`."""
        super().__init__(*parts)
        self.attention_style = attention_style
        self.reduce = reduce

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """As in `ReducingViltBlock`."""
        if inputs.queries not in (None, 1):
            inputs = replace(inputs, queries=None)
        tokens = inputs.tokens
        asking, (query, key, value), inner = self.attention.states(tokens, inputs.queries)
        mixed, weights = self.attention_style(query, key, value, tokens, rows=tokens.text_length)
        hidden = self.attention.closing.close(in_rows(mixed), inner, asking)
        left = inputs.result(hidden.view(inputs.asking.shape)).tokens
        if self.reduce is not None and inputs.queries is None:
            left = self.reduce(left, key.mean(dim=1), weights)
        fed = self.mlp.feed(left.hidden.flatten(0, 1))
        return BlockOutput(left.with_hidden(fed.view(left.hidden.shape)))
