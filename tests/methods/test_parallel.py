from __future__ import annotations

import pytest
import torch

from harness.backbones.base import BackboneOptions
from harness.backbones.folded import inserted_in
from harness.backbones.vilt.loading import load_vilt_mini
from harness.errors import UserError
from methods.parallel import ParallelAdapter, ParallelAdapterOptions
from tests.support.blocks import run


def test_it_reads_the_residual_stream_and_adds_to_the_sublayers_result() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    hidden = torch.randn(2, 7, 128)
    block = backbone.blocks[0]
    plain = run(block, hidden)
    ParallelAdapter().adapt(backbone, torch.Generator().manual_seed(0))
    torch.testing.assert_close(run(block, hidden), plain)
    torch.nn.init.normal_(block.parallel["attention"].up.bias)
    torch.nn.init.normal_(block.parallel["attention"].up.weight)
    normed = block.layernorm_before(hidden)
    attended = block._attend(normed, normed, None)
    between = hidden + attended + block.parallel["attention"](hidden)
    expected = between + block.output.dense(block.intermediate(block.layernorm_after(between)))
    torch.testing.assert_close(run(block, hidden), expected)


def test_a_learned_scale_is_one_more_parameter_until_it_is_folded() -> None:
    backbone = load_vilt_mini(BackboneOptions(weights="random"))
    method = ParallelAdapter(ParallelAdapterOptions(bottleneck=4, learn_scale=True))
    method.adapt(backbone, torch.Generator().manual_seed(0))
    assert sum(p.numel() for p in method.method_parameters(backbone)) == 24 * (
        2 * 128 * 4 + 128 + 4 + 2 * 128 + 1
    )
    method.finalize(backbone)
    assert method.method_modules(backbone) == []
    assert sum(view.numel() for view in inserted_in(backbone)) == 24 * (2 * 128 * 4 + 4)


@pytest.mark.parametrize("wrong", [{"bottleneck": 0}, {"scale": 0.0}], ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_option_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"parallel: {next(iter(wrong))}"):
        ParallelAdapterOptions(**wrong)
