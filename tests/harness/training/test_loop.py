"""The training loop on a model with one parameter, against hand-worked figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.training.loop import State, train_epoch
from tasks.base import Batch


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(2.0))

    def forward(self, batch: Batch) -> Tensor:
        return self.value


class TwoBatches:
    wait_seconds = 0.0
    examples: Sequence[Any] = ()

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        pass

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[Batch]:
        inputs = Inputs(torch.zeros(1, 1, dtype=torch.long), None, torch.zeros(1, 3, 1, 1))
        return iter([Batch((inputs,), torch.tensor(1.0), (str(index),)) for index in range(2)])


def train(regularizer: Any) -> tuple[float, float]:
    """The value and the reported loss after an epoch of two steps of loss = 3 · value, rate 0.1."""
    model = Number()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    task: Any = SimpleNamespace(loss=lambda logits, targets: 3 * logits, label_texts=lambda targets: None)
    batches: Any = TwoBatches()
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[LightningEnvironment()])
    state = State(model, optimizer, schedule)
    loss = train_epoch(fabric, state, task, batches, regularizer=lambda part: regularizer(model))
    return model.value.item(), loss


def test_regularizer_is_minimised_but_not_part_of_the_reported_loss() -> None:
    # Without: 2 → 1.7 → 1.4; losses 6 and 5.1.
    assert train(lambda model: None) == pytest.approx((1.4, 5.55))
    # With 2 · value²: the gradient is 3 + 4 · value. 2 → 0.9 → 0.24; losses 6 and 2.7.
    assert train(lambda model: 2 * model.value**2) == pytest.approx((0.24, 4.35))
