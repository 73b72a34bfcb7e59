"""The small steps between products: torch's operators against closed forms, Triton's kernels against the operators.

Without a GPU the kernels run only if Triton is installed and TRITON_INTERPRET=1 is set.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones import kernels

EPS, OTHER = 1e-6, 1e-2
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="module")
def triton_kernels() -> Any:
    pytest.importorskip("triton", reason="Triton is not installed")
    if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        pytest.skip("without a GPU, Triton's kernels need TRITON_INTERPRET=1")
    from harness.backbones import triton_kernels

    return triton_kernels


def draw(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, columns, generator=generator) * 2 + 0.5).to(DEVICE, dtype)


def test_the_factor_turns_one_epsilon_into_the_other() -> None:
    hidden = draw(5, 12) * torch.tensor([1.0, 0.1, 0.01, 3.0, 0.5], device=DEVICE)[:, None]
    normed, factor = kernels.standardise(hidden, EPS, OTHER)
    assert factor is not None
    torch.testing.assert_close(normed, F.layer_norm(hidden, (12,), eps=EPS))
    torch.testing.assert_close(normed * factor, F.layer_norm(hidden, (12,), eps=OTHER))


def test_inverse_deviation_in_closed_form() -> None:
    hidden = torch.tensor([[1.0, -1.0], [3.0, 3.0]], device=DEVICE)
    expected = torch.tensor([[1 / 1.25**0.5], [2.0]], device=DEVICE)
    torch.testing.assert_close(kernels.inverse_deviation(hidden, 0.25), expected)


def test_rows_are_activated_in_their_place() -> None:
    joint = torch.tensor([[-1.0, 2.0, -3.0, 4.0]], device=DEVICE)
    factor, bias = torch.tensor([[2.0]], device=DEVICE), torch.tensor([1.0, 0.5], device=DEVICE)
    out = kernels.activate_jointly(joint.clone(), 2, "relu", factor, bias)
    torch.testing.assert_close(out[:, :2], torch.tensor([[0.0, 4.5]], device=DEVICE))
    torch.testing.assert_close(out[:, 2:], F.gelu(joint[:, 2:]))


ONEDNN = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


@ONEDNN
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_wide_product_by_onednn_and_its_gradient_agree_with_torch(
    monkeypatch: pytest.MonkeyPatch, with_bias: bool
) -> None:
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: True)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(kernels.WIDE + 3, kernels.WIDE, generator=generator) / 20
    bias = torch.randn(len(weight), generator=generator) if with_bias else None
    hidden = torch.randn(2, 5, kernels.WIDE, generator=generator)
    expected, found = (hidden.clone().requires_grad_() for _ in range(2))
    target = torch.randn(2, 5, len(weight), generator=generator)
    F.linear(expected, weight, bias).backward(target)
    result = kernels.product(found, weight, bias)
    assert type(result.grad_fn).__name__ == "_FrozenProductBackward"
    result.backward(target)
    torch.testing.assert_close(result, F.linear(hidden, weight, bias), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.grad, expected.grad, atol=1e-4, rtol=0)
    torch.testing.assert_close(kernels.product(hidden, weight, bias), result, atol=1e-4, rtol=0)


def test_torch_multiplies_what_trains_what_is_narrow_and_what_autocast_converts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: True)
    monkeypatch.setattr(kernels, "_onednn", None)  # calling it fails
    hidden, weight = torch.ones(2, kernels.WIDE), torch.ones(kernels.WIDE, kernels.WIDE)
    kernels.product(hidden, weight.clone().requires_grad_(), None)
    kernels.product(hidden, weight, torch.ones(kernels.WIDE).requires_grad_())
    kernels.product(hidden, weight[1:], None)
    kernels.product(hidden.bfloat16(), weight.bfloat16(), None)
    with kernels.only_operators():
        kernels.product(hidden, weight, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.product(hidden, weight, None).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("processor", "slow"), [("GenuineIntel", False), ("AuthenticAMD", True), (None, False), ("", False)]
)
def test_mkl_is_slow_on_processors_of_others_than_intel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processor: str | None, slow: bool
) -> None:
    if processor is not None:
        line = f"vendor_id\t: {processor}\n" if processor else "Features\t: fp asimd\n"
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}")
    monkeypatch.setattr(kernels, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    kernels._mkl_is_slow.cache_clear()
    assert kernels._mkl_is_slow() is slow
    kernels._mkl_is_slow.cache_clear()


@pytest.mark.skipif(DEVICE != "cpu", reason="about the CPU")
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_with_gradients_runs_in_float32_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    torch_attention, types = F.scaled_dot_product_attention, []

    def watched(*inputs: Any, **options: Any) -> Tensor:
        types.append(inputs[0].dtype)
        return torch_attention(*inputs, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    given = torch.float32 if autocast else torch.bfloat16
    states = [draw(6, 8, torch.bfloat16, seed).to(given).view(1, 2, 3, 8) for seed in range(3)]
    mask = torch.tensor([0.0, 0.0, -1e4], dtype=given).view(1, 1, 1, 3)
    target = draw(6, 8, seed=4).view(1, 2, 3, 8)
    exact = [state.float().clone().requires_grad_() for state in states]
    expected = torch_attention(*exact, attn_mask=mask.float())
    expected.backward(target)
    found = [state.clone().requires_grad_() for state in states]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        result = kernels.attention(*found, mask)
        without_gradient = kernels.attention(*states, mask)
    result.backward(target.to(given))
    assert result.dtype == given
    assert types == [torch.float32, given]
    torch.testing.assert_close(result.float(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(without_gradient.float(), expected, atol=2e-2, rtol=2e-2)
    for one, other in zip(found, exact, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad.float(), other.grad, atol=5e-2, rtol=5e-2)


def test_sum_takes_the_place_of_the_result_only_in_one_type() -> None:
    residual, result = draw(3, 4), draw(3, 4, seed=1)
    expected = residual + result
    assert kernels.add(residual, result) is result
    torch.testing.assert_close(result, expected)
    half = draw(3, 4, torch.bfloat16)
    assert kernels.add(residual, half).dtype == torch.float32


TYPES = pytest.mark.parametrize(
    ("residual_type", "result_type", "tolerance"),
    [
        (torch.float32, torch.float32, 1e-5),
        (torch.bfloat16, torch.bfloat16, 2e-2),
        (torch.float32, torch.bfloat16, 1e-5),
    ],
)


@TYPES
@pytest.mark.parametrize("width", [32, 48])
def test_kernels_of_norms_agree_with_torch(
    triton_kernels: Any, residual_type: torch.dtype, result_type: torch.dtype, tolerance: float, width: int
) -> None:
    residual = draw(7, width, residual_type)
    result = draw(7, width + 5, result_type, 1)[:, 5:]  # rows that do not follow each other
    gain, offset = draw(1, width, residual_type, 2)[0], draw(1, width, residual_type, 3)[0]
    with kernels.only_operators():
        expected = [
            *kernels.standardise(residual, EPS, OTHER),
            *kernels.add_and_standardise(residual, result, EPS, OTHER),
            kernels.add_and_normalise(residual, result, gain, offset, EPS),
            kernels.inverse_deviation(residual, OTHER),
        ]
    found = [
        *triton_kernels.standardise(residual, EPS, OTHER),
        *triton_kernels.add_and_standardise(residual, result, EPS, OTHER),
        triton_kernels.add_and_normalise(residual, result, gain, offset, EPS),
        triton_kernels.inverse_deviation(residual, OTHER),
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other.float(), atol=tolerance, rtol=tolerance)
    assert triton_kernels.standardise(residual, EPS, None)[1] is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("rescaled", [False, True])
def test_kernels_of_activations_agree_with_torch(
    triton_kernels: Any, dtype: torch.dtype, tolerance: float, activation: Any, rescaled: bool
) -> None:
    rows, joint = 5, draw(300, 21, dtype)  # more elements than one program handles
    factor = draw(300, 1).abs() if rescaled else None
    bias = draw(1, rows, dtype, 1)[0] if rescaled else None
    with kernels.only_operators():
        branch = kernels.activate(joint[:, :rows], activation, factor, bias)
        both = kernels.activate_jointly(joint.clone(), rows, activation, factor, bias)
    found = triton_kernels.activate(joint[:, :rows], activation, factor, bias)
    torch.testing.assert_close(found.float(), branch.float(), atol=tolerance, rtol=tolerance)
    found = triton_kernels.activate_jointly(joint.clone(), rows, activation, factor, bias)
    torch.testing.assert_close(found.float(), both.float(), atol=tolerance, rtol=tolerance)
