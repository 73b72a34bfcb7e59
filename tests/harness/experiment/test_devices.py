"""Passes of every method and task create all tensors on the model's device, and never wait for it.

The meta device stands for a GPU. It refuses tensors of the CPU, and has no values to ask for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from harness.backbones.base import Backbone
from harness.config.sources import make_settings
from harness.experiment.build import adapted_model, loader
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.measure.flops import count_forward
from harness.training.microbatch import MicroBatches
from harness.training.model import TaskModel
from methods.base import Method
from methods.das import DAS
from methods.skipping import skip_only
from tasks.mini import nlvr2, retrieval, snli_ve, vqa

META = torch.device("meta")
METHODS = (
    "full,classifier,bitfit,lora[dropout=0.1],adapter,parallel[learn_scale=true],shallow_prompt,deep_prompt,"
    "das[blocks={blocks}],das[search_epochs=2,skip=2],tome,pumer,pumer[variant=published],seq_bn,dora,"
    "roe,vp,tvp"
)
FEW_METHODS = "full,deep_prompt,das[search_epochs=2,skip=2],tome,pumer"
WRITING_METHODS = "lora,tvp"
BLOCKS = {"vilt-mini": "1+2", "meter-mini": "text.1+image.0"}
DEPTHS = {"vilt-mini": range(4), "meter-mini": (0, 1, 6, 7)}
"""The blocks that are kept: enough for the first, the last and one between them."""
DATA: dict[str, Callable[[Path], Path]] = {
    "vqa": partial(vqa.ensure_vqa, sizes=vqa.Sizes(20, 2, 4, 2, 4, 2)),
    "nlvr2": partial(nlvr2.ensure_nlvr2, sizes=nlvr2.Sizes(6, 2, 2)),
    "snli_ve": partial(snli_ve.ensure_snli_ve, sizes=snli_ve.Sizes(12, 4, 4)),
    "retrieval": partial(retrieval.ensure_retrieval, sizes=retrieval.Sizes(20, 4, 4)),
}


class OneDevice(TorchDispatchMode):
    """Refuses operators on tensors of several devices, except for single numbers from the CPU, as on a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [part for part in tree_flatten((args, kwargs or {}))[0] if isinstance(part, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.dim()}
        if len(devices) > 1:
            raise AssertionError(f"{func} over {' and '.join(sorted(devices))}")
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: ensure(tmp_path_factory.mktemp(name)) for name, ensure in DATA.items()}


def cells(backbone: str, task: str, root: Path) -> list[Cell]:
    methods = WRITING_METHODS
    if backbone in BLOCKS:
        methods = METHODS.format(blocks=BLOCKS[backbone]) if task == "vqa" else FEW_METHODS
    settings = make_settings(
        backbone=backbone,
        methods=methods,
        tasks=task,
        data_root=root,
        batch_size=4,
        accelerator="cpu",
    )
    (testbed,) = open_testbeds(settings)
    if backbone in DEPTHS:
        testbed = replace(testbed, backbone=shallow(testbed.backbone, DEPTHS[backbone]))
    return build_cells(settings, [testbed])


def shallow(backbone: Any, depths: Iterable[int]) -> Backbone:
    """The backbone with some of its blocks."""
    blocks = nn.ModuleList(backbone.blocks[depth] for depth in depths)
    if hasattr(backbone.model, "layers"):
        backbone.model.layers = blocks
    else:
        backbone.model.encoder.layer = blocks
    backbone._block_names = tuple(block.name for block in blocks)
    return backbone  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces autocast, which the meta device does not support."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)


def test_mixing_devices_is_refused() -> None:
    with OneDevice(), pytest.raises(AssertionError, match="cpu and meta"):
        torch.where(torch.ones(2, device=META) > 0, torch.ones(2), torch.ones(2))


@pytest.mark.parametrize("task", DATA)
@pytest.mark.parametrize("backbone", BLOCKS)
def test_every_method_stays_on_the_models_device(roots: dict[str, Path], backbone: str, task: str) -> None:
    for cell in cells(backbone, task, roots[task]):
        method = cell.method()
        testbed = cell.testbed
        if isinstance(method, DAS) and method.searches:
            _search_pass(cell, method)
            continue
        model = adapted_model(cell, method).to(META)
        _train_pass(cell, model, method)
        method.finalize(model.backbone)
        model.requires_grad_(False).eval()
        with OneDevice():
            model(next(iter(loader(testbed, "test"))).to(META))
        size = testbed.measured_input
        count_forward(
            testbed.task,
            model.backbone,
            model.head,
            method,
            image_size=size.image_size,
            text_length=size.text_length,
        )


@pytest.mark.parametrize("task", ["vqa", "snli_ve", "nlvr2"])
def test_training_of_written_answers_waits_for_no_value(roots: dict[str, Path], task: str) -> None:
    for cell in cells("llava-mini", task, roots[task]):
        method = cell.method()
        _train_pass(cell, adapted_model(cell, method).to(META), method)


def _step(cell: Cell, model: TaskModel, method: Method[Any]) -> None:
    """Forward and backward over a training batch, with what the method adds to the loss."""
    batch = next(iter(loader(cell.testbed, "train", seed=0)))
    added = partial(method.weighted_regularizer, model.backbone)
    on_meta: Any = SimpleNamespace(device=META, backward=Tensor.backward)
    with OneDevice():
        MicroBatches().backward(on_meta, model.train(), cell.testbed.task, batch, added)


def _train_pass(cell: Cell, model: TaskModel, method: Method[Any]) -> None:
    _step(cell, model, method)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad is not None and parameter.grad.device == META for parameter in trained)


def _search_pass(cell: Cell, method: DAS) -> None:
    """Training steps of the super-network with some blocks skipped."""

    class FakeTrainer:
        backbone = cell.testbed.fresh_backbone()
        generator = torch.Generator().manual_seed(0)
        steps_per_epoch = 1

        def train(self, *_: Any) -> None:
            head = cell.testbed.task.build_head(self.backbone, self.generator)
            for parameter in self.backbone.common_parameters():
                parameter.requires_grad_(True)
            model = TaskModel(cell.testbed.task, self.backbone, head).to(META)
            skip_only(self.backbone, (0, len(self.backbone.blocks) - 1))
            _step(cell, model, method)

    method.search(FakeTrainer())  # type: ignore[arg-type]
