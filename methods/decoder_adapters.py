"""Adapters of the published DAS and EAS for LLaVA and LaVIN, which read the norms of a decoder's layers.

Written from the public code of the authors (DoubtedSteam/DAS, DoubtedSteam/EAS).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from methods.base import Inserted
from methods.eas_adapters import GroupedLinear, xavier

TEMPERATURE = 10.0
"""Of the softmax over the two experts."""


class ExpertAdapter(Inserted):
    """`w₀ B u + w₁ D u`, with x added to it if `residual`; u = C x + c, and w is the example's own.

    w = softmax(router(s) / 10), s a summary of the example `(B, 1, D)`: its first token, or a mean over tokens.
    context: u = ½ (C x + c + A s + a), in place of an attention. xavier_up: B and D are drawn like C instead of 0.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        dropout: float,
        generator: Generator,
        *,
        context: bool = False,
        residual: bool = True,
        router_bias: bool = True,
        xavier_up: bool = False,
    ) -> None:
        super().__init__()
        self.down = xavier(width, bottleneck, generator)
        self.context = xavier(width, bottleneck, generator) if context else None
        self.ups = nn.ModuleList(GroupedLinear(bottleneck, width) for _ in range(2))
        if xavier_up:
            for up in self.ups:
                nn.init.xavier_uniform_(up.weight, generator=generator)  # type: ignore[arg-type]
        self.router = xavier(width, 2, generator)
        if not router_bias:
            self.router.bias = None  # type: ignore[assignment]
        self.residual = residual
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, summary: Tensor) -> Tensor:
        """`(B, T, D)` and the summary `(B, 1, D)` → `(B, T, D)`."""
        weights = torch.softmax(self.router(summary) / TEMPERATURE, dim=-1)
        inner = self.down(hidden)
        if self.context is not None:
            inner = 0.5 * (inner + self.context(summary))
        inner = self.dropout(inner)
        first, second = (up(inner) for up in self.ups)
        added: Tensor = weights[..., :1] * first + weights[..., 1:] * second
        return hidden + added if self.residual else added


class SequentialBottleneck(Inserted):
    """`x + up(ReLU(down(x)))`, behind a norm, with Xavier's weights; it is not the identity at the start."""

    def __init__(self, width: int, bottleneck: int, generator: Generator) -> None:
        super().__init__()
        self.down = xavier(width, bottleneck, generator)
        self.up = xavier(bottleneck, width, generator)

    def forward(self, hidden: Tensor, summary: Tensor) -> Tensor:
        """`(B, T, D)` → `(B, T, D)`; the summary is not read."""
        added: Tensor = self.up(F.relu(self.down(hidden)))
        return hidden + added
