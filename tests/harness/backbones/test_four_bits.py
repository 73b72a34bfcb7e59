"""Frozen matrices in four bits: rounding, gradients, counts, and a whole cell."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import harness.backbones.four_bits as four_bits
from harness.backbones.four_bits import FourBitLinear, held_in_four_bits, hold_in_four_bits, restore
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.evaluate import evaluate_cell
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.measure.parameters import count_parameters
from harness.records.store import Store
from methods.full import Full
from methods.lora import LoRA
from tests.support.folding import tiny_vilt
from tests.support.reporters import Notes
from tests.support.tiny_tasks import make_tiny

pytest.importorskip("bitsandbytes")
LARGEST_GAP = 0.31
"""Between two neighbours of the 16 numbers of NF4, from -1 to 1."""


def test_each_weight_is_rounded_to_the_nearest_of_16_numbers_times_the_largest_of_64() -> None:
    base = nn.Linear(64, 8)
    rounded = FourBitLinear(base).weight
    largest = base.weight.abs().amax(1, keepdim=True)
    # The largest of each 64 is itself kept in eight bits.
    assert ((rounded - base.weight).abs() <= (LARGEST_GAP / 2 + 0.02) * largest).all()
    assert all(len(row.unique()) <= 16 for row in rounded)


@pytest.mark.parametrize("bias", [True, False])
def test_it_computes_and_differentiates_as_a_map_with_the_rounded_weight(bias: bool) -> None:
    base = nn.Linear(32, 48, bias=bias)
    held = FourBitLinear(base)
    hidden = torch.randn(3, 5, 32, requires_grad=True)
    other = hidden.detach().clone().requires_grad_()
    result, expected = held(hidden), F.linear(other, held.weight, base.bias)
    torch.testing.assert_close(result, expected)
    gradient = torch.randn_like(result)
    result.backward(gradient)
    expected.backward(gradient)
    torch.testing.assert_close(hidden.grad, other.grad)


def test_only_frozen_maps_are_rounded_and_the_counts_stay() -> None:
    backbone, method = tiny_vilt(), LoRA()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    modules = method.method_modules(backbone)
    head = nn.Linear(2, 2)
    before = count_parameters(backbone, head, modules)
    maps = [module for module in backbone.blocks.modules() if type(module) is nn.Linear]
    hold_in_four_bits(backbone)
    assert held_in_four_bits(backbone) == sum(module.weight.numel() for module in maps)
    assert count_parameters(backbone, head, modules) == before
    assert sum(buffer.nbytes for buffer in backbone.blocks.buffers()) == held_in_four_bits(backbone) // 2


def test_the_deployed_form_has_the_rounded_weights_and_equal_outputs() -> None:
    backbone, method = tiny_vilt().eval(), LoRA()
    method.adapt(backbone, torch.Generator().manual_seed(0))
    for parameter in method.method_parameters(backbone):
        nn.init.normal_(parameter, std=0.1)
    inputs = backbone.example_inputs(2, 6, (64, 64), torch.Generator().manual_seed(1))
    whole = backbone(inputs)
    hold_in_four_bits(backbone)
    trained = backbone(inputs)
    assert (trained - whole).abs().max() > 1e-4
    deployed = copy.deepcopy(backbone)
    restore(deployed)
    method.finalize(deployed)
    assert held_in_four_bits(deployed) == 0
    torch.testing.assert_close(deployed(inputs), trained, atol=1e-5, rtol=1e-5)


def test_full_tuning_and_a_missing_library_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = tiny_vilt()
    Full().adapt(backbone, torch.Generator())
    with pytest.raises(UserError, match="every map of the blocks trains"):
        hold_in_four_bits(backbone)
    monkeypatch.setattr(four_bits, "find_spec", lambda name: None)
    settings = make_settings(methods="lora", tasks="vqa", backbone_precision="4bit", accelerator="cpu")
    with pytest.raises(UserError, match=r"4bit needs bitsandbytes; pip install 'petl-harness\[4bit\]'"):
        open_testbeds(settings)


def test_a_cell_in_four_bits_is_evaluated_as_it_was_trained(tmp_path: Path) -> None:
    root = make_tiny("vqa", tmp_path / "data")
    settings = make_settings(
        methods="lora,das[search_epochs=1,warmup_epochs=0,period=1]",
        tasks="vqa",
        data_root=root,
        epochs=1,
        accelerator="cpu",
        backbone_precision="4bit",
    )
    cells = build_cells(settings, open_testbeds(settings))
    for record in run_cells(cells, Store(tmp_path / "results"), Notes()):
        assert record.status == "finished", record.error
        assert record.protocol["backbone_precision"] == "4bit"
        own = evaluate_cell(record.cell.id, tmp_path / "results", "test", root, None, None, None)
        assert own["accuracy"] == pytest.approx(record.metrics["test"]["accuracy"])
