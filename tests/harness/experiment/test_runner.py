"""Runs with an unexpected state of the results folder, which is reported in one line."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from harness import files
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment import plan, runner
from harness.experiment.build import adapted_model
from harness.experiment.latency import SMALL_BATCH, measure_side_by_side
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import TRACEBACK, run_cells
from harness.records.record_file import RECORD
from harness.records.store import WEIGHTS, Store
from harness.training.fabric import make_fabric
from methods.classifier import Classifier
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes


@pytest.fixture(scope="module")
def settings_of_one(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(30, 2, 3, 1, 3, 1))
    return make_settings(
        methods="classifier",
        tasks="vqa",
        data_root=root,
        epochs=2,
        batch_size=16,
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def cell(settings_of_one: RunSettings) -> Cell:
    return build_cells(settings_of_one, open_testbeds(settings_of_one))[0]


def test_cell_locked_by_another_run_is_left_out(cell: Cell, tmp_path: Path) -> None:
    notes = Notes()
    with Store(tmp_path).begin(cell.id):
        assert run_cells([cell], Store(tmp_path), notes) == []
    ((_, note),) = notes.ended
    assert note.startswith("left out: ")
    assert note.endswith("is running this cell.")


def test_latency_of_a_cell_without_saved_weights_is_measured(cell: Cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_cells([cell], store, Notes())
    assert store.record(cell.id).latency == ()
    (store.folder(cell.id) / WEIGHTS).unlink()
    (record,) = measure_side_by_side([cell], store)
    assert [latency.batch_size for latency in record.latency] == [1, SMALL_BATCH[0]]  # type: ignore[union-attr]
    assert store.record(cell.id) == record


@pytest.mark.parametrize("per_token", [False, True])
def test_training_is_shortened_for_methods_that_allow_it(
    cell: Cell, per_token: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classifier, "per_token", per_token)
    assert adapted_model(cell, cell.method()).backbone.pooled_token_only is per_token


@pytest.mark.parametrize("method", ["classifier", "das[search_epochs=2,period=1]"])
def test_a_cell_runs_in_mixed_precision(method: str, settings_of_one: RunSettings, tmp_path: Path) -> None:
    asked = make_settings(**{**settings_of_one.flat(), "methods": method, "precision": "bf16-mixed"})
    (mixed,) = build_cells(asked, open_testbeds(asked))
    (record,) = run_cells([mixed], Store(tmp_path), Notes())
    assert record.status == "finished", record.error
    with make_fabric(mixed.testbed.settings).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.bfloat16


def test_changed_code_is_another_cell(
    cell: Cell, settings_of_one: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "code_of", lambda *things: {**cell.code, "method": "changed"})
    (changed,) = build_cells(settings_of_one, [cell.testbed])
    assert changed.id != cell.id
    assert (changed.configuration, changed.code["method"]) == (cell.configuration, "changed")
    monkeypatch.undo()
    (same,) = build_cells(settings_of_one, [cell.testbed])
    assert (same.id, same.code) == (cell.id, cell.code)


def test_a_record_of_an_older_schema_is_named_with_its_folder(cell: Cell, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.folder(cell.id).mkdir(parents=True)
    (store.folder(cell.id) / RECORD).write_text(json.dumps({"schema_version": 0}))
    with pytest.raises(UserError, match=rf"older harness.*move away \S+{cell.id}, then run the cell again"):
        run_cells([cell], store, Notes())


def test_full_disk_at_a_checkpoint_does_not_fail_the_cell(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = files._write

    def full(path: Path, content: bytes, flags: int) -> None:
        if path.name.startswith(".state.pt"):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content, flags)

    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(files, "_write", full)
        with pytest.raises(UserError, match=r"state\.pt: no space left on the disk"):
            run_cells([cell], store, Notes())
    assert store.records() == []
    (record,) = run_cells([cell], store, Notes())
    assert record.status == "finished"


def test_out_of_memory_is_recorded_as_the_cells_error(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def greedy(*arguments: Any) -> Any:
        raise MemoryError("cannot allocate 900 GiB")

    monkeypatch.setattr(runner, "run_cell", greedy)
    store, notes = Store(tmp_path), Notes()
    (record,) = run_cells([cell], store, notes)
    assert (record.status, record.error) == ("failed", "MemoryError: cannot allocate 900 GiB")
    assert "greedy" in (store.folder(cell.id) / TRACEBACK).read_text()
