"""A disk that is full or read-only from some write on: one line, no record, and the next run repairs everything."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.plan import Cell, build_cells, open_testbeds
from harness.experiment.reproduce import figures_of
from harness.experiment.runner import run_cells
from harness.records.record import Record
from harness.records.record_file import RECORD
from harness.records.store import Store
from tests.support.killing import make_data
from tests.support.reporters import Notes

ERRORS = (errno.ENOSPC, errno.EROFS)


@dataclass
class Disk:
    """Counts what is written below `root`; from call number `fails_at` on, each raises `error`."""

    root: Path
    error: int = errno.ENOSPC
    fails_at: int | None = None
    calls: int = 0
    descriptors: set[int] = field(default_factory=set)

    def _call(self) -> None:
        self.calls += 1
        if self.fails_at is not None and self.calls >= self.fails_at:
            raise OSError(self.error, os.strerror(self.error))

    def _is_ours(self, path: Any) -> bool:
        return isinstance(path, str | Path) and Path(path).is_relative_to(self.root)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Within this context the process writes to this disk."""
        real_open, real_close = os.open, os.close

        def opened(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            writes = self._is_ours(path) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes:
                self._call()
            descriptor = real_open(path, flags, *rest, **more)
            if writes:
                self.descriptors.add(descriptor)
            return descriptor

        def closed(descriptor: int) -> None:
            self.descriptors.discard(descriptor)
            real_close(descriptor)

        def of_a_path(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(path: Any, *rest: Any, **more: Any) -> Any:
                if self._is_ours(path):
                    self._call()
                return function(path, *rest, **more)

            return called

        def of_a_descriptor(function: Callable[..., Any]) -> Callable[..., Any]:
            def called(descriptor: int, *rest: Any) -> Any:
                if descriptor in self.descriptors:
                    self._call()
                return function(descriptor, *rest)

            return called

        with pytest.MonkeyPatch.context() as patch:
            for name in ("mkdir", "replace"):
                patch.setattr(os, name, of_a_path(getattr(os, name)))
            for name in ("write", "fsync"):
                patch.setattr(os, name, of_a_descriptor(getattr(os, name)))
            patch.setattr(os, "open", opened)
            patch.setattr(os, "close", closed)
            yield


@dataclass(frozen=True)
class Healthy:
    """A cell, its record and predictions on a disk that works, and how many calls wrote them."""

    cell: Cell
    record: Record
    predictions: list[dict[str, Any]]
    calls: int


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Healthy:
    root = make_data(tmp_path_factory.mktemp("data"))
    settings = make_settings(
        methods="lora", tasks="vqa[limit_train=16]", data_root=root, epochs=1, batch_size=8, accelerator="cpu"
    )
    (cell,) = build_cells(settings, open_testbeds(settings))
    disk = Disk(tmp_path_factory.mktemp("results"))
    with disk.mounted():
        (record,) = run_cells([cell], Store(disk.root), Notes())
    return Healthy(cell, record, list(Store(disk.root).predictions(cell.id)), disk.calls)


def survives(healthy: Healthy, disk: Disk) -> None:
    store, cell = Store(disk.root), healthy.cell
    with disk.mounted(), pytest.raises(UserError) as error:
        run_cells([cell], store, Notes())
    expected = "no space left on the disk" if disk.error == errno.ENOSPC else "Read-only file system"
    assert expected in str(error.value)
    assert str(disk.root) in str(error.value)
    if not store.finished(cell.id):
        assert not (store.folder(cell.id) / RECORD).exists()
    (record,) = run_cells([cell], store, Notes())
    assert figures_of(record) == figures_of(healthy.record)
    assert list(store.predictions(cell.id)) == healthy.predictions
    assert not list(disk.root.rglob("*.partial"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 1.0])
def test_a_disk_that_fails_at_some_write(healthy: Healthy, tmp_path: Path, share: float) -> None:
    place = 1 + round(share * (healthy.calls - 1))
    survives(healthy, Disk(tmp_path, ERRORS[place % 2], place))


@pytest.mark.long
@pytest.mark.parametrize("error", ERRORS)
def test_a_disk_that_fails_at_every_write(healthy: Healthy, tmp_path: Path, error: int) -> None:
    for place in range(1, healthy.calls + 1):
        survives(healthy, Disk(tmp_path / str(place), error, place))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ESTALE])
def test_a_file_system_without_locks_ends_a_run_before_its_work(
    healthy: Healthy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    notes = Notes()
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(UserError, match=r"cannot lock files .*--results"):
            run_cells([healthy.cell], Store(tmp_path), notes)
    assert not notes.stages


class Removing(Notes):
    """Removes the results folder as soon as training has begun, as a careless script does."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def advance(self, cell: Cell, count: int) -> None:
        """Examples are done."""
        shutil.rmtree(self._folder, ignore_errors=True)


def test_a_results_folder_that_is_removed_in_mid_run_is_made_again(healthy: Healthy, tmp_path: Path) -> None:
    results = tmp_path / "results"
    (record,) = run_cells([healthy.cell], Store(results), Removing(results))
    assert figures_of(record) == figures_of(healthy.record)
    assert Store(results).record(healthy.cell.id) == record
    assert list(Store(results).predictions(healthy.cell.id)) == healthy.predictions
