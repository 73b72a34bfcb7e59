"""A cell is run again from its record, and differences are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.reproduce import compare, differences, figures_of, find_record, open_cell, run_again
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.record_file import RECORD, write_record
from harness.records.store import Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(30, 2, 6, 2, 6, 2))


@pytest.fixture(scope="module")
def made(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """The folder and the record of a finished cell."""
    settings = make_settings(
        methods="das[search_epochs=1,warmup_epochs=0,period=1]",
        tasks="vqa",
        data_root=data,
        epochs=1,
        batch_size=16,
        seeds=3,
        accelerator="cpu",
    )
    store = Store(tmp_path_factory.mktemp("results"))
    (record,) = run_cells(build_cells(settings, open_testbeds(settings)), store, Notes())
    assert record.status == "finished", record.error
    return store.folder(record.cell.id), record


def cell_of(record: Record, data: Path) -> Cell:
    return open_cell(record, data, None, None)


def changed(record: Record, part: str, **values: Any) -> Record:
    return record.model_copy(update={part: getattr(record, part).model_copy(update=values)})


def test_reproduced_cell_has_equal_figures(made: tuple[Path, Record], data: Path, tmp_path: Path) -> None:
    folder, record = made
    shown = CliRunner().invoke(
        app, ["reproduce", str(folder / RECORD), "--data-root", str(data), "-o", str(tmp_path)]
    )
    assert shown.exit_code == 0, shown.output
    assert "not as recorded" not in shown.output
    assert "figures agree" in shown.output
    report = compare(folder, record, Store(tmp_path))
    assert all(figure.same for figure in report.figures)
    names = {figure.name for figure in report.figures}
    wanted = {"test accuracy", "MACs, all", "parameters, all", "blocks skipped", "history of the search"}
    assert wanted | {"predictions, identical", "tuned tensors, identical"} <= names
    assert {time.name for time in report.times} == {"training, s", "training, examples/s", "search, s"}

    # A record that says otherwise is found out, figure by figure.
    liar = record.model_copy(update={"metrics": {**record.metrics, "test": {"accuracy": 99.0}}})
    liar = changed(liar, "training", steps=12345)
    wrong = {figure.name for figure in compare(folder, liar, Store(tmp_path)).figures if not figure.same}
    assert {"test accuracy", "optimiser steps"} <= wrong
    assert not {"MACs, all", "predictions, identical"} & wrong


def test_other_weights_and_data_are_refused(made: tuple[Path, Record], data: Path, tmp_path: Path) -> None:
    _, record = made
    backbone = record.cell.backbone.model_copy(update={"digest": "0" * 64})
    with pytest.raises(UserError, match=r"other weights of vilt-mini \(000000000000, these are"):
        cell_of(changed(record, "cell", backbone=backbone), data)
    with pytest.raises(UserError, match="name its folder with --data-root"):
        open_cell(record, None, None, None)
    splits = {**record.data.details, "splits": "others"}
    with pytest.raises(UserError, match=r"not the data that cell \w+ was trained on \(splits differ\)"):
        cell_of(changed(record, "data", digest="0", details=splits), data)


def test_other_code_versions_and_hardware_are_named(made: tuple[Path, Record], data: Path) -> None:
    _, record = made
    cell = cell_of(record, data)
    assert list(differences(record, cell)) == []
    other = changed(record, "cell", code={**record.cell.code, "method": "0123"})
    versions = {**record.environment.versions, "torch": "1.0"}
    other = changed(other, "environment", versions=versions, hardware={"cpu": "abacus"}, commit="beef")
    other = other.model_copy(update={"protocol": {**other.protocol, "warmup": 0.5}})
    lines = list(differences(other, cell))
    assert [line.split(" (")[0] for line in lines] == [
        "code of the method",
        "warmup",
        "version of torch",
        "processor",
    ]
    assert "commit then beef" in lines[0]
    assert list(differences(changed(record, "cell", code={}), cell)) == [
        "the record does not name the code that produced it"
    ]


def test_records_are_found_by_path_and_by_id(made: tuple[Path, Record], tmp_path: Path) -> None:
    folder, record = made
    results = folder.parent.parent
    for where in (str(folder / RECORD), str(folder), record.cell.id[:6]):
        assert find_record(where, results) == (folder, record)
    failed = Record(**{**record.model_dump(), "status": "failed", "error": "out of memory"})
    write_record(tmp_path, failed)
    with pytest.raises(UserError, match=r"has failed \(out of memory\), so there is nothing to compare with"):
        find_record(str(tmp_path), results)


def test_reproducing_does_not_write_to_the_records_folder(made: tuple[Path, Record], data: Path) -> None:
    folder, record = made
    with pytest.raises(UserError, match="contains the record itself"):
        run_again(record, cell_of(record, data), folder, folder.parent.parent, Notes())


def test_compared_figures_exclude_times_and_memory(made: tuple[Path, Record]) -> None:
    _, record = made
    slower = changed(record, "training", seconds=1e6, examples_per_second=0.1)
    assert figures_of(slower) == figures_of(record)
    assert not any("memory" in name or name.endswith(", s") for name in figures_of(record))
