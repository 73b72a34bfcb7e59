"""Products with frozen matrices, and the small steps between them, each as one kernel on CUDA.

A deployed block spends its time in matrix products and attention, unless the steps between them are many. On CUDA each
step here runs one Triton kernel; elsewhere, and without Triton, the same arithmetic runs on torch's operators.
Kernels read and write the tensors' own types and compute in float32. None of the steps records gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import _nn
from torch.autograd.function import FunctionCtx, once_differentiable

Activation = Literal["relu", "gelu"]

WIDE = 512
"""Matrices with at least this many rows and columns are multiplied by oneDNN where MKL is slow."""

PROCESSOR = Path("/proc/cpuinfo")

_ONE = torch.ones(())
_allowed = True


@contextmanager
def only_operators() -> Iterator[None]:
    """Within the block only torch's operators run, so that they can be counted."""
    global _allowed
    before, _allowed = _allowed, False
    try:
        yield
    finally:
        _allowed = before


def suits_onednn(weight: Tensor) -> bool:
    """Whether `product` may use oneDNN for this matrix: it is wide, frozen, and on a CPU where MKL is slow."""
    return (
        weight.device.type == "cpu"
        and min(weight.shape) >= WIDE
        and not weight.requires_grad
        and _mkl_is_slow()
    )


def product(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map: `(…, D)` → `(…, M)`.

    torch multiplies float32 matrices on a CPU by MKL, whose code for processors other than Intel's is a tenth slower
    than oneDNN's if the matrices are wide. There oneDNN is used, provided that weight and bias are frozen.
    """
    if not _by_onednn(hidden, weight, bias):
        return F.linear(hidden, weight, bias)
    if hidden.requires_grad and torch.is_grad_enabled():
        return _FrozenProduct.apply(hidden, weight, bias)  # type: ignore[no-any-return]
    return _onednn(hidden, weight, bias)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    **options: bool,
) -> Tensor:
    """Torch's attention of `(B, heads, T, d)` to `(B, heads, S, d)`.

    With gradients on a CPU it runs in float32: torch's gradient in bfloat16 takes several times as long there.

    options: other arguments of `torch.nn.functional.scaled_dot_product_attention`.
    """
    kept, kind = query.dtype, query.device.type
    if (
        kind != "cpu"
        or not query.requires_grad
        or (kept == torch.float32 and not torch.is_autocast_enabled(kind))
    ):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, **options)
    wide = torch.promote_types(kept, torch.float32)
    if mask is not None and mask.is_floating_point():
        mask = mask.to(wide)
    with torch.autocast(kind, enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.to(wide), key.to(wide), value.to(wide), attn_mask=mask, dropout_p=dropout, **options
        )
        return mixed.to(kept)


def standardise(hidden: Tensor, eps: float, other: float | None = None) -> tuple[Tensor, Tensor | None]:
    """LayerNorm of tokens `(N, D)` without gain and offset.

    other: a second epsilon. Then also the factor `(N, 1)` that turns the result into that with this epsilon: of a
        token with variance v it is √(v + eps) / √(v + other).
    """
    if _fused(hidden):
        return _kernels().standardise(hidden, eps, other)
    if other is None:
        return torch.layer_norm(hidden, hidden.shape[1:], None, None, eps), None
    normed, inverse = _with_deviation(hidden, eps)
    # The factor is 1 / √(1 + (other − eps) / (v + eps)), and the norm gives 1 / √(v + eps).
    one = _ONE if inverse.device.type == "cpu" else inverse.new_ones(())
    return normed, torch.addcmul(one, inverse, inverse, value=other - eps).rsqrt_()


def add_and_standardise(
    residual: Tensor, result: Tensor, eps: float, other: float | None = None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The sum of two `(N, D)`, and `standardise` of it. `result` may be overwritten."""
    if _fused(residual):
        return _kernels().add_and_standardise(residual, result, eps, other)
    hidden = add(residual, result)
    return hidden, *standardise(hidden, eps, other)


def add_and_normalise(residual: Tensor, result: Tensor, gain: Tensor, offset: Tensor, eps: float) -> Tensor:
    """LayerNorm, with gain and offset `(D,)`, of the sum of two `(N, D)`. `result` may be overwritten."""
    if _fused(residual):
        return _kernels().add_and_normalise(residual, result, gain, offset, eps)
    return torch.layer_norm(add(residual, result), gain.shape, gain, offset, eps)


def inverse_deviation(hidden: Tensor, eps: float) -> Tensor:
    """1 / √(v + eps) of tokens `(N, D)` with variance v: `(N, 1)`."""
    if _fused(hidden):
        return _kernels().inverse_deviation(hidden, eps)
    return _with_deviation(hidden, eps)[1]


def add(residual: Tensor, result: Tensor) -> Tensor:
    """The sum of two `(N, D)`, in the place of `result` where that is possible."""
    if residual.dtype == result.dtype and result.is_contiguous():
        return result.add_(residual)
    return residual + result


def activate(
    branch: Tensor, activation: Activation, factor: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """ReLU or GELU of `(N, r)`, or of `branch · factor + bias` with factor `(N, 1)` and bias `(r,)`.

    `branch` may be overwritten.
    """
    if _fused(branch):
        return _kernels().activate(branch, activation, factor, bias)
    if factor is not None and bias is not None:
        branch = torch.addcmul(bias, branch, factor)
    if activation == "gelu":
        return F.gelu(branch)
    return torch.relu(branch) if branch.requires_grad else branch.relu_()


def activate_jointly(
    joint: Tensor, rows: int, activation: Activation, factor: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """`activate` of the first `rows` columns of `(N, rows + M)` and GELU of the others, in their place."""
    if _fused(joint):
        return _kernels().activate_jointly(joint, rows, activation, factor, bias)
    if activation == "gelu" and factor is None:
        return gelu(joint)
    branch = joint[:, :rows]
    inner = activate(branch.clone() if factor is None else branch, activation, factor, bias)
    if joint.requires_grad:
        return torch.cat((inner, F.gelu(joint[:, rows:])), 1)
    # Of the whole, as oneDNN's GELU needs contiguous memory and is twice as fast.
    _nn.gelu_(joint)  # type: ignore[attr-defined]
    branch.copy_(inner)
    return joint


def product_with_relu(read: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """ReLU of a linear map, `(N, D)` → `(N, r)`; on CUDA as part of the matrix product."""
    if _fused(read) and read.dtype == weight.dtype:  # autocast does not know this operator
        return torch._addmm_activation(bias, read, weight.t())
    inner = F.linear(read, weight, bias)
    return torch.relu(inner) if inner.requires_grad else inner.relu_()


def gelu(hidden: Tensor) -> Tensor:
    """GELU of a result of its own, in its place unless gradients are needed."""
    if hidden.requires_grad:
        return F.gelu(hidden)
    return _nn.gelu_(hidden)  # type: ignore[attr-defined]


class _FrozenProduct(torch.autograd.Function):
    """`_onednn` with the gradient of the input."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return _onednn(hidden, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        return _onednn(gradient, weight.t(), None), None, None


def _onednn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(hidden, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _by_onednn(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        suits_onednn(weight)
        and hidden.dtype == weight.dtype == torch.float32
        and not (bias is not None and bias.requires_grad)
        and _allowed
        and not torch.is_autocast_enabled("cpu")
    )


@cache
def _mkl_is_slow() -> bool:
    """Whether torch would use MKL on a processor that is not Intel's, and has oneDNN."""
    try:
        processor = PROCESSOR.read_text(encoding="utf-8")
    except OSError:
        return False
    found = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return found and "vendor_id" in processor and "GenuineIntel" not in processor


def _with_deviation(hidden: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    normed, _, inverse = torch.native_layer_norm(hidden, hidden.shape[1:], None, None, eps)
    if hidden.requires_grad:  # torch gives no gradient of the second
        inverse = (hidden.var(dim=-1, correction=0, keepdim=True) + eps).rsqrt()
    return normed, inverse


def _fused(tensor: Tensor) -> bool:
    """Whether a Triton kernel may run."""
    return (
        tensor.is_cuda
        and _allowed
        and not tensor.requires_grad
        and tensor.dtype != torch.float64
        and _triton_found()
        and tensor.get_device() == torch.cuda.current_device()
    )


@cache
def _triton_found() -> bool:
    return find_spec("triton") is not None


@cache
def _kernels() -> Any:
    from harness.backbones import triton_kernels

    return triton_kernels
