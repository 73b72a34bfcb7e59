"""The backward pass computes no gradient that nobody asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.backbones.base import BackboneOptions
from harness.registry import resolve_backbone
from methods.lora import LoRA, LoRAOptions

BLOCKS = 12


class Operators(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_products_of_loras_backward_pass() -> None:
    """With a frozen backbone, a block has six products for its inputs' gradients, and a LoRA update has four.

    The first block needs none for its own input: not of query, key and value, nor of the two updates' first matrices.
    Frozen biases are summed nowhere, and the only other product is the frozen pooler's.
    """
    backbone = resolve_backbone("vilt-mini")(BackboneOptions())
    LoRA(LoRAOptions(r=2)).adapt(backbone, torch.Generator().manual_seed(0))
    inputs = backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(0))
    pooled: Tensor = backbone.train()(inputs)
    with Operators() as operators:
        pooled.sum().backward()
    updates = 2
    assert operators.counts["aten.mm.default"] == (6 + 4 * updates) * BLOCKS - (3 + updates) + 1
    assert operators.counts["aten.sum.dim_IntList"] == 0
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    assert len(trained) == 2 * updates * BLOCKS
    assert all(parameter.grad is not None for parameter in trained)
