"""The deployed form of ViLT's block."""

from __future__ import annotations

from torch import nn

from harness.backbones.block import BlockInput, BlockOutput
from harness.backbones.folded import Closing, Reading
from harness.backbones.folded_sublayers import FeedForward, SelfAttention
from harness.backbones.folding import Affine, Norm, Slots


class FoldedViltBlock(nn.Module):
    """`ViltBlock` with four products: one for query, key and value. Gains and branches are merged into the matrices."""

    def __init__(
        self,
        name: str,
        stream: str,
        heads: int,
        projections: dict[str, nn.Linear],
        norms: dict[str, nn.LayerNorm],
        slots: Slots,
    ) -> None:
        """projections: by role, as `ViltBlock.projections` has them. norms: by the sublayer they stand before."""
        super().__init__()
        self.name = name
        self.stream = stream
        maps = {role: Affine.of(module) for role, module in projections.items()}
        like = projections["mlp.up"].weight
        query_key_value = Affine.stack(*(maps[f"attention.{role}"] for role in ("query", "key", "value")))

        parallel = dict(slots.parallel)
        if "mlp" in parallel:
            parallel["mlp"] = parallel["mlp"].with_gelu_if_faster(norms["mlp"].eps)

        def reading(sublayer: str, main: Affine) -> Reading:
            return Reading(main, Norm.of(norms[sublayer]), parallel.get(sublayer), like)

        def closing(sublayer: str, main: Affine, joined: bool = False) -> Closing:
            sequential = slots.sequential.get(sublayer)
            return Closing(
                main, parallel=parallel.get(sublayer), sequential=sequential, joined=joined, like=like
            )

        self.attention = SelfAttention(
            reading("attention", query_key_value), closing("attention", maps["attention.output"]), heads
        )
        up = reading("mlp", maps["mlp.up"])
        self.mlp = FeedForward(up, closing("mlp", maps["mlp.down"], joined=up.rows > 0))

    def forward(self, inputs: BlockInput) -> BlockOutput:
        """`(B, T, D)` → `(B, queries, D)`; only keys and values are computed of unwanted tokens."""
        hidden = self.mlp.add_and_feed(*self.attention.result(inputs.tokens, inputs.queries))
        return inputs.result(hidden.view(inputs.asking.shape))
