"""Multiply-accumulates of torch's operators, in closed form.

Counted: matrix products, convolutions and attention (scores and mixing, masked or not). Not counted:
biases, activations, softmax, norms, element-wise scaling, embedding look-ups, interpolation.

torch's own `FlopCounterMode` has no formula for attention on CPU (2.13) and ignores operators that it does not
know. Here an operator that looks like a matrix product and has no formula is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch

from harness.measure.errors import MeasurementError

aten = torch.ops.aten
Arguments = tuple[Any, ...]
Formula = Callable[[Arguments, Any], int]


def operator_macs(operator: Any, args: Arguments, out: Any) -> int:
    """Multiply-accumulates of one call of `operator` (an `OpOverload`) that returned `out`.

    Raises:
        MeasurementError: the operator multiplies matrices, or may do so, and has no formula.
    """
    formula = FORMULAS.get(operator.overloadpacket)
    if formula is not None:
        return formula(args, out)
    namespace, name = operator._schema.name.split("::")
    if namespace not in KNOWN_NAMESPACES or MATRIX_WORDS & set(name.strip("_").split("_")):
        raise MeasurementError(f"no formula for the multiply-accumulates of {operator}")
    return 0


def _product(left: int, right: int) -> Formula:
    """`(…, M, K) @ (…, K, N)`, batched or not; `left` and `right` are the positions of the operands."""
    return lambda args, _out: args[left].numel() * args[right].shape[-1]


def _dot(left: int) -> Formula:
    """A matrix or vector times a vector: one product per element of the first, at position `left`."""
    return lambda args, _out: args[left].numel()  # type: ignore[no-any-return]


def _convolution(args: Arguments, out: Any) -> int:
    inputs, weight, transposed = args[0], args[1], args[6]
    return int((inputs if transposed else out).numel() * prod(weight.shape[1:]))


def _convolution_backward(args: Arguments, _out: Any) -> int:
    """The gradients of input and weight, if requested, each cost as much as the forward pass."""
    gradient, inputs, weight, transposed, requested = args[0], args[1], args[2], args[7], args[10]
    forward = (inputs if transposed else gradient).numel() * prod(weight.shape[1:])
    return int(forward * (requested[0] + requested[1]))


def _attention(args: Arguments, _out: Any) -> int:
    """Query `(B, H, Tq, d)`, key `(B, H, Tk, d)`, value `(B, H, Tk, e)`: B·H·Tq·Tk·(d + e)."""
    query, key, value = args[:3]
    return int(prod(query.shape[:-1]) * key.shape[-2] * (query.shape[-1] + value.shape[-1]))


def _attention_backward(args: Arguments, _out: Any) -> int:
    """Recomputed scores, then the gradients of weights, values, queries and keys."""
    query, key, value = args[1:4]
    pairs = prod(query.shape[:-1]) * key.shape[-2]
    return int(pairs * (3 * query.shape[-1] + 2 * value.shape[-1]))


_FUSED_ATTENTION = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")

FORMULAS: Mapping[Any, Formula] = {
    aten.mm: _product(0, 1),
    aten.bmm: _product(0, 1),
    aten.addmm: _product(1, 2),
    aten.addmm_: _product(1, 2),
    aten._addmm_activation: _product(1, 2),
    aten.baddbmm: _product(1, 2),
    aten.baddbmm_: _product(1, 2),
    aten.mv: _dot(0),
    aten.dot: _dot(0),
    aten.addmv: _dot(1),
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
    **{getattr(aten, f"_scaled_dot_product_{kind}"): _attention for kind in _FUSED_ATTENTION},
    **{
        getattr(aten, f"_scaled_dot_product_{kind}_backward"): _attention_backward
        for kind in _FUSED_ATTENTION
    },
}
"""Formulas by operator. `_scaled_dot_product_attention_math` needs none, because it is decomposed into `bmm`."""

KNOWN_NAMESPACES = {"aten", "prim", "prims", "profiler"}
MATRIX_WORDS = {
    *(
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "addbmm",
        "matmul",
        "mv",
        "addmv",
        "dot",
        "vdot",
        "einsum",
        "tensordot",
    ),
    *("linear", "bilinear", "trilinear", "conv", "convolution", "attention", "cdist", "rnn", "lstm", "gru"),
}
"""Words in the names of operators that multiply matrices."""
