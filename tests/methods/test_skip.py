"""Baselines of block skipping: what they choose, on what budget, and that their model is DAS's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.llava.loading import load_llava_mini
from harness.backbones.meter.loading import load_meter_mini
from harness.backbones.vilt.loading import load_vilt_mini
from harness.errors import UserError
from methods.das import DAS, DASOptions
from methods.skip import Skip, SkipOptions
from methods.skip_decision import SkipDecision
from methods.skipping import GatedBlock

RANDOM = BackboneOptions(weights="random")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Trainer:
    """Losses are the number of even blocks skipped; a forward pass runs the backbone on random inputs."""

    steps_per_epoch = 4

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.generator = seeded()
        self.skipped: list[tuple[int, ...]] = []

    def _now(self) -> tuple[int, ...]:
        return tuple(i for i, block in enumerate(self.backbone.blocks) if getattr(block, "skip", False))

    def train(self, epochs: int, before_step: Any, after_step: Any, memory: Any = None) -> None:
        for epoch in range(epochs):
            for step in range(self.steps_per_epoch):
                before_step(epoch, step)
                self.skipped.append(self._now())
                after_step(epoch, step)
        memory.restore(memory.state())

    def held_out_batch(self, fresh: bool = True) -> Any:
        return self.backbone.example_inputs(2, 5, (64, 64), seeded())

    @torch.no_grad()
    def loss(self, batch: Any, training_mode: bool = False) -> float:
        self.backbone.eval()(batch)
        return sum(1.0 for index in self._now() if index % 2 == 0)


@pytest.mark.parametrize(
    ("load", "options", "expected"),
    [
        (load_vilt_mini, SkipOptions("last"), ("joint.10", "joint.11")),
        (load_vilt_mini, SkipOptions("last", keep_final=True), ("joint.9", "joint.10")),
        (load_vilt_mini, SkipOptions("alternate", skip=3), ("joint.2", "joint.6", "joint.10")),
        (load_meter_mini, SkipOptions("last"), ("text.4", "text.5", "image.4", "image.5")),
        (load_meter_mini, SkipOptions("alternate", skip=2), ("text.3", "image.3")),
    ],
)
def test_rules_by_position_look_at_no_data(
    load: Any, options: SkipOptions, expected: tuple[str, ...]
) -> None:
    method, backbone = Skip(options), load(RANDOM)
    assert (method.search_epochs, method.search_holdout, method.warm_starts) == (0, 0.0, False)
    trainer: Any = type("NoData", (), {"backbone": backbone})()
    assert method.search(trainer) == SkipDecision(expected, backbone.block_names, options.choice)
    (case,) = method.cost_cases(backbone)
    assert case.decision.skipped == expected


@pytest.mark.parametrize("load", [load_vilt_mini, load_meter_mini])
@pytest.mark.parametrize("choice", ["influence", "contiguous"])
def test_pretrained_backbone_is_measured_without_training(load: Any, choice: Any) -> None:
    method = Skip(SkipOptions(choice, skip=4, batches=2))
    trainer: Any = Trainer(load(RANDOM))
    before = [parameter.requires_grad for parameter in trainer.backbone.parameters()]
    decision = method.search(trainer)
    assert (method.search_epochs, trainer.skipped) == (0, [])
    assert [parameter.requires_grad for parameter in trainer.backbone.parameters()] == before
    assert len(decision.skipped) == 4
    scores = {name: value for each in decision.scores for name, value in each.items()}
    if choice == "influence":
        assert set(decision.skipped) == set(sorted(scores, key=scores.__getitem__)[:4])
        assert set(scores) == set(trainer.backbone.block_names)
    else:
        runs = 4 // len(trainer.backbone.stream_names)
        assert [len(each) for each in decision.scores] == [
            len(trainer.backbone.block_names) // len(decision.scores) - runs + 1
        ] * len(trainer.backbone.stream_names)


def test_greedy_trains_the_supernet_as_long_as_das_searches() -> None:
    method = Skip(SkipOptions("greedy", skip=3, batches=1))
    assert method.search_epochs == DAS(DASOptions()).search_epochs
    assert method.search_holdout == DAS(DASOptions()).search_holdout
    assert method.warm_starts
    trainer: Any = Trainer(load_vilt_mini(RANDOM))
    decision = method.search(trainer)
    assert len(trainer.skipped) == 3 * trainer.steps_per_epoch
    assert {len(chosen) for chosen in trainer.skipped} == {3}
    assert len(set(trainer.skipped)) > 6  # drawn anew at every step
    assert all(isinstance(block, GatedBlock) for block in trainer.backbone.blocks)
    assert decision.skipped == ("joint.1", "joint.3", "joint.5")
    assert [len(losses) for losses in decision.scores] == [12, 11, 10]


@pytest.mark.parametrize("load", [load_vilt_mini, load_meter_mini])
def test_model_is_that_of_das(load: Any) -> None:
    blocks = tuple(load(RANDOM).block_names[1:3])
    ours, das = load(RANDOM), load(RANDOM)
    method = Skip(SkipOptions())
    method.decide(SkipDecision(blocks, ours.block_names, "random"))
    method.adapt(ours, seeded())
    DAS(DASOptions(blocks=blocks)).adapt(das, seeded())
    first, second = ours.state_dict(), das.state_dict()
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert method.learning_rate_scale == DAS.learning_rate_scale


def test_wrong_options_are_named() -> None:
    with pytest.raises(UserError, match="skip must be at least 1, got 0"):
        SkipOptions(skip=0)
    with pytest.raises(UserError, match="draw numbers random sets; choice=last has only one"):
        SkipOptions("last", draw=1)
    with pytest.raises(UserError, match="keep_final belongs to choice=last"):
        SkipOptions("random", keep_final=True)
    trainer: Any = Trainer(load_meter_mini(RANDOM))
    with pytest.raises(UserError, match="needs more blocks in each stream than the 6 of meter-mini"):
        Skip(SkipOptions("last", skip=11, keep_final=True)).search(trainer)
    with pytest.raises(UserError, match="alignment compares the features that a head reads, and llava-mini"):
        Skip(SkipOptions("alignment")).cost_cases(load_llava_mini(RANDOM))
    with pytest.raises(UserError, match="skip must be from 0 to 11, as meter-mini has 12 blocks; got 12"):
        Skip(SkipOptions("influence", skip=12)).search(trainer)
