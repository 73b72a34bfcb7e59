"""The results folder stays valid after a kill at any moment, and no two processes run one cell."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.errors import UserError
from harness.records.record_file import RECORD
from harness.records.routes import ROUTES
from harness.records.search_history import SEARCH, SearchHistory
from harness.records.store import CHECKPOINT, CURVE, LOCK, PREDICTIONS, WEIGHTS, CellBusyError, Store
from tests.support.paths import ROOT
from tests.support.stored_results import as_search, make_record

ROWS = [{"id": "1", "group": "a", "score": 1.0}, {"id": "2", "group": "b", "score": 0.3}]
CURVE_ROWS = [{"epoch": 1, "train_loss": 0.5}, {"epoch": 2, "train_loss": 0.25, "val_accuracy": 50.0}]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_a_committed_cell_has_its_files_and_no_checkpoint(store: Store) -> None:
    record = make_record()
    with store.begin(record.cell.id) as folder:
        store.checkpoint(record.cell.id).mkdir()
        assert not store.finished(record.cell.id)
        store.commit(record, predictions=ROWS, curve=CURVE_ROWS, weights=b"w")
    assert store.finished(record.cell.id)
    assert {path.name for path in folder.iterdir()} == {RECORD, PREDICTIONS, CURVE, WEIGHTS}
    assert (folder / CURVE).read_text() == "epoch,train_loss,val_accuracy\n1,0.5,\n2,0.25,50.0\n"
    assert list(store.predictions(record.cell.id)) == ROWS


def test_packed_predictions_replace_plain_ones_and_are_the_same_bytes_each_time(store: Store) -> None:
    record = make_record()
    store.commit(record, predictions=ROWS)
    folder = store.commit(record, predictions=iter(ROWS), compress=True)
    first = (folder / f"{PREDICTIONS}.gz").read_bytes()
    assert not (folder / PREDICTIONS).exists()
    assert list(store.predictions(record.cell.id)) == ROWS
    store.commit(record, predictions=ROWS, compress=True)
    assert (folder / f"{PREDICTIONS}.gz").read_bytes() == first


def test_a_search_history_is_the_same_bytes_each_time_and_stays_when_a_record_is_replaced(
    store: Store,
) -> None:
    record, history = make_record(search=as_search()), SearchHistory(history=[{"step": 1, "loss": 0.1}])
    folder = store.commit(record, search=history)
    first = (folder / SEARCH).read_bytes()
    store.commit(record, search=history)
    store.commit(record)
    assert (folder / SEARCH).read_bytes() == first
    assert store.search_history(record.cell.id) == history
    (folder / SEARCH).write_bytes(first[:20])
    with pytest.raises(UserError, match=r"search\.json\.gz: cannot be decompressed"):
        store.search_history(record.cell.id)


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_between_any_two_writes_leaves_an_unfinished_cell(
    store: Store, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    record = make_record()
    store.checkpoint(record.cell.id).mkdir(parents=True)
    replace, calls = Path.replace, []

    def killed(path: Path, target: Path) -> Path:
        if len(calls) == survived:
            raise KeyboardInterrupt
        calls.append(target)
        return replace(path, target)

    def commit() -> None:
        store.commit(record, predictions=ROWS, curve=CURVE_ROWS, weights=b"w")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            commit()
    assert len(calls) == survived
    assert not store.finished(record.cell.id)
    assert store.records() == []
    assert store.unfinished() == 1
    assert store.checkpoint(record.cell.id).is_dir()
    commit()
    assert store.records() == [record]
    assert store.unfinished() == 0


def test_half_written_files_of_a_killed_process_are_removed_at_the_next_start(store: Store) -> None:
    folder = store.folder("cell")
    folder.mkdir(parents=True)
    (folder / f".{WEIGHTS}.999.partial").write_bytes(b"half")
    with store.begin("cell"):
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_failed_cell_is_listed_but_not_finished_and_keeps_its_checkpoint(store: Store) -> None:
    record = make_record(status="failed", error="out of memory", metrics={})
    store.checkpoint(record.cell.id).mkdir(parents=True)
    folder = store.commit(record)
    assert not store.finished(record.cell.id)
    assert store.records() == [record]
    assert (folder / CHECKPOINT).is_dir()


def test_locked_cell_cannot_be_started(store: Store) -> None:
    with store.begin("cell"):
        told = f"on {re.escape(socket.gethostname())}, process {os.getpid()} is running"
        with pytest.raises(CellBusyError, match=told), store.begin("cell"):
            pass
        with store.begin("other"):
            pass
    with store.begin("cell"):
        pass
    assert not (store.folder("cell") / LOCK).exists()


def test_the_lock_of_a_killed_process_is_taken_over(store: Store) -> None:
    code = (
        "import sys, time; from pathlib import Path; from harness.records.store import Store\n"
        "with Store(Path(sys.argv[1])).begin('cell'): print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CellBusyError, match=f"process {process.pid} is"), store.begin("cell"):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (store.folder("cell") / LOCK).exists()
    with store.begin("cell"):
        pass


def test_lock_is_taken_again_after_its_file_was_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, descriptors = fcntl.flock, []

    def removed_meanwhile(descriptor: int, operation: int) -> None:
        flock(descriptor, operation)
        if not descriptors:
            (store.folder("cell") / LOCK).rename(store.folder("cell") / ".nfs0001")  # as NFS does it
        descriptors.append(descriptor)

    monkeypatch.setattr(fcntl, "flock", removed_meanwhile)
    with store.begin("cell"):
        assert (store.folder("cell") / LOCK).read_text() == f"{os.getpid()}\n{socket.gethostname()}\n"
        with pytest.raises(CellBusyError), store.begin("cell"):
            pass


def test_two_processes_never_run_one_cell_at_the_same_time(store: Store) -> None:
    code = (
        "import os, sys; from pathlib import Path; from harness.records.store import CellBusyError, Store\n"
        "store, done = Store(Path(sys.argv[1])), 0\n"
        "while done < 200:\n"
        "    try:\n"
        "        with store.begin('cell') as folder:\n"
        "            os.close(os.open(folder / 'inside', os.O_CREAT | os.O_EXCL))\n"
        "            (folder / 'inside').unlink()\n"
        "            done += 1\n"
        "    except CellBusyError: pass\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(store.root)], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert errors == [b""] * 3


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ESTALE, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line_for_the_user(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(UserError, match=r"cannot lock files .*--results") as error, store.begin("cell"):
        pass
    assert not isinstance(error.value, CellBusyError)
    assert "\n" not in str(error.value)


def test_an_exception_inside_releases_the_cell(store: Store) -> None:
    with pytest.raises(RuntimeError), store.begin("cell"):
        raise RuntimeError
    with store.begin("cell"):
        pass


def test_records_have_a_fixed_order(store: Store) -> None:
    records = [make_record("lora", 1), make_record("lora", 0), make_record("full", 0)]
    for record in records:
        store.commit(record)
    assert [(r.cell.method.label, r.cell.seed) for r in store.records()] == [
        ("full", 0),
        ("lora", 0),
        ("lora", 1),
    ]


def test_cell_is_found_by_a_prefix_of_its_id(store: Store) -> None:
    for seed in (0, 1):
        store.commit(make_record("lora", seed))
    assert store.find("lora.1").cell.seed == 1
    with pytest.raises(UserError, match=r"begins the ids of lora.0.0a1b2c, lora.1.0a1b2c"):
        store.find("lora")
    with pytest.raises(UserError, match="no cell's id begins with 'full'"):
        store.find("full")


def test_a_folder_that_cannot_be_made_is_one_line_for_the_user(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file in the way")
    store = Store(tmp_path / "results")
    with pytest.raises(UserError, match="cannot be written"), store.begin("cell"):
        pass
    with pytest.raises(UserError, match="cannot be written"):
        store.commit(make_record())


def test_a_full_disk_leaves_no_record(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="no space left on the disk"):
        store.commit(make_record(), weights=b"half")
    monkeypatch.undo()
    assert [path.name for path in store.folder(make_record().cell.id).iterdir()] == []


def test_id_cannot_point_outside_the_folder(store: Store) -> None:
    for wrong in ("../x", "a/b", "", ".hidden"):
        with pytest.raises(ValueError, match="cannot be a cell's id"):
            store.folder(wrong)


def test_missing_predictions_are_an_error(store: Store) -> None:
    store.commit(make_record())
    with pytest.raises(UserError, match="run the cell again"):
        list(store.predictions(make_record().cell.id))


@pytest.mark.parametrize("wrong", ["../../x", "a/b", "", ".x", "other\n", "x" * 5])
def test_a_record_whose_id_is_not_its_folders_name_is_refused(store: Store, wrong: str) -> None:
    path = store.commit(make_record()) / RECORD
    content = json.loads(path.read_text())
    content["cell"]["id"] = wrong
    path.write_text(json.dumps(content))
    for read in (store.records, lambda: store.find(""), lambda: store.finished(path.parent.name)):
        with pytest.raises(UserError, match=rf"{path}: cell\.id"):
            read()


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b'{"id": 1}\n{"id"', "line 2, column 6: not valid JSON"),
        (b"[1]\n", "line 1: not a prediction"),
        (b'{"score": 1}\n', "line 1: not a prediction"),
        (b"\x00\x01", "byte 1: is a NUL byte"),
        (b"\x1f\x8bxx", "cannot be decompressed"),
        (b'{"id": "1", "score": null}\n{"id": "2", "score": "x"}', "line 2: score: is no number"),
    ],
)
def test_damaged_predictions_are_named(store: Store, content: bytes, place: str) -> None:
    path = store.commit(make_record(), predictions=ROWS) / PREDICTIONS
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: {place}"):
        list(store.predictions(path.parent.name))


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"trace": 3}', b"[" * 100_000, b"\x1f\x8b"])
def test_a_damaged_search_history_is_named(store: Store, content: bytes) -> None:
    path = store.commit(make_record()) / SEARCH
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: "):
        store.search_history(path.parent.name)


def test_a_folder_that_is_removed_or_becomes_read_only_meanwhile_does_not_hide_the_result(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = make_record()
    with store.begin(record.cell.id):
        shutil.rmtree(store.root)
        store.commit(record)
    assert store.finished(record.cell.id)

    def read_only(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch, store.begin(record.cell.id):
        patch.setattr(Path, "unlink", read_only)
    with store.begin(record.cell.id):
        pass


@pytest.mark.parametrize("experiment", ["first-run", "leaderboard", "leaderboard-meter"])
def test_committed_cells_have_all_the_files_that_their_records_speak_of(experiment: str) -> None:
    store = Store(ROOT / "results" / experiment)
    records = store.records()
    assert records
    for record in records:
        names = {path.name for path in store.folder(record.cell.id).iterdir()}
        assert names >= {RECORD, f"{PREDICTIONS}.gz", CURVE}
        assert (SEARCH in names) == (record.search is not None)
        assert (ROUTES in names) == (record.routes is not None)
