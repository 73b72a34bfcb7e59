"""METER's fusion layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers.activations import GELUActivation
from transformers.models.bridgetower.modeling_bridgetower import BridgeTowerBertCrossLayer

from harness.backbones import kernels
from harness.backbones.block import Block, BlockInput, BlockOutput, Tokens
from harness.backbones.folding import is_hooked, read_slots, structure_of
from harness.backbones.meter.config import MeterConfig
from harness.backbones.meter.folded import FoldedMeterBlock


class MeterBlock(Block):
    """A fusion layer of one stream: self-attention, attention to the other stream, feed-forward, all post-norm.

    Attribute names are those of Hugging Face's `BridgeTowerBertCrossLayer`, whose modules it uses.
    """

    sublayers: ClassVar[tuple[str, ...]] = ("self_attention", "cross_attention", "mlp")
    normalizes_last: ClassVar[bool] = True

    def __init__(self, config: MeterConfig, stream: str, depth: int) -> None:
        super().__init__()
        self.name = f"{stream}.{depth}"
        self.stream = stream
        layer = BridgeTowerBertCrossLayer(config.fusion())
        self.attention = layer.attention
        self.crossattention = layer.crossattention
        self.intermediate = layer.intermediate
        self.output = layer.output
        self.sequential = nn.ModuleDict()
        self.parallel = nn.ModuleDict()
        self.post_norm = nn.ModuleDict()
        self.heads = config.num_attention_heads
        self.attention_dropout = config.attention_probs_dropout_prob
        self._built = structure_of(self)

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; the context `(B, S, D)` is the other stream at the depth before.

        Of tokens that are not wanted only keys and values are computed.

        Raises:
            ValueError: there is no context.
        """
        tokens, context = inputs.tokens, inputs.context
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        own = self.attend_to_itself(inputs.asking, tokens)
        asked, answered = self.query(own), self.keys_and_values(context.hidden)
        return inputs.result(self.attend_across(own, asked, answered, context.mask))

    def attend_to_itself(self, asking: Tensor, tokens: Tokens) -> Tensor:
        """The first sublayer, `(B, Q, D)` → `(B, Q, D)`: it reads the tokens of its own stream only."""
        attended = self._attend(self.attention, asking, tokens.hidden, tokens.mask)
        return self._close("self_attention", self.attention.output, attended, asking)

    def query(self, own: Tensor) -> tuple[Tensor, ...]:
        """Queries of the cross-attention by head: `(B, T, D)` → `(B, heads, T, D / heads)`."""
        return (self._by_head(self.crossattention.self.query(own)),)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the other stream by head: `(B, S, D)` → twice `(B, heads, S, D / heads)`."""
        maps = self.crossattention.self
        return self._by_head(maps.key(context)), self._by_head(maps.value(context))

    def attend_across(
        self,
        own: Tensor,
        asked: tuple[Tensor, ...],
        answered: tuple[Tensor, ...],
        context_mask: Tensor | None,
    ) -> Tensor:
        """The second and third sublayer on the output `own` `(B, T, D)` of the first."""
        (query,), (key, value) = asked, answered
        attended = self._mix(query, key, value, context_mask)
        hidden = self._close("cross_attention", self.crossattention.output, attended, own)
        return self._close("mlp", self.output, self.intermediate(hidden), hidden)

    def _attend(self, attention: nn.Module, hidden: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """Multi-head attention of `hidden` `(B, T, D)` to `read` `(B, S, D)`, without the output map."""
        maps: Any = attention.self
        query, key, value = maps.query(hidden), maps.key(read), maps.value(read)
        return self._mix(self._by_head(query), self._by_head(key), self._by_head(value), mask)

    def _by_head(self, states: Tensor) -> Tensor:
        return states.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        dropout = self.attention_dropout if self.training else 0.0
        mixed = kernels.attention(query, key, value, mask, dropout)
        return mixed.transpose(1, 2).flatten(2)

    def _close(self, sublayer: str, output: Any, inner: Tensor, residual: Tensor) -> Tensor:
        """The end of a sublayer: output map, slots, residual, norm."""
        result = output.dropout(output.dense(inner))
        if sublayer in self.sequential:
            result = self.sequential[sublayer](result)
        if sublayer in self.parallel:
            result = result + self.parallel[sublayer](residual)
        normed: Tensor = output.LayerNorm(result + residual)
        if sublayer in self.post_norm:
            normed = normed + self.post_norm[sublayer](residual)
        return normed

    def _owners(self) -> dict[str, tuple[Any, str]]:
        """The owner of each projection, as module and attribute name, by role."""
        owners: dict[str, tuple[Any, str]] = {}
        for role, attention in (
            ("self_attention", self.attention),
            ("cross_attention", self.crossattention),
        ):
            owners |= {f"{role}.{name}": (attention.self, name) for name in ("query", "key", "value")}
            owners[f"{role}.output"] = (attention.output, "dense")
        return {**owners, "mlp.up": (self.intermediate, "dense"), "mlp.down": (self.output, "dense")}

    def projections(self) -> dict[str, nn.Linear]:
        """The ten linear maps of the block by role."""
        return {role: getattr(owner, name) for role, (owner, name) in self._owners().items()}

    def set_projection(self, role: str, module: nn.Module) -> None:
        """Replace one of the ten maps."""
        owner, name = self._owners()[role]
        setattr(owner, name, module)

    def folded(self) -> nn.Module:
        """The deployed form; the block itself if it contains something that folding does not know."""
        return self._folded(FoldedMeterBlock) if type(self) is MeterBlock else self

    def _folded(self, form: Callable[..., nn.Module]) -> nn.Module:
        """The deployed form, which `form` makes; the block itself if something in it is unknown."""
        slots = read_slots(self)
        known = structure_of(self) == self._built and not is_hooked(self)
        if slots is None or not known or type(self.intermediate.intermediate_act_fn) is not GELUActivation:
            return self
        norms = {
            "self_attention": self.attention.output.LayerNorm,
            "cross_attention": self.crossattention.output.LayerNorm,
            "mlp": self.output.LayerNorm,
        }
        return form(self.name, self.stream, self.heads, self.projections(), norms, slots)
