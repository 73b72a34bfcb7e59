"""Rate of this machine's matrix products at a transformer's shapes: the reference for its forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional


@dataclass(frozen=True)
class GemmShape:
    """`count` linear maps `(rows, inputs) → (rows, outputs)`, each with its own weight."""

    rows: int
    inputs: int
    outputs: int
    count: int = 1

    @property
    def macs(self) -> int:
        """Multiply-accumulates of all `count`."""
        return self.count * self.rows * self.inputs * self.outputs


def transformer_shapes(tokens: int, width: int, inner: int, blocks: int = 1) -> list[GemmShape]:
    """The linear maps of `blocks` transformer blocks on `tokens` rows (batch · length), in order.

    Query, key, value and output `width → width`, then `width → inner → width`. Every block has its own weights,
    so that they are read from memory as a model's are.
    """
    block = [
        GemmShape(tokens, width, width, 4),
        GemmShape(tokens, width, inner),
        GemmShape(tokens, inner, width),
    ]
    return block * blocks


def gemm_cycle(
    shapes: Sequence[GemmShape], device: torch.device, dtype: torch.dtype = torch.float32
) -> Callable[[], None]:
    """One pass over all `shapes`, which `measure_latency` can time together with models."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).to(device, dtype)

    inputs = {(s.rows, s.inputs): draw(s.rows, s.inputs) for s in shapes}
    pairs = [
        (inputs[s.rows, s.inputs], draw(s.outputs, s.inputs))  # laid out like nn.Linear's weight
        for s in shapes
        for _ in range(s.count)
    ]

    def run() -> None:
        with torch.inference_mode():
            for data, weight in pairs:
                functional.linear(data, weight)

    return run
