from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from harness.measure.errors import MeasurementError
from harness.measure.operators import operator_macs

small = st.integers(1, 6)


class Total(TorchDispatchMode):
    macs = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self.macs += operator_macs(func, args, out)
        return out


@given(batch=small, tokens=small, inputs=small, outputs=small, bias=st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_linear_map_costs_rows_times_weights(
    batch: int, tokens: int, inputs: int, outputs: int, bias: bool
) -> None:
    layer, data = nn.Linear(inputs, outputs, bias=bias), torch.randn(batch, tokens, inputs)
    with Total() as total:
        layer(data)
    assert total.macs == batch * tokens * inputs * outputs


@given(queries=small, keys=small, width=small, kind=st.sampled_from(["none", "mask", "causal"]))
@settings(max_examples=20, deadline=None)
def test_attention_costs_scores_and_mixing(queries: int, keys: int, width: int, kind: str) -> None:
    query, key = torch.randn(2, 3, queries, width), torch.randn(2, 3, keys, width)
    mask = torch.zeros(2, 1, 1, keys) if kind == "mask" else None
    with Total() as total:
        functional.scaled_dot_product_attention(query, key, key, attn_mask=mask, is_causal=kind == "causal")
    assert total.macs == 2 * 2 * 3 * queries * keys * width


@pytest.mark.parametrize(
    "backend", [torch.nn.attention.SDPBackend.MATH, torch.nn.attention.SDPBackend.FLASH_ATTENTION]
)
def test_every_way_of_computing_attention_costs_the_same(backend: torch.nn.attention.SDPBackend) -> None:
    query = torch.randn(2, 3, 5, 8)
    with torch.nn.attention.sdpa_kernel(backend), Total() as total:
        functional.scaled_dot_product_attention(query, query, query)
    assert total.macs == 2 * 2 * 3 * 5 * 5 * 8


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_costs_its_kernel_at_every_output(groups: int) -> None:
    layer, data = nn.Conv2d(4, 6, (3, 2), stride=2, groups=groups), torch.randn(2, 4, 9, 8)
    with Total() as total:
        out = layer(data)
    assert total.macs == out.numel() * (4 // groups) * 3 * 2


def test_a_transposed_convolution_costs_its_kernel_at_every_input() -> None:
    layer, data = nn.ConvTranspose1d(4, 6, 3), torch.randn(2, 4, 5)
    with Total() as total:
        layer(data)
    assert total.macs == data.numel() * 6 * 3


def test_elementwise_work_is_free() -> None:
    data = torch.randn(4, 8)
    with Total() as total:
        functional.layer_norm(functional.gelu(data * 2).softmax(-1), (8,)).cumsum(0)
    assert total.macs == 0


def test_backward_of_a_linear_map_costs_the_gradients_that_are_asked_for() -> None:
    layer, data = nn.Linear(5, 7), torch.randn(3, 5)
    with Total() as total:
        layer(data).sum().backward()
    assert total.macs == 2 * 3 * 5 * 7
    with Total() as total:
        layer(data.requires_grad_()).sum().backward()
    assert total.macs == 3 * 3 * 5 * 7


def test_backward_of_attention_costs_five_products() -> None:
    query, key, value = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    out = functional.scaled_dot_product_attention(query, key, value)
    with Total() as total:
        out.sum().backward()
    assert total.macs == 5 * 2 * 4 * 4 * 8


def test_backward_of_a_convolution_costs_the_gradients_that_are_asked_for() -> None:
    layer, data = nn.Conv1d(2, 3, 2), torch.randn(1, 2, 5)
    out = layer(data)
    with Total() as total:
        out.sum().backward()
    assert total.macs == out.numel() * 2 * 2


def test_an_operator_without_a_formula_is_an_error() -> None:
    data = torch.randn(3, 4)
    with pytest.raises(MeasurementError, match="cdist"), Total():
        torch.cdist(data, data)
