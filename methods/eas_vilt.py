"""ViLT's block with EAS: adapters in front of its projections, or without attention."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.backbones.block import Block, BlockInput, BlockOutput
from harness.backbones.folding import Affine, Norm
from harness.backbones.vilt.block import ViltBlock
from methods.eas_adapters import InputAdapter, SkipAdapter, token_mean
from methods.eas_merging import FoldedSkip, merged_projection, without


class EasViltBlock(ViltBlock):
    """A block whose attention can be skipped.

    Kept: attention and feed-forward read their input through `kept["attention"]` and `kept["mlp"]`. Skipped:
    `x + FFN(g (z + PIA(z)) + o)`, with z the first norm's result, PIA the skip adapter, and g and o gain and offset of
    the second norm, which normalises nothing then. So the whole path up to the activation is linear and folds.
    """

    def __init__(
        self, block: ViltBlock, kept: dict[str, InputAdapter], skips: dict[str, SkipAdapter]
    ) -> None:
        """Takes the modules of `block`, under the same names. Without adapters in `kept` the attention is removed."""
        super(Block, self).__init__()  # ViltBlock's own would draw new weights
        vars(self).update({**vars(block), "_modules": dict(block._modules)})
        self.kept = nn.ModuleDict(kept)
        self.skips = nn.ModuleDict(skips)
        self.skipped = {name for name in skips if name not in kept}
        if self.skipped:
            del self.attention

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`."""
        tokens, asking = inputs.tokens, inputs.asking
        normed = self.layernorm_before(tokens.hidden)
        if self.skipped:
            own = normed[:, : asking.shape[1]]
            mixed = own + self.skips["attention"](own, normed, tokens.mask)
            read = mixed * self.layernorm_after.weight + self.layernorm_after.bias
            return inputs.result(self._add("mlp", self.feed(read), asking))
        read = self.kept["attention"](normed)
        attended = self._attend(read[:, : asking.shape[1]], read, tokens.mask)
        hidden = self._add("attention", attended, asking)
        fed = self.feed(self.kept["mlp"](self.layernorm_after(hidden)))
        return inputs.result(self._add("mlp", fed, hidden))

    def projections(self) -> dict[str, nn.Linear]:
        """The block's linear maps by role; those of a removed attention are missing."""
        if hasattr(self, "attention"):
            return super().projections()
        return {"mlp.up": self.intermediate.dense, "mlp.down": self.output.dense}

    def merged(self) -> nn.Module:
        """The deployed form: a plain block with folded projections, or `FoldedSkippedAttention`."""
        if self.skipped:
            return FoldedSkippedAttention(self)
        for role, module in self.projections().items():
            sublayer = {"attention.output": "", "mlp.down": ""}.get(role, role.split(".")[0])
            if sublayer:
                self.set_projection(role, merged_projection(module, self.kept[sublayer]))
        return without(self, ViltBlock, ("kept", "skips"))

    def folded(self) -> nn.Module:
        """Itself: `merged` comes first."""
        return self


class FoldedSkippedAttention(FoldedSkip):
    """A block without attention as it is deployed. M is the feed-forward's hidden size."""

    def __init__(self, block: Any) -> None:
        like = block.output.dense.weight
        before, after = Norm.of(block.layernorm_before), Norm.of(block.layernorm_after)
        expand = Affine.of(block.intermediate.dense)
        super().__init__(block, block.skips["attention"], before, after, expand, like)
        self.activation = block.intermediate.intermediate_act_fn
        self._hold("down_weight", like, like)
        self._hold("down_bias", block.output.dense.bias, like)

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`."""
        tokens, asking = inputs.tokens, inputs.asking
        own: dict[str, Tensor] = dict(self.named_parameters())
        normed = torch.layer_norm(tokens.hidden, tokens.hidden.shape[-1:], None, None, self.eps)
        mean = F.linear(token_mean(normed, tokens.mask), own["context_weight"], own["context_bias"])
        expanded = F.linear(normed[:, : asking.shape[1]], own["weight"], own["bias"])
        expanded = self.activation(expanded + F.linear(mean, own["up_weight"]))
        return inputs.result(asking + F.linear(expanded, own["down_weight"], own["down_bias"]))
