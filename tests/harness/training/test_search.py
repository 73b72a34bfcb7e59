"""The trainer of a search: the batches it serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.config.sources import make_settings
from harness.process import REQUESTS, StopRequestedError
from harness.training.fabric import make_fabric
from harness.training.search import FabricSearchTrainer
from tasks.base import Batch
from tests.support.small_vilt import mini


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


class Sums:
    """Answers are sums of the pooled features; the loss is a cross-entropy with labels."""

    def forward(self, backbone: Any, head: nn.Module, batch: Any) -> Tensor:
        output: Tensor = head(backbone(batch.inputs[0]))
        return output

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(logits, targets)


def test_features_are_what_the_head_reads_beside_one_hot_labels_less_their_chance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backbone = mini().eval()
    task: Any = Sums()
    unused: Any = None
    fabric = make_fabric(make_settings(methods="das", tasks="vqa", accelerator="cpu"))
    head = nn.Sequential(nn.Linear(backbone.feature_dim, 3))
    trainer = FabricSearchTrainer(
        fabric, task, backbone, head, unused, unused, None, unused, 0.1, 0.1, torch.Generator()
    )
    inputs = backbone.example_inputs(4, 5, (64, 64), torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 2])
    features, targets = trainer.features(Batch((inputs,), labels, tuple("abcd")))
    with torch.no_grad():
        assert torch.equal(features, backbone(inputs))
    expected = (nn.functional.one_hot(labels, 3) - 1 / 3) / 4  # the loss is a mean over four examples
    assert torch.allclose(targets, expected)
    assert not head._forward_pre_hooks
    monkeypatch.setattr(REQUESTS, "stop", True)
    with pytest.raises(StopRequestedError):
        trainer.features(Batch((inputs,), labels, tuple("abcd")))
