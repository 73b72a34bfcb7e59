"""Cells in parallel have the results of cells in sequence, and a process that dies fails only its own cell."""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from harness.config import RunSettings
from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment import workers
from harness.experiment.plan import build_cells, open_testbeds
from harness.experiment.workers import default_jobs, is_importable, run_side_by_side
from harness.records.store import Store
from methods.lora import LoRA
from tasks.mini.vqa import Sizes, ensure_vqa
from tests.support.reporters import Notes


@pytest.fixture(scope="module")
def settings_of_two(tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    root = ensure_vqa(tmp_path_factory.mktemp("data"), sizes=Sizes(40, 2, 6, 2, 6, 2))
    return make_settings(
        methods="classifier,bitfit",
        tasks="vqa",
        data_root=root,
        epochs=1,
        batch_size=16,
        accelerator="cpu",
    )


def killed(settings: RunSettings, folder: Path, threads: int, pipe: Connection) -> None:
    """A worker that the system kills during its first cell."""
    pipe.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def sleeping(settings: RunSettings, folder: Path, threads: int, pipe: Connection) -> None:
    """A worker whose cell never ends and that ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pipe.recv()
    pipe.send(("begin",))
    time.sleep(3600)


def complaining(settings: RunSettings, folder: Path, threads: int, pipe: Connection) -> None:
    """A worker that raises a user error."""
    pipe.recv()
    pipe.send(("mend", "cat.jpg: no such image"))
    pipe.recv()


@pytest.mark.timeout(600)
def test_cells_run_in_worker_processes_and_are_saved(settings_of_two: RunSettings, tmp_path: Path) -> None:
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    store, notes = Store(tmp_path), Notes()
    records = run_side_by_side(settings_of_two, cells, store, notes, 2)
    assert [record.cell.method.label for record in records] == ["classifier", "bitfit"]
    assert sorted(notes.ended) == [("bitfit", "finished"), ("classifier", "finished")]
    assert ("bitfit", "train") in notes.stages
    again = Notes()
    assert run_side_by_side(settings_of_two, cells, store, again, 2) == records
    assert {note for _, note in again.ended} == {"kept"}


class EnoughError(Exception):
    """Ends a run when its first cell is handed out."""


def test_no_more_workers_than_cells(
    settings_of_two: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []

    def start(*arguments: object) -> workers._Worker:
        started.append(arguments)
        return workers._Worker([], [])

    def stop(*_: object) -> None:
        raise EnoughError

    monkeypatch.setattr(workers, "_start", start)
    monkeypatch.setattr(workers, "_assign", stop)
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    for count in (1, 2):
        started.clear()
        with pytest.raises(EnoughError):
            run_side_by_side(settings_of_two, cells[:count], Store(tmp_path), Notes(), 1000)
        assert len(started) == count


@pytest.mark.timeout(600)
def test_a_killed_process_fails_its_cell_only(
    settings_of_two: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_work", killed)
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    notes = Notes()
    records = run_side_by_side(settings_of_two, cells, Store(tmp_path), notes, 1)
    assert [record.status for record in records] == ["failed", "failed"]
    assert "SIGKILL" in (records[0].error or "")
    assert not Store(tmp_path).finished(cells[0].id)


@pytest.mark.timeout(600)
def test_timed_out_cell_fails_and_the_others_continue(
    settings_of_two: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_work", sleeping)
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    notes = Notes()
    records = run_side_by_side(settings_of_two, cells, Store(tmp_path), notes, 2, timeout=0.25)
    assert [record.error for record in records] == ["timed out after 0.25 s"] * 2
    assert {note for _, note in notes.ended} == {"failed"}
    assert not list(tmp_path.rglob("lock"))


@pytest.mark.timeout(600)
def test_user_error_in_a_worker_ends_the_run(
    settings_of_two: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_work", complaining)
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    with pytest.raises(UserError, match="no such image"):
        run_side_by_side(settings_of_two, cells, Store(tmp_path), Notes(), 2)


def test_only_small_models_run_in_parallel(
    settings_of_two: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two))
    monkeypatch.setattr(workers.torch, "get_num_threads", lambda: 4)
    assert default_jobs(settings_of_two, cells) == 2
    assert default_jobs(settings_of_two, []) == 1
    monkeypatch.setattr(workers, "SMALL", 1000)
    assert default_jobs(settings_of_two, cells) == 1


@pytest.mark.parametrize(
    ("cores", "gpus", "jobs"), [(16, 1, 8), (6, 1, 6), (16, 4, 16), (2, 4, 4), (256, 2, 16)]
)
def test_small_models_share_a_gpu(
    settings_of_two: RunSettings, monkeypatch: pytest.MonkeyPatch, cores: int, gpus: int, jobs: int
) -> None:
    cells = build_cells(settings_of_two, open_testbeds(settings_of_two)) * 20
    monkeypatch.setattr(workers, "usable_cores", lambda: cores)
    monkeypatch.setattr(workers, "gpu_groups", lambda settings: [str(index) for index in range(gpus)])
    assert default_jobs(settings_of_two, cells) == jobs
    assert default_jobs(settings_of_two, cells[:1]) == 1
    monkeypatch.setattr(workers, "SMALL", 1000)
    assert default_jobs(settings_of_two, cells) == gpus


def test_is_importable_only_if_another_process_can_import_it() -> None:
    class Local:
        pass

    by_hand = type("ByHand", (), {"__module__": "nowhere_to_be_found"})
    here = type("Here", (), {"__module__": "__main__"})
    assert [is_importable(each) for each in (LoRA, Local, by_hand, here)] == [True, False, False, False]
