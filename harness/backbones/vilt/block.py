"""ViLT's block: a pre-norm transformer layer over the joint stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn
from transformers import ViltConfig
from transformers.activations import GELUActivation
from transformers.models.vilt.modeling_vilt import (
    ViltAttention,
    ViltIntermediate,
    ViltOutput,
)

from harness.backbones import kernels
from harness.backbones.block import Block, BlockInput, BlockOutput
from harness.backbones.folding import is_hooked, read_slots, structure_of
from harness.backbones.vilt.folded import FoldedViltBlock

BLOCK_LAYER_NORM_EPS = 1e-6
"""Epsilon of the LayerNorms of the blocks and of the final one, as in the original. That of the text embedding is
1e-12."""


class ViltBlock(Block):
    """A pre-norm transformer layer; attribute names are those of Hugging Face's `ViltLayer`."""

    sublayers: ClassVar[tuple[str, ...]] = ("attention", "mlp")

    def __init__(self, config: ViltConfig, index: int) -> None:
        super().__init__()
        self.name = f"joint.{index}"
        self.stream = "joint"
        self.attention = ViltAttention(config)
        self.intermediate = ViltIntermediate(config)
        self.output = ViltOutput(config)
        self.norm_eps = config.layer_norm_eps
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.sequential = nn.ModuleDict()
        self.parallel = nn.ModuleDict()
        self.heads = config.num_attention_heads
        self._built = structure_of(self)

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; only keys and values are computed of unwanted tokens."""
        tokens, asking = inputs.tokens, inputs.asking
        normed = self.layernorm_before(tokens.hidden)
        attended = self._attend(normed[:, : asking.shape[1]], normed, tokens.mask)
        return inputs.result(self._finish(asking, attended))

    def _attend(self, asking: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of `asking` `(B, T, D)` to `read` `(B, S, D)`."""
        maps = self.attention.attention
        query = self._by_head(maps.query(asking))
        key, value = self._by_head(maps.key(read)), self._by_head(maps.value(read))
        mixed = kernels.attention(query, key, value, mask)
        output = self.attention.output
        return output.dropout(output.dense(mixed.transpose(1, 2).flatten(2)))  # type: ignore[no-any-return]

    def feed(self, read: Tensor) -> Tensor:
        """The feed-forward layers on normalised states `(B, T, D)`."""
        expanded = self.output.dropout(self.intermediate(read))
        return self.output.dropout(self.output.dense(expanded))  # type: ignore[no-any-return]

    def _by_head(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def _finish(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """The block after its attention, token by token."""
        hidden = self._add("attention", attended, hidden)
        return self._add("mlp", self.feed(self.layernorm_after(hidden)), hidden)

    def _add(self, sublayer: str, result: Tensor, residual: Tensor) -> Tensor:
        if sublayer in self.sequential:
            result = self.sequential[sublayer](result)
        if sublayer in self.parallel:
            result = result + self.parallel[sublayer](residual)
        return residual + result

    def projections(self) -> dict[str, nn.Linear]:
        """The six linear maps of the block by role."""
        maps = self.attention.attention
        return {
            "attention.query": maps.query,
            "attention.key": maps.key,
            "attention.value": maps.value,
            "attention.output": self.attention.output.dense,
            "mlp.up": self.intermediate.dense,
            "mlp.down": self.output.dense,
        }

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace one of the six maps."""
        if role in ("attention.query", "attention.key", "attention.value"):
            setattr(self.attention.attention, role.removeprefix("attention."), module)
        elif role in ("attention.output", "mlp.up", "mlp.down"):
            owner = {
                "attention.output": self.attention.output,
                "mlp.up": self.intermediate,
                "mlp.down": self.output,
            }[role]
            owner.dense = module
        else:
            raise KeyError(role)

    def folded(self) -> nn.Module:
        """The deployed form; the block itself if it contains something that folding does not know."""
        return self._folded(FoldedViltBlock) if type(self) is ViltBlock else self

    def _folded(self, form: Callable[..., nn.Module]) -> nn.Module:
        """The deployed form, which `form` makes; the block itself if something in it is unknown."""
        slots = read_slots(self)
        known = structure_of(self) == self._built and not is_hooked(self)
        if slots is None or not known or type(self.intermediate.intermediate_act_fn) is not GELUActivation:
            return self
        norms = {"attention": self.layernorm_before, "mlp": self.layernorm_after}
        return form(self.name, self.stream, self.heads, self.projections(), norms, slots)
