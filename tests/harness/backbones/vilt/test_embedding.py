"""Patches and their positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from harness.backbones.vilt.model import ViltBackbone, _tiles, tiles_of
from tests.harness.backbones.vilt.test_parity import build, tiny_config


@pytest.fixture
def frozen() -> ViltBackbone:
    return build(tiny_config()).requires_grad_(False)


def test_patches_are_rows_of_their_pixels() -> None:
    pixels = torch.arange(2 * 3 * 4 * 6.0).view(2, 3, 4, 6)
    tiles = tiles_of(pixels, 2)
    assert tiles.shape == (2, 2 * 3, 3 * 4)
    torch.testing.assert_close(tiles[1, 4], pixels[1, :, 2:4, 2:4].flatten())
    narrow = F.unfold(pixels, 2, stride=2).transpose(1, 2)
    torch.testing.assert_close(tiles, narrow, rtol=0, atol=0)


@pytest.mark.parametrize(("dtype", "side"), [(torch.float32, 2), (torch.float32, 8), (torch.bfloat16, 4)])
def test_patches_moved_eight_bytes_at_a_time_are_the_same(dtype: torch.dtype, side: int) -> None:
    pixels = torch.randn(3, 3, 2 * side, 3 * side).to(dtype)
    moved = _tiles(pixels.view(torch.int64), side, side * pixels.element_size() // 8).view(dtype)
    assert torch.equal(moved, tiles_of(pixels, side))


def test_positions_of_frozen_embeddings_are_interpolated_once(
    frozen: ViltBackbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[Any] = []
    interpolate = F.interpolate

    def counted(*arguments: Any, **options: Any) -> torch.Tensor:
        sizes.append(options["size"])
        return interpolate(*arguments, **options)

    monkeypatch.setattr(F, "interpolate", counted)
    with torch.inference_mode():
        first = frozen._positions(4, 5)
    assert frozen._positions(4, 5) is first
    frozen._positions(3, 5)
    assert sizes == [(4, 5), (3, 5)]


def test_new_values_of_the_embeddings_are_seen(frozen: ViltBackbone) -> None:
    table = frozen.model.embeddings.position_embeddings
    before = frozen._positions(4, 5)
    with torch.no_grad():
        table.add_(1.0)
    torch.testing.assert_close(frozen._positions(4, 5), before + 1)
    frozen.double()
    assert frozen._positions(4, 5).dtype == torch.float64
    table = frozen.model.embeddings.position_embeddings
    table.data = torch.zeros_like(table)
    assert not frozen._positions(4, 5).any()


def test_trained_embeddings_get_gradients_at_every_size(frozen: ViltBackbone) -> None:
    frozen._positions(4, 5)
    table = frozen.model.embeddings.position_embeddings.requires_grad_()
    frozen._positions(4, 5).sum().backward()
    assert table.grad is not None
    assert float(table.grad.sum()) == pytest.approx(4 * 5 * 32)


def test_positions_kept_in_evaluation_serve_training(frozen: ViltBackbone) -> None:
    with torch.inference_mode():
        frozen._positions(4, 5)
    patches = torch.zeros(1, 20, 32, requires_grad=True)
    ((patches + frozen._positions(4, 5)) ** 2).sum().backward()
    assert patches.grad is not None
