"""The results folder: one folder per cell, locked while the cell runs; its record is written last.

<root>/cells/<cell id>/record.json          exists if and only if the cell has ended
                       predictions.jsonl    one example per line; or predictions.jsonl.gz
                       weights.safetensors  the tuned tensors
                       curve.csv            one epoch per line
                       search.json.gz       the history of the search
                       routes.json.gz       the blocks that each test example ran
                       checkpoint/          only while the cell is unfinished
<root>/tables/                              the latest tables
<root>/tuning.json                          learning rates chosen on validation data, if `harness tune` chose them
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import NoneType
from typing import Any

from harness.errors import UserError, did_you_mean
from harness.files import disk_errors, make_folder, read_json_lines, write_atomically
from harness.locks import LockHeldError, take_lock
from harness.records.choices import Choice, read_choices
from harness.records.record import Record
from harness.records.record_file import RECORD, read_record, write_record
from harness.records.routes import RouteFile, write_routes
from harness.records.search_history import SEARCH, SearchHistory, read_history, write_history

PREDICTIONS, WEIGHTS, CURVE, CHECKPOINT, LOCK = (
    "predictions.jsonl",
    "weights.safetensors",
    "curve.csv",
    "checkpoint",
    "lock",
)


TUNING = "tuning"
"""Results folder of the tuning runs within that of the results, and name of the file with what they chose."""


_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class CellBusyError(UserError):
    """Another process is running the cell."""


class Store:
    """A results folder; creating a `Store` touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def cells(self) -> Path:
        """Parent of the cells' folders."""
        return self.root / "cells"

    @property
    def tables(self) -> Path:
        """Folder of the latest tables; need not exist."""
        return self.root / "tables"

    def tuning(self) -> list[Choice]:
        """What `harness tune` has chosen, one entry per backbone, task and method; [] if it was not used.

        Raises:
            UserError: the file is not what was written.
        """
        return read_choices(self.tuning_file)

    @property
    def tuning_file(self) -> Path:
        """The file of what `harness tune` has chosen; need not exist."""
        return self.root / f"{TUNING}.json"

    def folder(self, cell_id: str) -> Path:
        """A cell's folder; need not exist.

        Raises:
            ValueError: this cannot be a cell's id.
        """
        if not _ID.fullmatch(cell_id):
            raise ValueError(f"'{cell_id}' cannot be a cell's id")
        return self.cells / cell_id

    def checkpoint(self, cell_id: str) -> Path:
        """The cell's folder for the checkpoint of an unfinished cell; need not exist."""
        return self.folder(cell_id) / CHECKPOINT

    def finished(self, cell_id: str) -> bool:
        """True if the cell has a record of success; failed cells run again.

        Raises:
            UserError: its record cannot be read.
        """
        path = self.folder(cell_id) / RECORD
        return path.is_file() and self.record(cell_id).status == "finished"

    @contextmanager
    def begin(self, cell_id: str) -> Iterator[Path]:
        """Lock the cell while it runs; yields its folder. Call `finished` again inside: another process may have run
        the cell in the meantime.

        The kernel's lock (flock) ends with the process, even if it is killed. The process id and the host in the
        file are for messages. Partial files of a killed process are removed.

        Raises:
            CellBusyError: another process holds the lock.
            UserError: the folder cannot be created or written, or its file system has no locks.
        """
        folder = self.folder(cell_id)
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock = take_lock(folder / LOCK)
            except LockHeldError as holder:
                raise CellBusyError(f"{folder}: {holder} is running this cell.") from None
        try:
            for partial in folder.glob(".*.partial"):
                partial.unlink()
            yield folder
        finally:
            # Removed before it is released, or the next holder's file would be removed.
            with suppress(OSError):  # the file system may have become read-only
                (folder / LOCK).unlink(missing_ok=True)
            lock.release()

    def commit(
        self,
        record: Record,
        *,
        predictions: Iterable[Mapping[str, Any]] | None = None,
        curve: Sequence[Mapping[str, Any]] | None = None,
        weights: bytes | None = None,
        search: SearchHistory | None = None,
        routes: RouteFile | None = None,
        compress: bool = False,
    ) -> Path:
        """Write the given parts of a cell, its record last; then remove a finished cell's checkpoint.

        predictions: JSON-able, one per example; compress: write them as gzip.
        weights: the tuned weights, as safetensors.
        This also replaces a record when a measurement is added; a record of schema 1 is upgraded then.
        Returns the cell's folder.

        Raises:
            UserError: the folder cannot be written or the disk is full; there is no record then.
        """
        folder = make_folder(self.folder(record.cell.id))
        if predictions is not None:
            self._write_predictions(folder, predictions, compress)
        if curve is not None:
            write_atomically(folder / CURVE, _as_csv(curve))
        if weights is not None:
            write_atomically(folder / WEIGHTS, weights)
        if search is None and not (folder / SEARCH).is_file():
            search = read_history(folder)  # in a record of schema 1, which is about to be replaced
        if search is not None:
            write_history(folder, search)
        if routes is not None:
            write_routes(folder, routes)
        write_record(folder, record)
        if record.status == "finished":
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        return folder

    def record(self, cell_id: str) -> Record:
        """One cell's record.

        Raises:
            UserError: there is none, or it cannot be read.
        """
        path = self.folder(cell_id) / RECORD
        record = read_record(path)
        if record.cell.id != cell_id:
            raise UserError(f"{path}: cell.id is '{record.cell.id}', which is not the name of its folder.")
        return record

    def records(self) -> list[Record]:
        """Records of all cells that have ended, including failed ones, by backbone, task, method and seed.

        Folders without a record (running or killed cells) are skipped; `unfinished` counts them.

        Raises:
            UserError: a record cannot be read.
        """
        found = [self.record(folder.name) for folder in self._folders() if (folder / RECORD).is_file()]
        return sorted(found, key=_order)

    def unfinished(self) -> int:
        """Number of cells that were started and have no record."""
        return sum(not (folder / RECORD).is_file() for folder in self._folders())

    def find(self, prefix: str) -> Record:
        """The record of the one cell whose id begins with `prefix`.

        Raises:
            UserError: there is none or there are several.
        """
        known = [folder.name for folder in self._folders() if (folder / RECORD).is_file()]
        found = [cell_id for cell_id in known if cell_id.startswith(prefix)]
        if not found:
            hint = did_you_mean(prefix, known) if known else " It has no results yet."
            raise UserError(f"{self.cells}: no cell's id begins with '{prefix}'.{hint}")
        if len(found) > 1:
            raise UserError(f"{self.cells}: '{prefix}' begins the ids of {', '.join(sorted(found))}.")
        return self.record(found[0])

    def predictions(self, cell_id: str) -> Iterator[dict[str, Any]]:
        """A cell's per-example predictions, in the order they were written.

        Raises:
            UserError: there are none, or the file is damaged.
        """
        plain = self.folder(cell_id) / PREDICTIONS
        packed = plain.with_name(f"{PREDICTIONS}.gz")
        if not plain.is_file() and not packed.is_file():
            raise UserError(f"{plain}: no such file; run the cell again.")
        for place, row in read_json_lines(plain if plain.is_file() else packed).value:
            if not isinstance(row, dict) or "id" not in row:
                raise UserError(f"{place}: not a prediction; run the cell again.")
            if type(row.get("score", 0.0)) not in (int, float, NoneType):
                raise UserError(f"{place}: score: is no number; run the cell again.")
            yield row

    def search_history(self, cell_id: str) -> SearchHistory | None:
        """The history of a cell's search; None for a cell that did not search.

        Raises:
            UserError: its file cannot be read.
        """
        return read_history(self.folder(cell_id))

    def _folders(self) -> list[Path]:
        if not self.cells.is_dir():
            return []
        return sorted(path for path in self.cells.iterdir() if path.is_dir() and _ID.fullmatch(path.name))

    def _write_predictions(
        self, folder: Path, predictions: Iterable[Mapping[str, Any]], compress: bool
    ) -> None:
        lines = (json.dumps(dict(row), ensure_ascii=False, allow_nan=False) for row in predictions)
        content = "".join(f"{line}\n" for line in lines).encode()
        plain, packed = folder / PREDICTIONS, folder / f"{PREDICTIONS}.gz"
        if compress:
            # No time in the header: equal predictions are equal files.
            write_atomically(packed, gzip.compress(content, mtime=0))
        else:
            write_atomically(plain, content)
        (plain if compress else packed).unlink(missing_ok=True)


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _order(record: Record) -> tuple[str, str, str, int, str]:
    cell = record.cell
    return cell.backbone.name, cell.task.name, cell.method.label, cell.seed, cell.id
