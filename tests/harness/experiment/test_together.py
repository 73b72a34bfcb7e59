"""Several processes that train one cell together get what one process gets."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from harness.backbones.base import Backbone
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.experiment import workers
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.experiment.workers import run_side_by_side
from harness.records.record import Record
from harness.records.store import WEIGHTS, Store
from methods.bottleneck import BottleneckAdapter
from tests.support.reporters import Notes
from tests.support.tiny_tasks import SPECS, TINY, make_tiny

AT_KINK = 3e-7
"""A hidden unit's input of at most this size may have the other sign if sums are rounded otherwise."""


def settings_of(root: Path, task: str, methods: str, devices: int, **more: Any) -> RunSettings:
    return make_settings(
        methods=methods,
        tasks=SPECS[task],
        data_root=make_tiny(task, root),
        epochs=2,
        batch_size=7,
        eps=1e-3,  # AdamW would otherwise divide the rounding of gradients that are 0 by their own size
        accelerator="cpu",
        devices=devices,
        **more,
    )


def run(settings: RunSettings, folder: Path) -> tuple[list[Cell], list[Record]]:
    cells = build_cells(settings, open_testbeds(settings))
    if settings.device.devices == 1:
        return cells, run_cells(cells, Store(folder), Notes())
    return cells, run_side_by_side(settings, cells, Store(folder), Notes(), 1)


@pytest.fixture
def nearest_to_kink() -> Iterator[dict[str, Tensor]]:
    """By the name of an adapter's first map: the smallest size of each hidden unit's input in training.

    Of all models that this process trains while the test lasts. In a search's, a block lies within a gated one, whose
    name is left out.
    """
    names: dict[nn.Module, str] = {}
    nearest: dict[str, Tensor] = {}

    def name_adapters(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, Backbone):
            for name, part in module.named_modules(prefix="backbone"):
                if isinstance(part, BottleneckAdapter) and part.activation == "relu":
                    names[part.down] = f"{name}.down".replace(".block.", ".")

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module in names and output.requires_grad:
            least = output.detach().abs().reshape(-1, output.shape[-1]).amin(0)
            nearest[names[module]] = torch.minimum(nearest.get(names[module], least), least)

    hooks = [register_module_forward_pre_hook(name_adapters), register_module_forward_hook(note)]
    yield nearest
    for hook in hooks:
        hook.remove()


def assert_equal(
    cells: list[Cell], found: Path, expected: Path, nearest_to_kink: Mapping[str, Tensor] | None = None
) -> None:
    """The same weights within 1e-5 and the same predictions.

    A unit whose input comes within rounding of 0, where ReLU has its kink, may get another gradient: of a token that
    counts in one run and not in the other. All weights of the unit, a row of the map and its bias, may then differ by
    1e-4; another input of the unit may cross the kink for that reason.
    """
    for cell in cells:
        records = [Store(folder).record(cell.id) for folder in (found, expected)]
        assert [record.status for record in records] == ["finished"] * 2, records[0].error
        one, other = (load_file(Store(folder).folder(cell.id) / WEIGHTS) for folder in (found, expected))
        assert one.keys() == other.keys()
        for name in one:
            difference = (one[name] - other[name]).abs()
            largest = torch.full_like(difference, 1e-5)
            nearest = (nearest_to_kink or {}).get(name.rpartition(".")[0])
            if nearest is not None:
                largest[nearest <= AT_KINK] = 1e-4
            assert (difference <= largest).all(), (name, difference.max())
        answers = [
            [
                {key: each[key] for key in each if key != "score"}
                for each in Store(folder).predictions(cell.id)
            ]
            for folder in (found, expected)
        ]
        assert answers[0] == answers[1]
        assert records[0].metrics == records[1].metrics
        searches = [record.search for record in records]
        assert [each and each.decision["skipped"] for each in searches] == [
            searches[1] and searches[1].decision["skipped"]
        ] * 2


@pytest.mark.timeout(300)
def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    """18 examples in steps of 7, 7 and 4: shares of 4 and 3, then of 2."""
    for devices in (1, 2):
        settings = settings_of(tmp_path, "snli_ve", "lora", devices)
        cells, records = run(settings, tmp_path / str(devices))
        assert records[0].training is not None
        assert records[0].training.devices == devices
    assert_equal(cells, tmp_path / "2", tmp_path / "1")


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("task", TINY)
@pytest.mark.parametrize("backbone", ["vilt-mini", "meter-mini"])
def test_one_two_and_four_processes_train_the_same(
    tmp_path: Path, nearest_to_kink: dict[str, Tensor], task: str, backbone: str
) -> None:
    methods = "lora,das[search_epochs=2,period=1]"
    for devices in (1, 2, 4):
        # The last of 5 steps may have fewer examples than there are processes.
        settings = settings_of(tmp_path, task, methods, devices, backbone=backbone)
        cells, _ = run(settings, tmp_path / str(devices))
    for devices in (2, 4):
        assert_equal(cells, tmp_path / str(devices), tmp_path / "1", nearest_to_kink)


@pytest.mark.timeout(300)
def test_a_killed_rank_ends_the_cell_with_its_reason_and_it_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    start = workers._start

    def remember(*arguments: Any) -> Any:
        started.append(start(*arguments))
        return started[-1]

    monkeypatch.setattr(workers, "_start", remember)
    settings = settings_of(tmp_path, "vqa", "lora", 2, checkpoint_minutes=0)
    folder = tmp_path / "killed"

    def kill_when_saved() -> None:
        while not list(folder.glob("cells/*/checkpoint/state.pt")):
            time.sleep(0.01)
        os.kill(started[0].processes[1].pid, signal.SIGKILL)

    threading.Thread(target=kill_when_saved, daemon=True).start()
    cells, (record,) = run(settings, folder)
    assert (
        record.error
        == "the cell's process of rank 1 was ended by SIGKILL; the system may have run out of memory"
    )
    assert list(folder.glob("cells/*/checkpoint/state.pt"))
    cells, (record,) = run(settings, folder)
    assert record.status == "finished"
    run(settings_of(tmp_path, "vqa", "lora", 1), tmp_path / "1")
    assert_equal(cells, folder, tmp_path / "1")
