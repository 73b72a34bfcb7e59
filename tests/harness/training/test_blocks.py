"""Activation checkpointing and compilation of the blocks change memory and speed, not what is trained."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.backbones import kernels
from harness.config.sources import make_settings
from harness.experiment.build import adapted_model, loader
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.measure.live import model_tensors, peak_live_tensors
from harness.training import blocks
from harness.training.blocks import optimized_blocks
from harness.training.model import TaskModel
from tasks.base import Batch
from tests.support.tiny_tasks import make_tiny


def cell_of(root: Path, backbone: str, **more: Any) -> Cell:
    settings = make_settings(
        methods="lora[dropout=0.5]",
        tasks="vqa",
        backbone=backbone,
        data_root=make_tiny("vqa", root),
        batch_size=8,
        accelerator="cpu",
        **more,
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


def backward(cell: Cell, model: TaskModel, batch: Batch) -> None:
    torch.manual_seed(3)
    assert batch.targets is not None
    with optimized_blocks(model.backbone, cell.testbed.training):
        cell.testbed.task.loss(model(batch), batch.targets).backward()


def gradients(cell: Cell) -> dict[str, Tensor]:
    model = adapted_model(cell, cell.method()).train()
    before = list(model.state_dict()), [type(block).forward for block in model.backbone.blocks]
    backward(cell, model, next(iter(loader(cell.testbed, "train"))))
    assert (list(model.state_dict()), [block.forward.__func__ for block in model.backbone.blocks]) == before
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("backbone", ["vilt-mini", "meter-mini"])
def test_recomputed_blocks_give_the_same_gradient_with_the_same_dropout(
    tmp_path: Path, backbone: str
) -> None:
    expected = gradients(cell_of(tmp_path, backbone))
    found = gradients(cell_of(tmp_path, backbone, activation_checkpointing=True))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_recomputed_blocks_take_less_memory(tmp_path: Path) -> None:
    def peak(cell: Cell) -> float:
        model = adapted_model(cell, cell.method()).train()
        batch = next(iter(loader(cell.testbed, "train")))
        found = peak_live_tensors(lambda: backward(cell, model, batch), model_tensors(model), "").peak_mib
        assert found is not None
        return found

    plain, recomputed = (
        peak(cell_of(tmp_path, "vilt-mini", activation_checkpointing=each)) for each in (False, True)
    )
    assert recomputed < 0.75 * plain


# A warning that dynamo hides while it is not an error.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_blocks_give_the_same_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: bool
) -> None:
    compiled: list[Any] = []

    def compile_eagerly(forward: Any) -> Any:
        compiled.append(forward)
        return partial(torch.compile, backend="eager")(forward)

    expected = gradients(cell_of(tmp_path, "vilt-mini"))
    monkeypatch.setattr(blocks, "compile_function", compile_eagerly)
    cell = cell_of(tmp_path, "vilt-mini", compile=True, activation_checkpointing=recompute)
    found = gradients(cell)
    assert len(compiled) == len(cell.testbed.backbone.blocks)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)


@pytest.mark.parametrize("backbone", ["vilt-mini", "meter-mini"])
def test_wide_frozen_maps_give_the_same_gradient_by_onednn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    onednn, runs = kernels._onednn, []
    monkeypatch.setattr(kernels, "_onednn", lambda *inputs: runs.append(0) or onednn(*inputs))
    monkeypatch.setattr(kernels, "_mkl_is_slow", lambda: True)
    expected = gradients(cell_of(tmp_path, backbone))
    assert not runs  # no matrix of a mini is wide
    monkeypatch.setattr(kernels, "WIDE", 64)
    found = gradients(cell_of(tmp_path, backbone))
    assert len(runs) >= 2 * 12 * 5  # forward and backward
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-5) for name in expected)
