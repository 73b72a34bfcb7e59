"""Micro-batches give the gradient of the whole batch: every task, uneven rests, regularisers, the search."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.inputs import Inputs
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.build import adapted_model, loader
from harness.experiment.cell import run_cell
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.search_stage import Searched, search
from harness.training.checkpoint import tuned_state
from harness.training.fabric import make_fabric
from harness.training.loop import State, predict, train_epoch
from harness.training.microbatch import MicroBatches
from harness.training.optim import build_optimizer, build_schedule
from harness.training.ranks import Ranks
from methods.base import TrainingPart
from tasks.base import Batch
from tests.support.tiny_tasks import SPECS, TINY, make_tiny

STEPS = 3


class Silent:
    def stage(self, name: str, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def epoch(self, figures: Any) -> None:
        pass

    def note(self, text: str) -> None:
        raise AssertionError(text)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def cell_of(root: Path, task: str, method: str = "lora", backbone: str = "vilt-mini", **more: Any) -> Cell:
    settings = make_settings(
        methods=method,
        tasks=SPECS[task],
        backbone=backbone,
        data_root=make_tiny(task, root),
        batch_size=7,
        eps=1e-3,  # AdamW would otherwise divide the rounding of gradients that are 0 by their own size
        accelerator="cpu",
        **more,
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


def trained(cell: Cell, micro: MicroBatches, regularized: bool = False) -> dict[str, Tensor]:
    """The tuned parameters after a few steps, the last of which has fewer examples."""
    testbed = cell.testbed
    model = adapted_model(cell, cell.method())
    examples = list(testbed.data.splits["train"])[: 7 * (STEPS - 1) + 4]
    batches = loader(testbed, "train", 1, examples)
    assert len(batches) == STEPS
    fabric = make_fabric(testbed.settings)
    optimizer = build_optimizer(model, testbed.training, 1e-3, 1e-3)
    schedule = build_schedule(optimizer, STEPS, 0.0)
    wrapped, optimizer = fabric.setup(model, optimizer)
    state = State(wrapped, optimizer, schedule)

    def regularizer(part: TrainingPart) -> Tensor | None:
        if not regularized:
            return None
        return 100 * torch.stack([p.square().sum() for p in model.parameters() if p.requires_grad]).sum()

    train_epoch(fabric, state, testbed.task, batches, regularizer=regularizer, micro=micro)
    assert state.step == STEPS
    return tuned_state(model)


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=2e-5), name


@pytest.mark.parametrize("task", TINY)
@pytest.mark.parametrize("backbone", ["vilt-mini", "meter-mini"])
def test_parameters_after_several_steps_are_those_of_whole_batches(
    root: Path, task: str, backbone: str
) -> None:
    cell = cell_of(root, task, backbone=backbone)
    assert_close(trained(cell, MicroBatches(3)), trained(cell, MicroBatches()))


def test_a_regularizer_counts_once_a_step(root: Path) -> None:
    cell = cell_of(root, "vqa")
    whole = trained(cell, MicroBatches(), regularized=True)
    assert_close(trained(cell, MicroBatches(2), regularized=True), whole)
    without = trained(cell, MicroBatches())
    assert not all(torch.allclose(whole[name], without[name], atol=1e-4) for name in whole)


def test_a_search_finds_the_same_with_micro_batches(root: Path, tmp_path: Path) -> None:
    cell = cell_of(root, "vqa", "das[search_epochs=2,period=1]")
    found: list[Searched] = []
    for size in (None, 3):
        scratch = tmp_path / str(size)
        scratch.mkdir()
        fabric, micro = make_fabric(cell.settings), MicroBatches(size)
        found.append(search(cell, cell.method(), fabric, Ranks(), scratch, Silent(), micro))
    assert found[0].summary == found[1].summary
    whole, split = (each.history for each in found)
    assert len(whole) > 1
    assert [update["sets"] for update in whole] == [update["sets"] for update in split]
    losses = [torch.tensor([update["losses"] for update in history]) for history in (whole, split)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-3, atol=1e-4)


def test_the_size_is_recorded_and_decides_no_result(root: Path, tmp_path: Path) -> None:
    whole, split = (cell_of(root, "vqa", "classifier", epochs=1, micro_batch=size) for size in (None, 3))
    assert whole.id == split.id
    recorded = [
        run_cell(cell, tmp_path / cell.id, Silent()).training["micro_batch"] for cell in (whole, split)
    ]
    assert recorded == [None, 3]


@pytest.mark.parametrize("asked", [8, 9])
def test_a_micro_batch_larger_than_the_batch_is_refused(root: Path, asked: int) -> None:
    with pytest.raises(UserError, match=rf"micro_batch: {asked} is more than the batch size of 7\."):
        cell_of(root, "vqa", micro_batch=asked)


class Hungry(nn.Module):
    """Runs out of memory with more than `fits` examples at once; its output depends on a random number."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits
        self.value = nn.Parameter(torch.tensor(2.0))
        self.sizes: list[int] = []

    def forward(self, batch: Batch, answer: bool = False) -> Tensor:
        self.sizes.append(len(batch))
        noise = torch.rand(())
        if len(batch) > self.fits:
            raise torch.OutOfMemoryError("no memory")
        return self.value * torch.ones(len(batch)) + 0 * noise


def batch_of(count: int) -> Batch:
    inputs = Inputs(torch.zeros(count, 1, dtype=torch.long), None, torch.zeros(count, 3, 1, 1))
    return Batch((inputs,), torch.arange(float(count)), tuple(map(str, range(count))))


TASK: Any = SimpleNamespace(
    loss=lambda logits, targets: (logits * targets).mean(),
    evaluates_splits=False,
    predict=lambda logits, examples: [{"id": each, "score": float(logits[0])} for each in examples],
)


def test_auto_micro_batch_is_halved_until_it_fits_and_kept() -> None:
    model, micro = Hungry(fits=3), MicroBatches.from_setting("auto")
    fabric = make_fabric(make_settings(methods="lora", tasks="vqa", accelerator="cpu"))
    torch.manual_seed(5)
    loss = micro.backward(fabric, model, TASK, batch_of(10))
    # 10 and 5 do not fit; 3 does: 3, 3, 3 and a rest of 1.
    assert model.sizes == [10, 5, 3, 3, 3, 1]
    assert micro.size == 3
    # The mean over 0 … 9 is 4.5: the gradient, and with the value 2 a loss of 9.
    assert model.value.grad is not None
    assert (model.value.grad.item(), loss.item()) == (pytest.approx(4.5), pytest.approx(9))
    # Failed attempts draw no random numbers that count: four parts drew one each.
    drawn = torch.rand(())
    torch.manual_seed(5)
    assert torch.equal(torch.rand(5)[4], drawn)
    model.sizes.clear()
    model.zero_grad()
    micro.backward(fabric, model, TASK, batch_of(4))
    assert model.sizes == [3, 1]


def test_evaluation_halves_the_micro_batch_too() -> None:
    model, micro = Hungry(fits=2), MicroBatches.from_setting("auto")
    batches: Any = type("Two", (list,), {"examples_of": lambda self, batch: batch.ids})([batch_of(4)])
    fabric = make_fabric(make_settings(methods="lora", tasks="vqa", accelerator="cpu"))
    found = predict(fabric, model, TASK, batches, micro=micro)
    assert [each["id"] for each in found] == ["0", "1", "2", "3"]
    assert model.sizes == [4, 2, 2]


@pytest.mark.parametrize("setting", [4, "auto"])
def test_too_little_memory_for_one_example_is_an_error(setting: Any) -> None:
    model, micro = Hungry(fits=0), MicroBatches.from_setting(setting)
    fabric = make_fabric(make_settings(methods="lora", tasks="vqa", accelerator="cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        micro.backward(fabric, model, TASK, batch_of(4))
    assert model.sizes == ([4] if setting == 4 else [4, 2, 1])
