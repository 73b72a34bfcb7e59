"""The adapters of EAS: linear maps of low rank, which fold into the projections behind them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from harness.backbones.folding import Affine
from methods.base import Inserted
from methods.bottleneck import linear


class GroupedLinear(nn.Module):
    """Upper projection in two groups: each half of the input gives one half of the output. It starts at 0.

    inputs r: size of the input, even. outputs D: size of the output, even. It has r · D / 2 weights and D biases.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(outputs, inputs // 2))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, r)` → `(…, D)`."""
        parts = zip(hidden.chunk(2, dim=-1), self.weight.chunk(2), self.bias.chunk(2), strict=True)
        return torch.cat([F.linear(*part) for part in parts], dim=-1)

    def dense(self) -> Affine:
        """The same map with one matrix `(D, r)`, in float32 or better."""
        precise = torch.promote_types(self.weight.dtype, torch.float32)
        weight, bias = self.weight.detach().to(precise), self.bias.detach().to(precise)
        return Affine(torch.block_diag(*weight.chunk(2)), bias)


class InputAdapter(Inserted):
    """In front of the projections of a sublayer that is kept: `x + B(dropout(C x + c)) + b`, without activation.

    width D, bottleneck r: C is `(r, D)`, B is grouped; D · r + r + r · D / 2 + D parameters.
    """

    def __init__(self, width: int, bottleneck: int, dropout: float, generator: Generator) -> None:
        super().__init__()
        self.down = xavier(width, bottleneck, generator)
        self.up = GroupedLinear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        added: Tensor = self.up(self.dropout(self.down(hidden)))
        return hidden + added

    def affine(self) -> Affine:
        """The same map as one matrix `(D, D)`, without dropout."""
        added = self.up.dense().after(Affine.of(self.down))
        return added.plus_identity()


class SkipAdapter(Inserted):
    """In place of an attention module: `B(½ dropout(C x + c + mean(A y + a))) + b`, without a residual.

    The mean is over the tokens y attended to, without padding. It is taken before A, which gives the same and costs
    less. 2 (D · r + r) + r · D / 2 + D parameters.
    """

    def __init__(self, width: int, bottleneck: int, dropout: float, generator: Generator) -> None:
        super().__init__()
        self.down = xavier(width, bottleneck, generator)
        self.context = xavier(width, bottleneck, generator)
        self.up = GroupedLinear(bottleneck, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, read: Tensor, mask: Tensor | None) -> Tensor:
        """`(B, Q, D)`; read `(B, T, D)` with an additive mask `(B, 1, 1, T)` → `(B, Q, D)`."""
        return self.with_mean(hidden, token_mean(read, mask))

    def with_mean(self, hidden: Tensor, mean: Tensor) -> Tensor:
        """`(B, Q, D)` and the mean of the tokens attended to `(B, 1, D)` → `(B, Q, D)`."""
        summary = self.context(mean)
        added: Tensor = self.up(0.5 * self.dropout(self.down(hidden) + summary))
        return added


def xavier(inputs: int, outputs: int, generator: Generator) -> nn.Linear:
    """A linear map with Xavier's uniform weights and biases 0."""
    module = linear(inputs, outputs, 0.0, torch.Generator(generator.device))
    nn.init.xavier_uniform_(module.weight, generator=generator)
    return module


def token_mean(hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the tokens that are not padding: `(B, T, D)`, additive mask `(B, 1, 1, T)` → `(B, 1, D)`."""
    if mask is None:
        return hidden.mean(dim=1, keepdim=True)
    real = (mask[:, 0, 0] == 0).to(hidden.dtype)[..., None]
    return (hidden * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
