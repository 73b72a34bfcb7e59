"""The Triton kernels of `harness.backbones.kernels`, which says what each function does."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_FACTOR, RELATIVE, INVERSE_DEVIATION = 0, 1, 2
BLOCK = 1024
"""Elements that one program of an activation handles."""


@triton.jit
def _norm_kernel(
    residual,
    residual_stride,
    result,
    result_stride,
    gain,
    offset,
    hidden,
    normed,
    factor,
    eps,
    other,
    width: tl.constexpr,
    adds: tl.constexpr,
    affine: tl.constexpr,
    keeps: tl.constexpr,
    norms: tl.constexpr,
    factor_kind: tl.constexpr,
    size: tl.constexpr,
):
    """One token: add, keep the sum, normalise, keep the factor; each only if asked for."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, size)
    inside = columns < width
    states = tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if adds:
        states += tl.load(result + row * result_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if keeps:
        rounded = states.to(hidden.dtype.element_ty)
        tl.store(hidden + row * width + columns, rounded, mask=inside)
        states = rounded.to(tl.float32)
    mean = tl.sum(states, axis=0) / width
    centred = tl.where(inside, states - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / width
    if norms:
        result_states = centred / tl.sqrt(variance + eps)
        if affine:
            result_states *= tl.load(gain + columns, mask=inside, other=0.0).to(tl.float32)
            result_states += tl.load(offset + columns, mask=inside, other=0.0).to(tl.float32)
        tl.store(normed + row * width + columns, result_states.to(normed.dtype.element_ty), mask=inside)
    if factor_kind == 1:
        tl.store(factor + row, tl.sqrt((variance + eps) / (variance + other)))
    if factor_kind == 2:
        tl.store(factor + row, 1.0 / tl.sqrt(variance + other))


@triton.jit
def _activation_kernel(
    branch,
    stride,
    bias,
    factor,
    out,
    count,
    width: tl.constexpr,
    rows_of_branch: tl.constexpr,
    rescaled: tl.constexpr,
    relu: tl.constexpr,
    contiguous: tl.constexpr,
    large: tl.constexpr,
    size: tl.constexpr,
):
    """Elements of `(N, width)`: columns before rows_of_branch are a branch's hidden state, the others get GELU."""
    program = tl.program_id(0)
    if large:
        program = program.to(tl.int64)
    place = program * size + tl.arange(0, size)
    inside = place < count
    row = place // width
    column = place - row * width
    if contiguous:  # known to the compiler, such addresses are read many at a time
        states = tl.load(branch + place, mask=inside, other=0.0).to(tl.float32)
    else:
        states = tl.load(branch + row.to(tl.int64) * stride + column, mask=inside, other=0.0).to(tl.float32)
    of_branch = column < rows_of_branch
    if rescaled:
        scale = tl.load(factor + row, mask=inside & of_branch, other=1.0).to(tl.float32)
        shift = tl.load(bias + column, mask=inside & of_branch, other=0.0).to(tl.float32)
        states = states * scale + shift
    activated = 0.5 * states * (1.0 + tl.erf(states * 0.7071067811865476))
    if relu:
        activated = tl.where(of_branch, tl.maximum(states, 0.0), activated)
    tl.store(out + place, activated.to(out.dtype.element_ty), mask=inside)


def standardise(hidden: Tensor, eps: float, other: float | None) -> tuple[Tensor, Tensor | None]:
    """See `kernels`; under autocast the result is in its type, which the next product reads."""
    normed = torch.empty_like(hidden, dtype=_read_type(hidden), memory_format=torch.contiguous_format)
    factor = None if other is None else _per_token(hidden)
    _norm(hidden, eps, other, normed=normed, factor=factor)
    return normed, factor


def add_and_standardise(
    residual: Tensor, result: Tensor, eps: float, other: float | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """See `kernels`."""
    hidden = _sum_of(residual, result)
    normed = torch.empty_like(hidden, dtype=_read_type(hidden))
    factor = None if other is None else _per_token(hidden)
    _norm(residual, eps, other, result=result, hidden=hidden, normed=normed, factor=factor)
    return hidden, normed, factor


def add_and_normalise(residual: Tensor, result: Tensor, gain: Tensor, offset: Tensor, eps: float) -> Tensor:
    """See `kernels`."""
    normed = _sum_of(residual, result)
    _norm(residual, eps, None, result=result, gain=gain, offset=offset, normed=normed)
    return normed


def inverse_deviation(hidden: Tensor, eps: float) -> Tensor:
    """See `kernels`."""
    factor = _per_token(hidden)
    _norm(hidden, eps, eps, factor=factor)
    return factor


def activate(branch: Tensor, activation: str, factor: Tensor | None, bias: Tensor | None) -> Tensor:
    """See `kernels`."""
    out = torch.empty_like(branch, memory_format=torch.contiguous_format)
    _activate(branch, out, branch.shape[1], activation, factor, bias)
    return out


def activate_jointly(
    joint: Tensor, rows: int, activation: str, factor: Tensor | None, bias: Tensor | None
) -> Tensor:
    """See `kernels`."""
    _activate(joint, joint, rows, activation, factor, bias)
    return joint


def _norm(
    residual: Tensor,
    eps: float,
    other: float | None,
    *,
    result: Tensor | None = None,
    gain: Tensor | None = None,
    offset: Tensor | None = None,
    hidden: Tensor | None = None,
    normed: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    rows, width = residual.shape
    kernel: Any = _norm_kernel[(rows,)]
    # Pointers that are not used may be any tensor.
    kernel(
        residual,
        residual.stride(0),
        residual if result is None else result,
        0 if result is None else result.stride(0),
        residual if gain is None else gain,
        residual if offset is None else offset,
        residual if hidden is None else hidden,
        residual if normed is None else normed,
        residual if factor is None else factor,
        eps,
        0.0 if other is None else other,
        width=width,
        adds=result is not None,
        affine=gain is not None,
        keeps=hidden is not None,
        norms=normed is not None,
        factor_kind=NO_FACTOR if factor is None else INVERSE_DEVIATION if normed is None else RELATIVE,
        size=triton.next_power_of_2(width),
        num_warps=4,
    )


def _activate(
    states: Tensor, out: Tensor, rows: int, activation: str, factor: Tensor | None, bias: Tensor | None
) -> None:
    count = states.numel()
    kernel: Any = _activation_kernel[(triton.cdiv(count, BLOCK),)]
    kernel(
        states,
        states.stride(0),
        states if bias is None else bias,
        states if factor is None else factor,
        out,
        count,
        width=states.shape[1],
        rows_of_branch=rows,
        rescaled=factor is not None,
        relu=activation == "relu",
        contiguous=states.is_contiguous(),
        large=count >= 2**31 - BLOCK,
        size=BLOCK,
        num_warps=4,
    )


def _per_token(hidden: Tensor) -> Tensor:
    return torch.empty(hidden.shape[0], 1, dtype=torch.float32, device=hidden.device)


def _sum_of(residual: Tensor, result: Tensor) -> Tensor:
    dtype = torch.promote_types(residual.dtype, result.dtype)
    return torch.empty(residual.shape, dtype=dtype, device=residual.device)


def _read_type(hidden: Tensor) -> torch.dtype:
    """The type that a product after the norm computes in."""
    kind = hidden.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
