"""DAS: changes of the module tree, and the search."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.folding import fold_block
from harness.backbones.vilt.loading import load_vilt_mini
from harness.backbones.vilt.model import ViltBackbone
from harness.errors import UserError
from methods.bottleneck import BottleneckAdapter
from methods.das import DAS, DASOptions
from methods.das_decision import DASDecision
from methods.skipping import SkippedBlock
from tests.support.blocks import run


@pytest.fixture
def backbone() -> ViltBackbone:
    return load_vilt_mini(BackboneOptions(weights="random"))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_skipped_blocks_are_removed_from_the_module_tree(backbone: ViltBackbone) -> None:
    method = DAS(DASOptions(blocks=("3", "joint.7")))
    assert not method.searches
    method.adapt(backbone, seeded())
    assert [i for i, block in enumerate(backbone.blocks) if isinstance(block, SkippedBlock)] == [3, 7]
    names = [name for name, _ in backbone.named_parameters()]
    assert not any("layer.3.attention" in name or "layer.7.intermediate" in name for name in names)
    features = backbone(backbone.example_inputs(2, 6, (64, 64), seeded()))
    assert features.shape == (2, 128)


@pytest.mark.parametrize("skipped", [1, 2, 4])
def test_parameters_follow_the_closed_form(backbone: ViltBackbone, skipped: int) -> None:
    method = DAS(DASOptions(blocks=tuple(str(i) for i in range(skipped))))
    method.adapt(backbone, seeded())
    width, parallel, shortcut = 128, 16, 32

    def adapter(bottleneck: int) -> int:
        return 2 * width * bottleneck + bottleneck + width + 2 * width

    expected = adapter(shortcut) * skipped + 2 * adapter(parallel) * (12 - skipped)
    assert sum(p.numel() for p in method.method_parameters(backbone)) == expected


@pytest.mark.parametrize(("variant", "eps"), [("sound", 1e-6), ("published", 1e-5)])
def test_norms_have_the_epsilon_of_the_block_or_of_the_published_code(
    backbone: ViltBackbone, variant: Any, eps: float
) -> None:
    DAS(DASOptions(blocks=("0",), variant=variant)).adapt(backbone, seeded())
    norms = [module.norm for module in backbone.modules() if isinstance(module, BottleneckAdapter)]
    assert [norm.eps for norm in norms if norm is not None] == [eps] * 23


def test_a_skipped_block_is_deployed_with_its_norm_in_the_lower_projection(backbone: ViltBackbone) -> None:
    method = DAS(DASOptions(blocks=("0",)))
    method.adapt(backbone, seeded())
    for parameter in backbone.blocks[0].parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(2, 3, 128)
    before = run(backbone.blocks[0], hidden)
    backbone.blocks[0] = deployed = fold_block(backbone.blocks[0])
    assert not [module for module in deployed.modules() if isinstance(module, torch.nn.LayerNorm)]
    torch.testing.assert_close(run(deployed, hidden), before, atol=1e-4, rtol=1e-5)
    assert method.method_modules(backbone)[0] is deployed


class FakeTrainer:
    """A super-network whose loss rises with every skipped block except the second and the tenth."""

    steps_per_epoch = 30

    def __init__(self, backbone: ViltBackbone) -> None:
        self.backbone = backbone
        self.generator = seeded()
        self.rewarded_in_training_mode: list[bool] = []

    def train(self, epochs: int, before_step: Any, after_step: Any, memory: Any = None) -> None:
        for epoch in range(epochs):
            for step in range(self.steps_per_epoch):
                before_step(epoch, step)
                assert sum(bool(block.skip) for block in self.backbone.blocks) == 2
                after_step(epoch, step)

    def held_out_batch(self, fresh: bool = True) -> str:
        return "held out"

    def training_batch(self) -> str:
        return "training"

    def loss(self, batch: str, training_mode: bool = False) -> float:
        self.rewarded_in_training_mode.append(training_mode)
        harmless = {1, 9}
        return 1.0 + sum(bool(b.skip) for i, b in enumerate(self.backbone.blocks) if i not in harmless)


def test_search_finds_the_harmless_blocks_and_can_be_repeated(backbone: ViltBackbone) -> None:
    decision = DAS(DASOptions(search_epochs=5)).search(FakeTrainer(backbone))
    assert decision.skipped == ("joint.1", "joint.9")
    assert all(update.epoch >= 1 for update in decision.updates)  # the first epoch only warms up
    again = DAS(DASOptions(search_epochs=5)).search(
        FakeTrainer(load_vilt_mini(BackboneOptions(weights="random")))
    )
    assert again == decision


def test_a_negative_warm_up_is_refused() -> None:
    with pytest.raises(UserError, match="das: warmup_epochs must be at least 0, got -1"):
        DAS(DASOptions(warmup_epochs=-1))


@pytest.mark.parametrize(("steps", "period"), [(30, 1), (180, 3), (1200, 10)])
def test_small_training_sets_get_sixty_updates_an_epoch(
    backbone: ViltBackbone, steps: int, period: int
) -> None:
    trainer = FakeTrainer(backbone)
    trainer.steps_per_epoch = steps
    decision = DAS(DASOptions(search_epochs=2)).search(trainer)
    assert decision.settings["period"] == period
    assert len(decision.updates) == steps // period


def test_published_variant_rewards_as_the_authors_do(backbone: ViltBackbone) -> None:
    trainer = FakeTrainer(backbone)
    decision = DAS(DASOptions(variant="published")).search(trainer)
    assert decision.settings["reward"] == "exponential"
    assert decision.settings["period"] == 10
    assert len(decision.updates) == 6  # 30 forwards an epoch, every 10, two epochs after the warm-up
    assert all(trainer.rewarded_in_training_mode)
    assert DAS(DASOptions(variant="published")).search_holdout == 0.0


@pytest.mark.parametrize(
    ("steps", "period", "expected"),
    [
        (30, 10, [(1, 0), (1, 10), (1, 20), (2, 0), (2, 10), (2, 20)]),
        (7, 5, [(1, 0), (1, 5), (2, 3)]),  # counts on over the end of the epoch
        (3, 5, [(1, 1)]),
    ],
)
def test_published_counter_of_steps_runs_from_the_warm_up_on_and_over_epochs(
    backbone: ViltBackbone, steps: int, period: int, expected: list[tuple[int, int]]
) -> None:
    trainer = FakeTrainer(backbone)
    trainer.steps_per_epoch = steps
    decision = DAS(DASOptions(variant="published", period=period)).search(trainer)
    assert [(update.epoch, update.step) for update in decision.updates] == expected


@pytest.mark.parametrize(("variant", "rewarded"), [("published", "before"), ("sound", "after")])
def test_published_rewards_come_before_the_step_and_sound_ones_after(
    backbone: ViltBackbone, variant: Any, rewarded: str
) -> None:
    losses = {"before": 0, "after": 0}

    class Ordered(FakeTrainer):
        def train(self, epochs: int, before_step: Any, after_step: Any, memory: Any = None) -> None:
            def count(when: str, callback: Any) -> Any:
                def counted(epoch: int, step: int) -> None:
                    computed = len(self.rewarded_in_training_mode)
                    callback(epoch, step)
                    losses[when] += len(self.rewarded_in_training_mode) - computed

                return counted

            super().train(epochs, count("before", before_step), count("after", after_step), memory)

    DAS(DASOptions(variant=variant, period=10)).search(Ordered(backbone))
    assert losses == {"before": 0, "after": 0, rewarded: 6 * 3}


def test_wrong_options_are_named(backbone: ViltBackbone) -> None:
    with pytest.raises(UserError, match="sets must be at least 2"):
        DASOptions(sets=1)
    with pytest.raises(UserError, match="search_epochs must be more"):
        DASOptions(search_epochs=1)
    with pytest.raises(UserError, match=r"no block 'joint\.12'"):
        DAS().resolve_blocks(("joint.12",), backbone)
    with pytest.raises(UserError, match="must be different"):
        DAS().resolve_blocks(("1", "joint.1"), backbone)


def test_search_epochs_are_reported_for_progress() -> None:
    assert DAS(DASOptions(search_epochs=5)).search_epochs == 5
    assert DAS(DASOptions(blocks=("3",))).search_epochs == 0


def test_cost_cases_cover_every_split_of_skipped_blocks_over_streams(backbone: ViltBackbone) -> None:
    (case,) = DAS(DASOptions(skip=3)).cost_cases(backbone)
    assert (case.name, case.decision) == ("3 joint skipped", DASDecision(("joint.0", "joint.1", "joint.2")))
    (given,) = DAS(DASOptions(blocks=("3",))).cost_cases(backbone)
    assert (given.name, given.decision) == ("", None)
