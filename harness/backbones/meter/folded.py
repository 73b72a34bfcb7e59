"""The deployed form of METER's fusion layer."""

from __future__ import annotations

from torch import Tensor, nn

from harness.backbones.block import BlockInput, BlockOutput, Tokens
from harness.backbones.folded import Closing, Reading
from harness.backbones.folded_sublayers import CrossAttention, FeedForward, SelfAttention
from harness.backbones.folding import Affine, Norm, Slots


class FoldedMeterBlock(nn.Module):
    """`MeterBlock` with seven products: one for query, key and value of self-attention, one for key and value of the
    other stream. Branches are merged into the matrices.

    The norms keep their gains, because their output is also the residual.
    """

    def __init__(
        self,
        name: str,
        stream: str,
        heads: int,
        projections: dict[str, nn.Linear],
        norms: dict[str, nn.LayerNorm],
        slots: Slots,
    ) -> None:
        """projections: by role, as `MeterBlock.projections` has them. norms: by the sublayer they end."""
        super().__init__()
        self.name = name
        self.stream = stream
        maps = {role: Affine.of(module) for role, module in projections.items()}
        like = projections["mlp.up"].weight

        def reading(sublayer: str, *roles: str) -> Reading:
            main = Affine.stack(*(maps[f"{sublayer}.{role}"] for role in roles))
            return Reading(main, None, slots.parallel.get(sublayer) or slots.post_norm.get(sublayer), like)

        def closing(sublayer: str, role: str) -> Closing:
            return Closing(
                maps[f"{sublayer}.{role}"],
                parallel=slots.parallel.get(sublayer),
                sequential=slots.sequential.get(sublayer),
                norm=Norm.of(norms[sublayer]),
                post_norm=slots.post_norm.get(sublayer),
                joined=sublayer == "mlp",
                like=like,
            )

        self.self_attention = SelfAttention(
            reading("self_attention", "query", "key", "value"), closing("self_attention", "output"), heads
        )
        answering = Affine.stack(maps["cross_attention.key"], maps["cross_attention.value"])
        self.cross_attention = CrossAttention(
            reading("cross_attention", "query"),
            Reading(answering, None, None, like),
            closing("cross_attention", "output"),
            heads,
        )
        self.mlp = FeedForward(reading("mlp", "up"), closing("mlp", "down"))

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; the context `(B, S, D)` is the other stream at the depth before.

        Of tokens that are not wanted only keys and values are computed.

        Raises:
            ValueError: there is no context.
        """
        context = inputs.context
        if context is None:
            raise ValueError(f"{self.name} attends to the other stream: context is missing")
        own = self.self_attention.attend(inputs.tokens, inputs.queries).view(inputs.asking.shape)
        asked, answered = self.query(own), self.keys_and_values(context.hidden)
        return inputs.result(self.attend_across(own, asked, answered, context.mask))

    def attend_to_itself(self, asking: Tensor, tokens: Tokens) -> Tensor:
        """The first sublayer, `(B, Q, D)` → `(B, Q, D)`: it reads the tokens of its own stream only."""
        queries = None if asking is tokens.hidden else asking.shape[1]
        return self.self_attention.attend(tokens, queries).view(asking.shape)

    def query(self, own: Tensor) -> tuple[Tensor, ...]:
        """Input of the cross-attention from its own stream `(B, T, D)`, for each example."""
        return self.cross_attention.ask(own)

    def keys_and_values(self, context: Tensor) -> tuple[Tensor, ...]:
        """Keys and values of the other stream by head: `(B, S, D)` → twice `(B, heads, S, D / heads)`."""
        return self.cross_attention.answer(context)

    def attend_across(
        self,
        own: Tensor,
        asked: tuple[Tensor, ...],
        answered: tuple[Tensor, ...],
        context_mask: Tensor | None,
    ) -> Tensor:
        """The second and third sublayer on the output `own` `(B, T, D)` of the first."""
        hidden = self.cross_attention.attend(own, asked, answered, context_mask)
        return self.mlp.feed(hidden).view(own.shape)
