"""Results of other code are adopted if a rerun sample of them is equal, and otherwise not changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from harness.cli import app
from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.digests import digest_json
from harness.errors import UserError
from harness.experiment import adopt as adopting
from harness.experiment import plan
from harness.experiment.adopt import Stale, adopt, clear_leftovers, draw, find_stale, stale_among
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.record_file import RECORD, read_record, write_record
from harness.records.store import CHECKPOINT, CURVE, PREDICTIONS, WEIGHTS, Store
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes
from tests.support.stored_results import make_record

OLD = {"run": "old run", "method": "old method", "task": "old task", "backbone": "old backbone"}

FILES = {RECORD, WEIGHTS, CURVE, f"{PREDICTIONS}.gz"}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """More threads slow down models as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(30, 2, 6, 2, 6, 2))


@pytest.fixture(scope="module")
def settings_of_four(data: Path) -> RunSettings:
    return make_settings(
        methods="classifier,bitfit",
        tasks="vqa[limit_train=16,limit_test=8]",
        data_root=data,
        epochs=1,
        batch_size=16,
        seeds=[0, 1],
        accelerator="cpu",
    )


@pytest.fixture(scope="module")
def today(settings_of_four: RunSettings) -> list[Cell]:
    """The cells as the current code plans them."""
    return build_cells(settings_of_four, open_testbeds(settings_of_four))


@pytest.fixture(scope="module")
def made(settings_of_four: RunSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder with cells that other code finished."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "code_of", lambda *things: OLD)
        cells = build_cells(settings_of_four, open_testbeds(settings_of_four))
        records = run_cells(cells, Store(folder), Notes())
    assert [record.status for record in records] == ["finished"] * 4
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Store:
    shutil.copytree(made, tmp_path / "results")
    return Store(tmp_path / "results")


@pytest.fixture
def open_today(today: list[Cell]) -> Callable[[Record], Cell]:
    """Returns the cells that the fixture `today` loaded."""
    cells = {(cell.label, cell.seed): cell for cell in today}
    return lambda record: cells[record.cell.method.label, record.cell.seed]


def invoke(store: Store, data: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["adopt", str(store.root), "--data-root", str(data), *more])


def content(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def change_record(store: Store, change: Callable[[dict[str, Any]], object], which: int = 0) -> str:
    """Change one cell's record; returns the cell's id."""
    cell = store.records()[which].cell.id
    path = store.folder(cell) / RECORD
    written = json.loads(path.read_text())
    change(written)
    path.write_text(json.dumps(written))
    return cell


def test_cell_of_other_code_is_stale_and_run_again(store: Store, today: list[Cell]) -> None:
    assert not any(store.finished(cell.id) for cell in today)
    assert stale_among(today, store.records()) == {cell.id for cell in today}
    change_record(store, lambda record: record["cell"].update(configuration="other", seed=7))
    assert len(stale_among(today, store.records())) == 3


def test_all_cells_are_adopted_if_the_sample_is_equal(store: Store, data: Path, today: list[Cell]) -> None:
    before = {(r.cell.method.label, r.cell.seed): r for r in store.records()}
    (store.folder(today[0].id) / CHECKPOINT).mkdir(parents=True)  # begun by today's code, and interrupted
    shown = invoke(store, data, "--sample", "1", "--seed", "5")
    assert shown.exit_code == 0, shown.output
    assert "4 stale cells, 1 of them to run again (--seed 5)" in shown.output
    assert "all figures and predictions agree" in shown.output
    assert "4 cells adopted" in shown.output
    assert {path.name for path in store.cells.iterdir()} == {cell.id for cell in today}
    for cell in today:
        record, old = store.record(cell.id), before[cell.label, cell.seed]
        assert {path.name for path in store.folder(cell.id).iterdir()} == FILES
        assert (record.cell.id, record.cell.configuration) == (cell.id, cell.configuration)
        assert record.cell.code == cell.code
        assert (record.metrics, record.timestamps, record.environment) == (
            *(old.metrics, old.timestamps, old.environment),
        )
        (adoption,) = record.adoptions
        assert (adoption.from_id, adoption.from_code, adoption.to_code) == (old.cell.id, OLD, cell.code)
        assert (adoption.seed, adoption.stale, len(adoption.sampled)) == (5, 4, 1)
        assert set(adoption.sampled) < {each.id for each in today}
    again = invoke(store, data)
    assert again.exit_code == 0
    assert again.output == "no stale cells\n"


@pytest.mark.parametrize("what", ["figure", "prediction"])
def test_nothing_is_changed_if_any_figure_differs(what: str, store: Store, data: Path) -> None:
    for which, record in enumerate(store.records()):
        if what == "figure":
            change_record(store, lambda record: record["training"].update(steps=12345), which)
        else:
            rows = list(store.predictions(record.cell.id))
            rows[3] |= {"answer": "no such answer"}
            store.commit(record, predictions=rows, compress=True)
    before = content(store.root)
    shown = invoke(store, data, "--sample", "1")
    assert shown.exit_code == 1
    assert "nothing was changed" in shown.output
    assert content(store.root) == before
    (wrong,) = (line for line in shown.output.splitlines() if "12345" in line or " of 8 " in line)
    expected = {"figure": "optimiser steps 12345 1", "prediction": "predictions, identical 8 of 8 7 of 8"}
    assert " ".join(wrong.split()) == expected[what]


def test_a_dry_run_lists_and_changes_nothing(store: Store, data: Path, today: list[Cell]) -> None:
    before = content(store.root)
    shown = invoke(store, data, "--dry-run", "--sample", "2")
    assert shown.exit_code == 0
    for cell in today:
        assert cell.id[:8] in shown.output
    assert shown.output.count(" sampled") == 2
    assert content(store.root) == before


def test_cells_of_another_configuration_or_already_rerun_are_not_adopted(
    store: Store, open_today: Callable[[Record], Cell], today: list[Cell]
) -> None:
    def longer(record: dict[str, Any]) -> None:
        record["protocol"]["epochs"] = 2
        record["cell"]["configuration"] = "other"

    other = change_record(store, longer)
    anew = store.records()[1]
    (cell,) = (each for each in today if (each.label, each.seed) == (anew.cell.method.label, anew.cell.seed))
    chosen = anew.cell.model_copy(update={"id": cell.id, "code": cell.code})
    store.commit(anew.model_copy(update={"cell": chosen}))
    failed = change_record(store, lambda record: record.update(status="failed", error="boom"), which=3)
    found = find_stale(store.records(), open_today)
    assert found.left_alone == {
        "other configuration (epochs)": [other],
        "the same cell has been run with today's code": [anew.cell.id],
    }
    assert failed not in {each.record.cell.id for each in found.stale}
    assert len(found.stale) == 1


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["adopt", str(tmp_path / "nowhere")])
    assert isinstance(shown.exception, UserError)
    assert "nowhere: no results in this folder" in str(shown.exception)


def test_newer_of_two_results_of_a_cell_is_adopted(
    store: Store, open_today: Callable[[Record], Cell]
) -> None:
    record = store.records()[0]
    older = record.cell.model_copy(update={"id": "older", "code": {"run": "older still"}})
    moment = record.timestamps.model_copy(update={"finished": record.timestamps.started})
    store.commit(record.model_copy(update={"cell": older, "timestamps": moment}))
    found = find_stale(store.records(), open_today)
    assert record in [each.record for each in found.stale]
    assert found.left_alone == {"there is a newer result of the same cell": ["older"]}


def forget_configuration(cell: Cell) -> Callable[[dict[str, Any]], None]:
    """Make the record like older ones, which hashed images by name and size and did not store the configuration."""

    def change(record: dict[str, Any]) -> None:
        del record["cell"]["configuration"]
        record["cell"]["code"] = {"method": "1", "task": "2", "backbone": "3", "fit": "4"}
        details = record["data"]["details"]
        for split, examples in cell.testbed.data.splits.items():
            images = {image for example in examples for image in example.images}
            listing = json.dumps(sorted((image.name, image.stat().st_size) for image in images))
            details["splits"][split]["image digest"] = hashlib.sha256(listing.encode()).hexdigest()
        record["data"]["digest"] = record["protocol"]["data"] = digest_json(details)

    return change


def test_records_from_before_images_were_hashed_are_adopted(
    store: Store, open_today: Callable[[Record], Cell], today: list[Cell]
) -> None:
    change_record(store, forget_configuration(today[0]))
    old = store.records()[0]
    found = find_stale(store.records(), open_today)
    assert found.left_alone == {}
    (stale,) = (each for each in found.stale if each.record == old)
    assert stale_among(today, [old]) == {stale.cell.id}
    adopt(store, [stale], [stale], 0)
    adopted = store.record(stale.cell.id)
    cell = open_today(old)
    assert adopted.cell.configuration == cell.configuration
    assert adopted.data.digest == adopted.protocol["data"] == digest_json(cell.testbed.data.provenance)
    assert adopted.protocol == json.loads(json.dumps(cell.testbed.protocol))


def test_search_history_is_adopted_even_from_an_old_record(
    store: Store, open_today: Callable[[Record], Cell]
) -> None:
    gates = {"joint.0": 0.5, "joint.1": -0.5}
    search = {
        "seconds": 1.0,
        "share": 0.5,
        "decision": {"skipped": ["joint.0"], "gates": gates},
        "history": [{"epoch": 0, "step": 1, "gates": [0.5, -0.5]}],
    }
    old = change_record(store, lambda record: record.update(schema_version=1, search=search))
    before = store.search_history(old)
    assert before is not None
    assert before.trace is not None
    stale = next(each for each in find_stale(store.records(), open_today).stale if each.record.cell.id == old)
    adopt(store, [stale], [stale], 0)
    assert store.search_history(stale.cell.id) == before
    assert store.record(stale.cell.id).search == stale.record.search


def test_old_records_with_other_images_or_settings_are_not_adopted(
    store: Store, open_today: Callable[[Record], Cell], today: list[Cell]
) -> None:
    change_record(store, forget_configuration(today[0]))
    change_record(store, lambda record: record["data"].update(digest="0123456789abcdef"))
    change_record(store, forget_configuration(today[0]), which=2)
    change_record(store, lambda record: record["protocol"].update(warmup=0.5), which=2)
    found = find_stale(store.records(), open_today)
    assert found.left_alone.keys() == {"other configuration (data)", "other configuration (warmup)"}


class StoppedError(Exception):
    """Simulates the end of the process."""


def stop_at(moment: int, patch: pytest.MonkeyPatch) -> None:
    """Simulate the end of the process before the `moment`-th operation of adopting on the disk."""
    done = iter(range(1, 1000))

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if next(done) == moment:
                raise StoppedError
            return function(*arguments, **named)

        return call

    patch.setattr(os, "link", stopping(os.link))
    patch.setattr(os, "unlink", stopping(os.unlink))
    patch.setattr(Path, "unlink", stopping(Path.unlink))
    patch.setattr(Path, "mkdir", stopping(Path.mkdir))
    patch.setattr(Path, "rename", stopping(Path.rename))
    patch.setattr(adopting, "write_record", stopping(adopting.write_record))
    patch.setattr(shutil, "rmtree", stopping(shutil.rmtree))


def test_an_interrupted_adoption_can_be_issued_again(
    made: Path, tmp_path: Path, open_today: Callable[[Record], Cell], today: list[Cell]
) -> None:
    moments = 0
    while True:
        moments += 1
        store = Store(tmp_path / str(moments))
        shutil.copytree(made, store.root)
        found = find_stale(store.records(), open_today)
        with pytest.MonkeyPatch.context() as patch:
            stop_at(moments, patch)
            try:
                adopt(store, found.stale, found.stale[:1], 0)
            except StoppedError:
                stopped = True
            else:
                stopped = False
        # Whatever happened: every cell is there, whole, under its own id, and known as what it is.
        records = store.records()
        assert {(r.cell.method.label, r.cell.seed) for r in records} == {(c.label, c.seed) for c in today}
        for record in records:
            assert {path.name for path in store.folder(record.cell.id).iterdir()} >= FILES
            assert len(list(store.predictions(record.cell.id))) == 8
        found = find_stale(records, open_today)
        clear_leftovers(store, found.leftovers)
        assert adopt(store, found.stale, found.stale[:1], 0) == []
        clear_leftovers(store, find_stale(store.records(), open_today).leftovers)
        assert {path.name for path in store.cells.iterdir()} == {cell.id for cell in today}
        assert all(len(record.adoptions) == 1 for record in store.records())
        if not stopped:
            break
    assert moments > 4 * len(FILES)


def test_a_cell_that_another_run_holds_is_left_out(
    store: Store, open_today: Callable[[Record], Cell], today: list[Cell]
) -> None:
    found = find_stale(store.records(), open_today)
    held = found.stale[2]
    with store.begin(held.cell.id):
        assert adopt(store, found.stale, found.stale[:1], 0) == [held.record.cell.id]
    assert store.record(held.record.cell.id) == held.record
    assert sum(store.finished(cell.id) for cell in today) == 3


def test_cells_without_predictions_cannot_be_adopted(store: Store, data: Path) -> None:
    for record in store.records():
        (store.folder(record.cell.id) / f"{PREDICTIONS}.gz").unlink()
    before = content(store.root)
    shown = invoke(store, data, "--sample", "1")
    assert shown.exit_code == 1
    assert isinstance(shown.exception, UserError)
    assert "predictions.jsonl: no such file; run the cell again" in str(shown.exception)
    assert content(store.root) == before


def stale_cells(methods: int, seeds: int, state: str = "a") -> Iterator[Stale]:
    for method in range(methods):
        for seed in range(seeds):
            record = make_record(f"m{method}", seed)
            code = {"run": state, "method": f"code of {method}"}
            cell = record.cell.model_copy(update={"id": f"{state}{record.cell.id}", "code": code})
            record = record.model_copy(update={"cell": cell})
            yield Stale(record, record.cell, record.protocol, record.data)


@pytest.mark.parametrize("seed", range(5))
def test_sample_covers_methods_and_versions_of_the_code(seed: int) -> None:
    stale = list(stale_cells(methods=5, seeds=3))
    assert len({each.cell.method.label for each in draw(stale, 5, seed)}) == 5
    assert len({each.cell.method.label for each in draw(stale, 3, seed)}) == 3
    assert draw(stale, 3, seed) == draw(stale[::-1], 3, seed)
    assert sorted(each.cell.id for each in draw(stale, 99, seed)) == sorted(each.cell.id for each in stale)
    states = [*stale, *stale_cells(2, 2, "b"), *stale_cells(1, 1, "c")]
    for size, expected in ((1, 3), (4, 4)):
        drawn = draw(states, size, seed)
        assert len(drawn) == expected
        assert {each.record.cell.code["run"] for each in drawn} == {"a", "b", "c"}


def test_samples_of_different_seeds_differ() -> None:
    stale = list(stale_cells(methods=5, seeds=3))
    drawn = {tuple(each.cell.id for each in draw(stale, 3, seed)) for seed in range(20)}
    assert len(drawn) > 10


def test_adoptions_of_a_record_are_printed(tmp_path: Path) -> None:
    adoption = {
        "date": "2025-02-01T10:00:00+00:00",
        "from_id": "a",
        "from_code": {"run": "1"},
        "to_code": {"run": "2"},
        "sampled": ["b", "c"],
        "stale": 40,
        "seed": 1,
        "commit": "beef",
    }
    record = make_record(adoptions=[adoption])
    store = Store(tmp_path)
    store.commit(record)
    assert read_record(write_record(tmp_path, record)) == record
    shown = CliRunner().invoke(app, ["show", record.cell.id, "--results", str(tmp_path)])
    assert shown.exit_code == 0, shown.output
    words = " ".join(shown.output.split())
    assert "by newer code (commit beef): 2 of 40 cells were run again, with the same figures" in words
