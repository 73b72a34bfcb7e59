"""Make and write all figures of a results folder."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from harness.errors import UserError
from harness.files import write_atomically
from harness.records.record import Record
from harness.records.store import CURVE, Store
from harness.report.intervals import with_intervals
from harness.report.plots.curves import Curve, curves_figure
from harness.report.plots.gates import gates_figure
from harness.report.plots.style import as_bytes
from harness.report.plots.tradeoff import tradeoff_figure
from harness.report.tables import build_tables

FORMS = ("png", "svg")


@dataclass(frozen=True)
class Named:
    """A figure, its file name without ending, and the title of its table."""

    name: str
    table: str
    figure: Figure


def make_figures(store: Store, records: Sequence[Record], all_protocols: bool = False) -> Iterator[Named]:
    """For each task and backbone: accuracy against costs, learning curves, and the gates of each search.

    Raises:
        UserError: protocols differ and `all_protocols` is not set.
    """
    for task, backbone in dict.fromkeys((r.cell.task.name, r.cell.backbone.name) for r in records):
        here = [r for r in records if (r.cell.task.name, r.cell.backbone.name) == (task, backbone)]
        tables = build_tables(here, all_protocols)
        for number, table in enumerate(tables, start=1):
            stem = f"{backbone}-{task}" + (f"-{number}" if len(tables) > 1 else "")
            tradeoff = tradeoff_figure(with_intervals(table, store))
            if tradeoff is not None:
                yield Named(_file_name(f"tradeoff-{stem}"), table.title, tradeoff)
            curves: dict[str, list[Curve]] = {label: [] for label in table.frame["method"]}
            for record in table.records:
                if (curve := read_curve(store, record)) is not None:
                    curves[record.cell.method.label].append(curve)
            figure = curves_figure(curves, table.tasks[0].metric, table.title)
            if figure is not None:
                yield Named(_file_name(f"curves-{stem}"), table.title, figure)
            for record in table.records:
                history = store.search_history(record.cell.id)
                if history is not None and history.trace is not None:
                    label, seed = record.cell.method.label, record.cell.seed
                    title = f"{label}, {table.title}, seed {seed}"
                    name = _file_name(f"gates-{stem}-{label}-seed{seed}")
                    yield Named(name, table.title, gates_figure(history.trace, title))


def write_figures(store: Store, folder: Path, all_protocols: bool = False) -> list[Path]:
    """Write every figure as PNG and SVG to `folder` and return the paths.

    Raises:
        UserError: the store has no results, protocols differ, or the folder cannot be written.
    """
    records = store.records()
    if not records:
        raise UserError(f"{store.root}: no results in this folder; make some with `harness run`.")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for named in make_figures(store, records, all_protocols):
        for form in FORMS:
            written.append(write_atomically(folder / f"{named.name}.{form}", as_bytes(named.figure, form)))
    return written


def read_curve(store: Store, record: Record) -> Curve | None:
    """A cell's learning curve; None if it failed before the end of its first epoch.

    Raises:
        UserError: a line of the file is malformed.
    """
    path = store.folder(record.cell.id) / CURVE
    if not path.is_file():
        return None
    columns: dict[str, dict[int, float]] = {}
    epochs = []
    with path.open(encoding="utf-8", newline="") as lines:
        for number, row in enumerate(csv.DictReader(lines), start=2):
            try:
                epoch = int(row.pop("epoch"))
                for column, value in row.items():
                    if value:
                        columns.setdefault(column, {})[epoch] = float(value)
            except (KeyError, ValueError, TypeError) as error:
                raise UserError(f"{path}:{number}: not a line of a learning curve.") from error
            epochs.append(epoch)
    return Curve(tuple(epochs), columns)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
