from __future__ import annotations

import torch
import torch.nn.functional as F

from methods.bottleneck import BottleneckAdapter, bottleneck_size


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_forward_is_the_published_formula() -> None:
    adapter = BottleneckAdapter(6, 3, generator(), layer_norm=True, residual=True)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 4, 6)
    normed = F.layer_norm(x, (6,), adapter.norm.weight, adapter.norm.bias)
    hidden = torch.relu(normed @ adapter.down.weight.T + adapter.down.bias)
    expected = x + hidden @ adapter.up.weight.T + adapter.up.bias
    torch.testing.assert_close(adapter(x), expected)


def test_forward_without_norm_and_residual_is_the_branch() -> None:
    adapter = BottleneckAdapter(6, 3, generator(), activation="gelu")
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(adapter(x), adapter.up(F.gelu(adapter.down(x))))


def test_weights_start_small_and_biases_at_zero() -> None:
    adapter = BottleneckAdapter(768, 96, generator())
    assert abs(adapter.down.weight.std().item() - 0.02) < 1e-3
    assert abs(adapter.up.weight.std().item() - 0.02) < 1e-3
    assert not adapter.down.bias.any()
    assert not adapter.up.bias.any()


def test_a_branch_with_upper_weights_of_zero_adds_nothing() -> None:
    x = torch.randn(2, 6)
    assert not BottleneckAdapter(6, 3, generator(), zero_up=True)(x).any()
    assert torch.equal(BottleneckAdapter(6, 3, generator(), zero_up=True, residual=True)(x), x)


def test_the_scale_multiplies_the_branch_but_not_the_residual() -> None:
    x = torch.randn(2, 6)
    plain = BottleneckAdapter(6, 3, generator())(x)
    scaled = BottleneckAdapter(6, 3, generator(), scale=4.0, residual=True)(x)
    torch.testing.assert_close(scaled, x + 4 * plain)


def test_folding_a_learned_scale_keeps_the_outputs_and_removes_the_parameter() -> None:
    adapter = BottleneckAdapter(6, 3, generator(), scale=2.0, learn_scale=True)
    x = torch.randn(2, 6)
    torch.nn.init.normal_(adapter.up.bias)
    before = adapter(x)
    assert sum(p.numel() for p in adapter.parameters()) == 6 * 3 * 2 + 6 + 3 + 1
    adapter.fold_scale()
    torch.testing.assert_close(adapter(x), before)
    assert sum(p.numel() for p in adapter.parameters()) == 6 * 3 * 2 + 6 + 3


def test_sizes_at_width_768_are_the_papers() -> None:
    def parameters(**options: bool) -> int:
        adapter = BottleneckAdapter(768, 96, generator(), **options)
        return sum(p.numel() for p in adapter.parameters())

    assert parameters() == 148_320
    assert parameters(layer_norm=True) == 149_856


def test_the_default_size_is_an_eighth_of_the_width() -> None:
    assert bottleneck_size(768, None) == 96
    assert bottleneck_size(128, None) == 16
    assert bottleneck_size(4, None) == 1
    assert bottleneck_size(768, 7) == 7
    assert bottleneck_size(768, None, 16) == 48
