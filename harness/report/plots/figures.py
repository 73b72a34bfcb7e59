"""Make and write all figures of a results folder."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from matplotlib.figure import Figure

from harness.errors import UserError
from harness.files import read_csv, write_atomically
from harness.records.record import Record
from harness.records.store import CURVE, Store
from harness.report.intervals import with_intervals
from harness.report.plots.curves import PANELS, Curve, curves_figure
from harness.report.plots.gates import gates_figure
from harness.report.plots.style import as_bytes
from harness.report.plots.tradeoff import COSTS, tradeoff_figure
from harness.report.tables import Table, build_tables

FORMS = ("png", "svg")


@dataclass(frozen=True)
class Named:
    """A figure, its file name without ending, the title of its table, and the figure in words."""

    name: str
    table: str
    alternative: str
    figure: Figure


def make_figures(
    store: Store, tables: Sequence[Table], costs: Sequence[str] = (), single: bool = False
) -> Iterator[Named]:
    """For each task and backbone: accuracy against costs, learning curves, and the gates of each search.

    tables: with intervals. costs: panels of accuracy against costs, all by default.
    single: one figure for each panel, and none of gates.

    Raises:
        UserError: no such cost.
    """
    numbers: Counter[str] = Counter()
    parts = [part for table in tables for part in _by_task(table)]
    stems = [f"{part.frame['backbone'].iloc[0]}-{part.tasks[0].task}" for part in parts]
    for stem, table in zip(stems, parts, strict=True):
        numbers[stem] += 1
        name = f"{stem}-{numbers[stem]}" if stems.count(stem) > 1 else stem
        trivial = [each.majority_accuracy for each in table.records if each.majority_accuracy is not None]
        chance = min(trivial, default=None)
        for chosen in [(cost.name,) for cost in COSTS] if single else [costs]:
            figure = tradeoff_figure(table, chosen, chance)
            if figure is not None:
                words = _alternative(table, ", ".join(chosen) or "cost")
                yield Named(_file_name("-".join(["tradeoff", name, *chosen])), table.title, words, figure)
        curves: dict[str, list[Curve]] = {label: [] for label in table.frame["method"]}
        for record in table.records:
            if (curve := read_curve(store, record)) is not None:
                curves[record.cell.method.label].append(curve)
        for panels in PANELS if single else [PANELS[0] + PANELS[1]]:
            figure = curves_figure(curves, table.tasks[0].metric, table.title, chance, panels)
            if figure is not None:
                words = f"{table.title}: {' and '.join(panels)} by epoch for each method."
                chosen = panels if single else ()
                yield Named(_file_name("-".join(["curves", name, *chosen])), table.title, words, figure)
        for record in () if single else table.records:
            history = store.search_history(record.cell.id)
            if history is not None and history.trace is not None:
                label, seed = record.cell.method.label, record.cell.seed
                title = f"{label}, {table.title}, seed {seed}"
                drawn = gates_figure(history.trace, title)
                yield Named(_file_name(f"gates-{name}-{label}-seed{seed}"), table.title, title, drawn)


def _by_task(table: Table) -> Iterator[Table]:
    """A table of each task, with the costs on this task and the intervals of the whole table."""
    if len(table.tasks) == 1:
        yield table
        return
    for task in table.tasks:
        own = [record for record in table.records if record.cell.task.name == task.task]
        (part,) = build_tables(own)
        bounds = [f"{task.key}_low", f"{task.key}_high"]
        known = table.frame.set_index("method").reindex(columns=bounds)
        yield replace(part, frame=part.frame.join(known, on="method").astype(object))


def _alternative(table: Table, axis: str) -> str:
    """The figure in words, for readers who do not see it."""
    task = table.tasks[0]
    rows = table.frame.to_dict("records")
    scores = [f"{row['method']} {row[task.key]:.1f}" for row in rows if isinstance(row[task.key], float)]
    return f"{table.title}: {task.metric} by {axis}: {', '.join(scores)}."


def write_figures(
    store: Store,
    folder: Path,
    all_protocols: bool = False,
    costs: Sequence[str] = (),
    on_figure: Callable[[str], None] = lambda name: None,
) -> list[Path]:
    """Write every figure as PNG and SVG to `folder` and return the paths.

    on_figure: called with the name of each figure before it is written.

    Raises:
        UserError: the store has no results, protocols differ, no such cost, or the folder cannot be written.
    """
    records = store.records()
    if not records:
        raise UserError(f"{store.root}: no results in this folder; make some with `harness run`.")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    written = []
    for named in make_figures(store, tables, costs):
        on_figure(named.name)
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
    header, *rows = read_csv(path).value or [("", [])]
    for place, texts in rows:
        try:
            row = dict(zip(header[1], texts, strict=True))
            epoch = int(row.pop("epoch"))
            for column, text in row.items():
                # A cell that diverged has no point where its loss is NaN or infinite.
                if text and isfinite(value := float(text)):
                    columns.setdefault(column, {})[epoch] = value
        except (KeyError, ValueError) as error:
            raise UserError(f"{place}: not a line of a learning curve.") from error
        epochs.append(epoch)
    return Curve(tuple(epochs), columns)


def _file_name(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-")
