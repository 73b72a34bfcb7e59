from __future__ import annotations

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.vilt.loading import load_vilt_mini
from harness.errors import UserError
from methods.adapter import SequentialAdapter, SequentialAdapterOptions


@torch.no_grad()
def test_new_adapter_is_close_to_the_identity() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    inputs = backbone.example_inputs(2, 5, (64, 64), torch.Generator().manual_seed(1))
    before = backbone(inputs)
    SequentialAdapter().adapt(backbone, torch.Generator().manual_seed(0))
    difference = (backbone(inputs) - before).abs().max()
    assert 0 < difference < 0.02 * before.abs().max()


def test_every_sublayer_gets_one_of_the_chosen_size() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    SequentialAdapter(SequentialAdapterOptions(reduction_factor=16)).adapt(backbone, torch.Generator())
    for block in backbone.blocks:
        assert list(block.sequential) == ["attention", "mlp"]
        assert not block.parallel
        assert block.sequential["mlp"].down.out_features == 8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"bottleneck": 0}, "adapter: bottleneck must be from 1 to 65,536"),
        ({"reduction_factor": 0}, "adapter: reduction_factor must be from 0.015625 to 65,536"),
        ({"bottleneck": 8, "reduction_factor": 2}, "give one of them"),
    ],
)
def test_a_wrong_option_is_named(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SequentialAdapterOptions(**wrong)
