"""METER's fusion layer with EAS: adapters in front of its projections, or in place of its attentions."""

from __future__ import annotations

from torch import Tensor, nn

from harness.backbones.block import Block, BlockInput, BlockOutput, Tokens
from harness.backbones.meter.block import MeterBlock
from methods.eas_adapters import InputAdapter, SkipAdapter
from methods.eas_merging import merged_projection, without

ATTENTIONS = {"self_attention": "attention", "cross_attention": "crossattention"}
"""The modules of the attentions by sublayer."""


class EasMeterBlock(MeterBlock):
    """A layer whose self-attention and cross-attention can be skipped, each by itself.

    Kept: query, key and value of self-attention, the query of cross-attention, and the feed-forward read their input
    through `kept[sublayer]`; residuals and norms do not. Skipped: the sublayer's result is `skips[sublayer]`, which
    reads the layer's input, in cross-attention too, and the mean of the tokens attended to. The norm stays.
    """

    def __init__(
        self, block: MeterBlock, kept: dict[str, InputAdapter], skips: dict[str, SkipAdapter]
    ) -> None:
        """Takes the modules of `block`, under the same names. Attentions without an adapter in `kept` are removed."""
        super(Block, self).__init__()  # MeterBlock's own would draw new weights
        vars(self).update({**vars(block), "_modules": dict(block._modules)})
        self.kept = nn.ModuleDict(kept)
        self.skips = nn.ModuleDict(skips)
        self.skipped = {name for name in skips if name not in kept}
        for sublayer in self.skipped:
            attention = getattr(self, ATTENTIONS[sublayer])
            del attention.self, attention.output.dense

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; the context is `(B, S, D)`.

        Raises:
            ValueError: there is no context.
        """
        tokens, context = inputs.tokens, inputs.context
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        asking = inputs.asking
        own = self.attend_to_itself(asking, tokens)
        if "cross_attention" in self.skipped:
            hidden = self._skip("cross_attention", own, asking, context)
        else:
            (query,), (key, value) = self.query(own), self.keys_and_values(context.hidden)
            attended = self._mix(query, key, value, context.mask)
            hidden = self._close("cross_attention", self.crossattention.output, attended, own)
        expanded = self.intermediate(self._through("mlp", hidden))
        return inputs.result(self._close("mlp", self.output, expanded, hidden))

    def attend_to_itself(self, asking: Tensor, tokens: Tokens) -> Tensor:
        """The first sublayer, `(B, Q, D)` → `(B, Q, D)`."""
        if "self_attention" in self.skipped:
            return self._skip("self_attention", asking, asking, tokens)
        read = self._through("self_attention", tokens.hidden)
        attended = self._attend(self.attention, read[:, : asking.shape[1]], read, tokens.mask)
        return self._close("self_attention", self.attention.output, attended, asking)

    def query(self, own: Tensor) -> tuple[Tensor, ...]:
        """The queries of the second sublayer by head: `(B, T, D)` → `(B, heads, T, D / heads)`."""
        return super().query(self._through("cross_attention", own))

    def _through(self, sublayer: str, hidden: Tensor) -> Tensor:
        """What a sublayer reads; without its adapter, as after `merged`, the hidden states themselves."""
        if sublayer not in self.kept:
            return hidden
        read: Tensor = self.kept[sublayer](hidden)
        return read

    def _skip(self, sublayer: str, residual: Tensor, asking: Tensor, read: Tokens) -> Tensor:
        result: Tensor = self.skips[sublayer](asking, read.hidden, read.mask)
        normed: Tensor = getattr(self, ATTENTIONS[sublayer]).output.LayerNorm(residual + result)
        return normed

    def projections(self) -> dict[str, nn.Linear]:
        """The layer's linear maps by role; those of removed attentions are missing."""
        return {role: getattr(owner, name) for role, (owner, name) in self._owners().items()}

    def _owners(self) -> dict[str, tuple[nn.Module, str]]:
        """Module and attribute of each projection, by role."""
        owners: dict[str, tuple[nn.Module, str]] = {}
        for sublayer, path in ATTENTIONS.items():
            if sublayer in self.skipped:
                continue
            attention = getattr(self, path)
            owners |= {f"{sublayer}.{name}": (attention.self, name) for name in ("query", "key", "value")}
            owners[f"{sublayer}.output"] = (attention.output, "dense")
        return {**owners, "mlp.up": (self.intermediate, "dense"), "mlp.down": (self.output, "dense")}

    def merged(self) -> nn.Module:
        """The deployed form: adapters of kept sublayers are in the projections; a plain layer if nothing is skipped."""
        for sublayer in self.kept:
            read = {
                "self_attention": ("query", "key", "value"),
                "cross_attention": ("query",),
                "mlp": ("up",),
            }
            for name in read[sublayer]:
                role = f"{sublayer}.{name}"
                self.set_projection(role, merged_projection(self.projections()[role], self.kept[sublayer]))
        self.kept = nn.ModuleDict()
        return self if self.skipped else without(self, MeterBlock, ("kept", "skips"))

    def folded(self) -> nn.Module:
        """Itself: `merged` comes first."""
        return self
