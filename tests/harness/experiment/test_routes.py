"""Routes of the test examples: in the record, in a file beside it, and in the counted costs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.build import deployed_model
from harness.experiment.latency import measure_side_by_side
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.reproduce import figures_of
from harness.experiment.routes import find_routes, summarize_routes
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.routes import ROUTES, RouteFile, read_routes, write_routes
from harness.records.store import Store
from methods.classifier import Classifier
from tests.support.reporters import Notes
from tests.support.tiny_tasks import SPECS, make_tiny


def cell_of(root: Path, task: str, backbone: str = "vilt-mini", method: str = "roe") -> Cell:
    settings = make_settings(
        methods=method,
        tasks=SPECS[task],
        backbone=backbone,
        data_root=make_tiny(task, root),
        epochs=1,
        batch_size=8,
        accelerator="cpu",
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    return cell


def run(cell: Cell, store: Store) -> Record:
    (record,) = run_cells([cell], store, Notes())
    assert record.status == "finished", record.error
    return record


def test_routes_and_costs_of_real_examples_are_recorded_and_shown(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    cell = cell_of(tmp_path, "vqa", "meter-mini")
    record = run(cell, store)
    routes, counts = read_routes(store.folder(record.cell.id)), record.compute_per_example
    assert routes is not None
    assert counts is not None
    assert record.routes == summarize_routes(routes)
    assert set(routes.examples) == {example.id for example in cell.testbed.data.splits["test"]}
    assert counts.n == len(routes.examples)
    assert figures_of(record)["different routes"] == str(record.routes.different)
    (measured,) = measure_side_by_side([cell], store)
    assert [each.batch_size for each in measured.latency] == [1, 16]  # type: ignore[union-attr]
    assert all(each.examples for each in measured.latency)  # type: ignore[union-attr]
    shown = " ".join(CliRunner().invoke(app, ["show", record.cell.id, "-r", str(store.root)]).output.split())
    assert "blocks run on average over" in shown
    assert ROUTES in shown


@pytest.mark.parametrize(("task", "passes"), [("nlvr2", 2), ("retrieval", 1)])
def test_an_example_with_several_images_has_a_route_for_each(tmp_path: Path, task: str, passes: int) -> None:
    cell = cell_of(tmp_path, task)
    model = deployed_model(cell, None, None)
    routes = find_routes(cell, cell.method(), model)
    assert routes is not None
    assert set(routes.examples) == {example.id for example in cell.testbed.data.splits["test"]}
    assert routes.blocks == model.backbone.block_names
    for each in routes.examples.values():
        assert len(each) == passes
        assert all(len(route) == len(routes.blocks) and set(route) <= {"0", "1"} for route in each)
    assert find_routes(cell, Classifier(), model) is None


def test_a_summary_counts_routes_of_all_passes() -> None:
    routes = RouteFile(blocks=("a", "b"), examples={"1": ("11", "10"), "2": ("10", "00")})
    summary = summarize_routes(routes)
    assert (summary.examples, summary.different) == (2, 3)
    assert summary.blocks_run == 1.0
    assert summary.shares == {"a": 0.75, "b": 0.25}


def test_damaged_routes_are_refused(tmp_path: Path) -> None:
    assert read_routes(tmp_path) is None
    routes = RouteFile(blocks=("a",), examples={"1": ("1",)})
    write_routes(tmp_path, routes)
    assert read_routes(tmp_path) == routes
    (tmp_path / ROUTES).write_bytes(b"[]")
    with pytest.raises(UserError, match="cannot be read as routes"):
        read_routes(tmp_path)
