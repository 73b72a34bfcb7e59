"""Alignment of features and answers: closed forms, what passes compute, and which sets the gates choose."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backbones.base import Backbone, BackboneOptions
from harness.backbones.meter.loading import load_meter_mini
from harness.backbones.vilt.loading import load_vilt_mini
from methods.alignment import alignment, alignment_gates, alignments, best_spread, main_effects

RANDOM = BackboneOptions(weights="random")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Trainer:
    """Features are the backbone's; the answers are random."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone.eval()
        self.generator = seeded()

    def held_out_batch(self) -> Any:
        return self.backbone.example_inputs(6, 5, (64, 64), seeded())

    @torch.no_grad()
    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        found = self.backbone(batch)
        return found, torch.randn(len(found), 3, generator=seeded(1))


def batches_of(backbone: Backbone, number: int = 2) -> list[Any]:
    return [backbone.example_inputs(6, 5, (64, 64), seeded(seed)) for seed in range(number)]


def test_alignment_is_1_for_answers_that_are_a_rotation_of_the_features_and_0_for_unrelated_ones() -> None:
    features = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    rotation = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    assert alignment(features, features @ rotation) == pytest.approx(1)
    stretched = features * torch.tensor([5.0, 0.1]) + 3
    assert alignment(stretched, features) == pytest.approx(1)  # standardised, centred
    assert alignment(features, features[:, :1] * features[:, 1:]) == pytest.approx(0)
    # K has two equal eigenvalues, L one of them
    assert alignment(features, features[:, :1]) == pytest.approx(1 / 2**0.5)
    assert alignment(features, torch.ones(4, 2)) == 0  # answers that are all alike


def test_alignment_equals_its_definition_with_kernels() -> None:
    features, targets = torch.randn(9, 4, generator=seeded()), torch.randn(9, 3, generator=seeded(1))
    centred = torch.eye(9) - 1 / 9
    standard = (features - features.mean(0)) / features.std(0, unbiased=False)
    first, second = centred @ standard @ standard.T @ centred, centred @ targets @ targets.T @ centred
    expected = (first * second).sum() / first.norm() / second.norm()
    assert alignment(features, targets) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("load", [load_vilt_mini, load_meter_mini])
def test_passes_that_reuse_blocks_give_what_whole_passes_give(load: Any) -> None:
    backbone = load(RANDOM)
    batches, sets = batches_of(backbone), [(0, 1), (0, 3), (0, 11), (2, 5), (2, 7), (10, 11)]
    forwards = [block.forward for block in backbone.blocks]
    found = alignments(Trainer(backbone), batches, sets)
    assert [block.forward for block in backbone.blocks] == forwards
    assert backbone.encoder is None
    whole = [alignments(Trainer(backbone), batches, [chosen])[0] for chosen in sets]
    assert found == whole
    assert len(set(found)) == len(sets)
    plain = [Trainer(backbone).features(batch) for batch in batches]
    features, targets = (torch.cat(parts) for parts in zip(*plain, strict=True))
    assert alignments(Trainer(backbone), batches, [()]) == [alignment(features, targets)]


def test_only_what_comes_after_the_first_difference_is_computed_anew() -> None:
    backbone = load_vilt_mini(RANDOM)
    ran: list[int] = []
    for index, block in enumerate(backbone.blocks):
        block.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
    forward = type(backbone.blocks[0]).forward
    counted: list[str] = []

    def count(self: Any, inputs: Any) -> Any:
        counted.append(self.name)
        return forward(self, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone.blocks[0]), "forward", count)
        alignments(Trainer(backbone), batches_of(backbone, 1), [(3, 9), (3, 10), (4, 10)])
    first = [0, 1, 2, 4, 5, 6, 7, 8, 10, 11]
    assert counted == [f"joint.{i}" for i in [*first, 9, 11, 3, 5, 6, 7, 8, 9, 11]]
    assert len(ran) == 3 * 12  # every pass goes through every place


def test_effects_recover_additive_values() -> None:
    worth = torch.tensor([1.0, -2.0, 0.5, 0.5, 3.0, -3.0])
    sets = list(combinations(range(6), 2))
    values = [float(7 + worth[list(chosen)].sum()) for chosen in sets]
    assert main_effects(values, sets, 6) == pytest.approx((worth - worth.mean()).tolist())
    assert main_effects([1.0], [(0, 1)], 3) == pytest.approx([0, 0, 0])  # nothing to compare


def test_best_set_avoids_neighbours_that_are_not_worth_a_standard_deviation() -> None:
    joint = ["joint"] * 4
    assert best_spread([0.0, 3.0, 2.9, 0.0], joint, 1) == (1,)
    # their deviation is 1.0; the others are further below
    assert best_spread([1.0, 3.0, 2.9, 0.9], joint, 2) == (1, 2)
    assert best_spread([2.0, 3.0, 2.9, 0.0], joint, 2) == (0, 2)
    assert best_spread([0.0, 3.0, 2.9, 2.5], joint, 2) == (1, 3)
    assert best_spread([2.0, 3.0, 2.9, 0.0], ["text", "text", "image", "image"], 2) == (1, 2)
    assert best_spread([0.0] * 4, joint, 0) == ()


@pytest.mark.parametrize("number", [1, 3, 5, 7])
def test_best_set_is_the_best_of_all(number: int) -> None:
    gates = torch.randn(8, generator=seeded(number), dtype=torch.float64).tolist()
    streams = ["text"] * 4 + ["image"] * 4
    penalty = float(torch.tensor(gates).double().std(unbiased=False))

    def worth(chosen: tuple[int, ...]) -> float:
        pairs = sum(b == a + 1 and b != 4 for a, b in pairwise(chosen))
        return sum(gates[index] for index in chosen) - penalty * pairs

    assert best_spread(gates, streams, number) == max(combinations(range(8), number), key=worth)


def test_many_sets_are_drawn_at_random_and_few_are_all_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[tuple[int, ...]]] = []

    def record(trainer: Any, batches: Any, sets: list[tuple[int, ...]]) -> list[float]:
        assert len(batches) == 54  # of 6 examples each, 320 at least
        tried.append(sets)
        return [float(sum(chosen)) for chosen in sets]

    monkeypatch.setattr("methods.alignment.alignments", record)
    trainer: Any = Trainer(load_vilt_mini(RANDOM))
    gates = alignment_gates(trainer, 2)
    assert tried[0] == list(combinations(range(12), 2))
    assert gates == pytest.approx([index - 5.5 for index in range(12)])
    assert alignment_gates(trainer, 6) == pytest.approx(gates)
    assert len(set(tried[1])) == len(tried[1]) == 512
    assert tried[1] == sorted(tried[1])
