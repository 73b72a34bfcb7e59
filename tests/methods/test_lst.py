"""Ladder side tuning: sizes, cost, and that the backbone keeps nothing for a backward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.folding import fold
from harness.backbones.meter.model import MeterBackbone
from harness.backbones.vilt.folded import FoldedViltBlock
from harness.backbones.vilt.loading import full_size_config
from harness.backbones.vilt.model import ViltBackbone
from harness.backbones.vilt.processor import ViltProcessor
from harness.errors import UserError
from harness.measure.live import model_tensors, peak_live_tensors
from harness.measure.profile import Case, Setting, count_case
from harness.registry import build_task
from harness.specs import parse_spec
from methods.base import Method
from methods.lora import LoRA
from methods.lst import LST, Ladder, LSTOptions
from tests.support.small_vilt import mini

D, L = 768, 12


def expected(reduction: int, streams: int = 1) -> int:
    """Side blocks, gates, and the maps between the widths."""
    s = D // reduction
    return L * (12 * s**2 + 13 * s) + L + (L + 2 * streams) * D * s


def size(method: Method[LSTOptions], backbone: Backbone) -> int:
    method.adapt(backbone, torch.Generator())
    return sum(parameter.numel() for parameter in method.method_parameters(backbone))


@pytest.mark.parametrize(("reduction", "parameters"), [(4, 7_402_764), (8, 2_374_284)])
def test_size_on_full_size_vilt(reduction: int, parameters: int) -> None:
    with torch.device("meta"):
        backbone = ViltBackbone(full_size_config(), ViltProcessor(None, 384, 32, 40))
    assert size(LST(LSTOptions(reduction)), backbone) == parameters == expected(reduction)


def test_each_stream_of_meter_has_an_entry_and_an_exit(full_size_meter: Callable[..., MeterBackbone]) -> None:
    assert size(LST(), full_size_meter()) == expected(4, streams=2) == 7_402_764 + 2 * D * 192


def test_macs_follow_the_closed_form() -> None:
    """At 384x640 and 40 tokens, T = 281: 9.6 % of the blocks at r = 4."""
    task = build_task(parse_spec("vqa"))
    task.without_data()
    row = count_case(Setting("vilt", task, (384, 640), 40), Case("lst", parse_spec("lst")))
    tokens, s = 281, 192
    side = L * (12 * s**2 * tokens + 2 * s * tokens**2) + (L + 2) * D * s * tokens
    assert row.compute.macs["method"] == side
    assert side / (L * (12 * D**2 * tokens + 2 * D * tokens**2)) == pytest.approx(0.096, abs=5e-4)


def adapted(method: Method[LSTOptions]) -> Backbone:
    backbone = mini()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for parameter in backbone.common_parameters():
        parameter.requires_grad_(True)
    return backbone.train()


def pooled(backbone: Backbone) -> Tensor:
    return backbone(backbone.example_inputs(4, 20, (96, 96), torch.Generator().manual_seed(1)))


def kept_of_the_blocks(method: Method[LSTOptions]) -> tuple[int, int]:
    """How many tensors computed inside the blocks, and how many of the blocks' results, the backward pass needs."""
    backbone = adapted(method)
    inner: list[Tensor] = []
    results: list[Tensor] = []
    for block in backbone.blocks:
        for module in block.modules():
            if isinstance(module, nn.Linear | nn.LayerNorm):
                module.register_forward_hook(lambda module, args, out: inner.append(out))
        block.register_forward_hook(lambda module, args, out: results.append(out.tokens.hidden))
    saved: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assert pooled(backbone).requires_grad
    places = {tensor.untyped_storage().data_ptr() for tensor in saved}
    of_inner, of_results = (
        sum(tensor.untyped_storage().data_ptr() in places for tensor in tensors)
        for tensors in (inner, results)
    )
    return of_inner, of_results


def test_the_backbone_keeps_nothing_for_the_backward_pass() -> None:
    # The maps to the side network's width need their inputs, the blocks' results, and nothing else of the blocks.
    assert kept_of_the_blocks(LST()) == (0, 12)
    assert kept_of_the_blocks(LoRA())[0] > 12  # type: ignore[arg-type]


def peak(method: Method[LSTOptions]) -> float:
    backbone = adapted(method)

    def step() -> None:
        pooled(backbone).square().sum().backward()

    measured = peak_live_tensors(step, model_tensors(backbone), "a step")
    return measured.peak_mib - measured.baseline_mib


def test_training_step_needs_less_memory_than_with_lora() -> None:
    assert peak(LST()) < 0.6 * peak(LoRA())  # type: ignore[arg-type]


def test_deployed_form_is_the_folded_backbone_with_the_ladder() -> None:
    method, plain = LST(), mini()
    backbone = mini()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    method.finalize(backbone)
    fold(plain)
    assert {type(block) for block in backbone.blocks} == {FoldedViltBlock}
    (ladder,) = method.method_modules(backbone)
    assert isinstance(ladder, Ladder)
    assert {name for name, _ in backbone.named_parameters() if not name.startswith("ladder.")} == {
        name for name, _ in plain.named_parameters()
    }


def test_width_of_the_side_network_must_be_a_multiple_of_the_heads() -> None:
    with pytest.raises(
        UserError, match="lst: reduction=64: the width of vilt-mini, 128, divided by it must be"
    ):
        LST(LSTOptions(64)).adapt(mini(), torch.Generator())
    with pytest.raises(UserError, match="lst: reduction must be from 1 to 65,536"):
        LSTOptions(0)
