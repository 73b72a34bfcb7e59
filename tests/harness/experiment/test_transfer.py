"""Transfer: a frame trained on one backbone is evaluated on another one without tuning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from harness.cli import app
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.build import deployed_model, loader
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.experiment.transfer import TRANSFERS, transfer_cell, transfers
from harness.records.store import Store
from methods.frame import Frame
from tests.support.reporters import Notes
from tests.support.tiny_tasks import make_tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, str]]:
    """Results with vp and lora on one backbone and classifier on both; ids by method and backbone."""
    folder = tmp_path_factory.mktemp("transfer")
    root, results = make_tiny("vqa", folder), folder / "results"
    ids: dict[str, str] = {}
    for backbone, methods in (("vilt-mini", "vp,lora"), ("meter-mini", "classifier")):
        cells = cells_of(root, backbone, methods)
        for record in run_cells(cells, Store(results), Notes()):
            assert record.status == "finished", record.error
            ids[f"{record.cell.method.name} {backbone}"] = record.cell.id
    return root, results, ids


def cells_of(root: Path, backbone: str, methods: str) -> list[Cell]:
    settings = make_settings(
        methods=methods,
        tasks="vqa",
        backbone=backbone,
        data_root=root,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
    )
    return build_cells(settings, open_testbeds(settings))


def test_a_frame_is_evaluated_on_the_other_backbone(finished: Any) -> None:
    root, results, ids = finished
    store = Store(results)
    command = ["transfer", ids["vp vilt-mini"][:8], "--backbone", "meter-mini", "-r", str(results)]
    ran = CliRunner().invoke(app, [*command, "--data-root", str(root)])
    assert ran.exit_code == 0, ran.output
    (found,) = transfers(results)
    target = store.record(ids["classifier meter-mini"])
    assert found.head == target.cell.id
    assert found.own == store.record(ids["vp vilt-mini"]).primary
    assert found.without == target.primary
    assert "vilt-mini → meter-mini" in (results / "tables" / "transfer.md").read_text()
    assert f"{found.change:+.2f}" in ran.output
    # By hand: the head's cell, and the frame in front of its image encoder.
    (cell,) = cells_of(root, "meter-mini", "classifier")
    model = deployed_model(cell, load_file(store.folder(target.cell.id) / "weights.safetensors"), None)
    values = load_file(store.folder(ids["vp vilt-mini"]) / "weights.safetensors")["backbone.frame.values"]
    assert values.any()
    model.backbone.frame = Frame(values, 64, 9, model.backbone.processor)
    task, batches = cell.testbed.task, loader(cell.testbed, "test")
    with torch.inference_mode():
        predictions = [
            prediction
            for batch in batches
            for prediction in task.predict(model.eval()(batch), batches.examples_of(batch))
        ]
    assert found.carried == pytest.approx(task.score(predictions)[task.primary_metric])


def test_a_repeated_transfer_replaces_the_earlier_one(finished: Any) -> None:
    root, results, ids = finished
    for _ in range(2):
        transfer_cell(ids["vp vilt-mini"], "meter-mini", results, data_root=root)
    assert len(json.loads((results / TRANSFERS).read_text())) == 1


def test_what_does_not_transfer_is_refused(finished: Any) -> None:
    root, results, ids = finished
    with pytest.raises(UserError, match="what lora trains cannot be used on another backbone"):
        transfer_cell(ids["lora vilt-mini"], "meter-mini", results, data_root=root)
    with pytest.raises(UserError, match="no cell of classifier on vilt-mini has a head for vqa"):
        transfer_cell(ids["vp vilt-mini"], "vilt-mini", results, data_root=root)
    with pytest.raises(UserError, match="is on vilt-mini, not on meter-mini"):
        transfer_cell(ids["vp vilt-mini"], "meter-mini", results, ids["lora vilt-mini"], root)


def test_a_damaged_file_of_transfers_is_refused(tmp_path: Path) -> None:
    assert transfers(tmp_path) == []
    (tmp_path / TRANSFERS).write_text("[{}]")
    with pytest.raises(UserError, match="delete it and run `harness transfer` again"):
        transfers(tmp_path)
