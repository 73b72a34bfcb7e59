"""AdamW with groups whose steps have a fixed length."""

from __future__ import annotations

import torch
from torch import nn

from harness.training.normalized import MixedAdamW


def test_a_normalized_group_moves_by_its_rate_and_others_as_with_adamw() -> None:
    first, second, other = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    plain = nn.Parameter(torch.zeros(2))
    mixed = MixedAdamW(
        [{"params": [first, second], "lr": 5.0, "normalized": True}, {"params": [other]}], lr=0.1
    )
    alone = torch.optim.AdamW([plain], lr=0.1)
    for parameter, grad in (
        (first, [3.0, 0.0]),
        (second, [0.0, 4.0]),
        (other, [1.0, 2.0]),
        (plain, [1.0, 2.0]),
    ):
        parameter.grad = torch.tensor(grad)
    mixed.step()
    alone.step()
    assert first.tolist() == [-3.0, 0.0]
    assert second.tolist() == [0.0, -4.0]
    assert torch.equal(other, plain)
    assert first.grad is None


def test_a_step_without_a_direction_moves_nothing() -> None:
    values = nn.Parameter(torch.ones(2))
    optimizer = MixedAdamW([{"params": [values], "lr": 1.0, "normalized": True}])
    for grad in (None, torch.zeros(2), torch.tensor([float("nan"), 1.0])):
        values.grad = grad
        optimizer.step()
        assert values.tolist() == [1.0, 1.0]


def test_the_gradients_norm_stays_on_the_device() -> None:
    """On the meta device nothing can be asked for its value, which on a GPU would wait for it."""
    values = nn.Parameter(torch.ones(2, device="meta"))
    values.grad = torch.ones_like(values)
    MixedAdamW([{"params": [values], "lr": 1.0, "normalized": True}]).step()
    assert values.grad is None
