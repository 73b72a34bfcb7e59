"""The trainer of a search: the batches it serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from harness.training.search import FabricSearchTrainer


class Order:
    """Batches whose order depends on the epoch."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.epoch = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[Any]:
        return iter([(self.name, self.epoch, 0), (self.name, self.epoch, 1)])


def test_rewards_on_training_data_use_the_first_unaugmented_batch_whatever_is_trained_on_meanwhile() -> None:
    augmented, plain = Order("augmented"), Order("plain")
    unused: Any = None
    trainer = FabricSearchTrainer(
        fabric=unused,
        task=unused,
        backbone=unused,
        head=unused,
        training_part=augmented,  # type: ignore[arg-type]
        rewards_part=plain,  # type: ignore[arg-type]
        held_out_part=None,
        training=unused,
        learning_rate=0.1,
        head_learning_rate=0.1,
        generator=torch.Generator(),
    )
    augmented.set_epoch(2)
    plain.set_epoch(2)
    assert trainer.training_batch() == ("plain", 0, 0)  # type: ignore[comparison-overlap]
    plain.set_epoch(3)
    assert trainer.training_batch() == ("plain", 0, 0)  # type: ignore[comparison-overlap]
    assert (augmented.epoch, plain.epoch) == (2, 3)
