"""Results of a run or of a results folder, as an object for notebooks and scripts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from harness.analysis.bootstrap import RESAMPLES
from harness.analysis.significance import compare
from harness.experiment.trackers import final_figures
from harness.files import write_atomically
from harness.folders import home_expanded
from harness.records.record import Failure, Record
from harness.records.store import Store
from harness.report.columns import Selection
from harness.report.intervals import with_intervals
from harness.report.plots.figures import FORMS, make_figures
from harness.report.plots.style import as_bytes
from harness.report.rendering import Format, render_all
from harness.report.tables import Table, build_tables

COSTS = (
    "updated_parameters",
    "macs",
    "latency_p50_ms_batch_1",
    "peak_training_mib",
    "tuned_file_mib",
    "training_seconds",
    "train_examples_per_second",
    "best_epoch",
    "search_seconds",
)
"""Columns of `Results.to_pandas()` that exist even if no cell has a value."""


class Figures(dict[str, Figure]):
    """matplotlib figures by name; a notebook displays all of them."""

    def save(self, folder: Path | str) -> list[Path]:
        """Write every figure as PNG and SVG; returns the paths."""
        place = home_expanded(folder)
        return [
            write_atomically(place / f"{name}.{form}", as_bytes(figure, form))
            for name, figure in self.items()
            for form in FORMS
        ]

    def _repr_html_(self) -> str:
        pictures = {name: base64.b64encode(as_bytes(figure, "png")).decode() for name, figure in self.items()}
        return "\n".join(
            f'<img alt="{escape(name)}" src="data:image/png;base64,{data}">'
            for name, data in pictures.items()
        )


@dataclass(frozen=True)
class Results:
    """Records of cells, including those that failed.

    store: the results folder, which also holds predictions, tuned weights and learning curves.
    """

    store: Store
    records: tuple[Record, ...]

    @property
    def failed(self) -> tuple[Record, ...]:
        """Records of cells that failed; `error` says why."""
        return tuple(record for record in self.records if record.status == "failed")

    def to_pandas(self) -> pd.DataFrame:
        """One row per cell: method, task, backbone, seed, score, and costs with units in their names."""
        return pd.DataFrame([_row(record) for record in self.records])

    def table(
        self, format: Format = "github", *, columns: Sequence[str] = (), intervals: bool = False
    ) -> str:
        """The paper's table as text, a row per method: `github`, `latex`, `csv`, `html` or `svg`.

        columns: names of the columns to show, such as `["vqa", "flops"]`; by default the usual ones.
        intervals: also show the 95 % interval of each score.
        Cells whose protocols differ get a table each.

        Raises:
            UserError: no such column.
        """
        return render_all(self._tables(), format, Selection(tuple(columns), intervals))

    def compare(
        self, first: str, second: str, *, metric: str | None = None, resamples: int = RESAMPLES
    ) -> pd.DataFrame:
        """Test `first − second` on the same test examples and seeds, one row per task and backbone.

        first, second: labels of methods, as in tables. metric: None is each task's primary metric.

        Raises:
            UserError: a method has no finished cell, or the cells' protocols differ.
        """
        found = compare(
            self.store, [(first, second)], metric=metric, resamples=resamples, records=self.records
        )
        rows = []
        for each in found:
            interval = asdict(each.difference)
            kept = {
                key: value for key, value in asdict(each).items() if key not in ("difference", "adjusted")
            }
            rows.append(
                {
                    **{key: kept.pop(key) for key in ("first", "second", "task", "backbone", "metric")},
                    **{"difference": interval["estimate"], "low": interval["low"], "high": interval["high"]},
                    **kept,
                }
            )
        return pd.DataFrame(rows)

    def plot(self, costs: Sequence[str] = ()) -> Figures:
        """Accuracy against costs, learning curves, and the gates of searches, for each task and backbone.

        costs: panels of accuracy against costs: `flops`, `latency`, `parameters`; all by default.

        Raises:
            UserError: no such cost.
        """
        drawn = make_figures(self.store, self._tables(), costs)
        return Figures({named.name: named.figure for named in drawn})

    def _tables(self) -> list[Table]:
        tables = build_tables(self.records, all_protocols=True)
        return [with_intervals(table, self.store) for table in tables]

    def _repr_html_(self) -> str:
        return render_all(self._tables(), "html") if self.records else escape(repr(self))

    def __repr__(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        methods = ", ".join(dict.fromkeys(record.cell.method.label for record in self.records))
        return f"<Results in {self.store.root}: {len(self.records)} cells{failed}; {methods}>"


def _row(record: Record) -> Mapping[str, Any]:
    cell = record.cell
    row: dict[str, Any] = {
        "method": cell.method.label,
        "task": cell.task.name,
        "backbone": cell.backbone.name,
        "benchmark": record.data.benchmark,
        "seed": cell.seed,
        "status": record.status,
        "metric": cell.task.primary_metric,
        "score": record.primary,
        **dict.fromkeys(COSTS),
        **final_figures(record),
    }
    if not isinstance(record.latency, Failure):
        for each in record.latency:
            row[f"latency_p50_ms_batch_{each.batch_size}"] = each.p50_ms
    return {**row, "error": record.error, "cell": cell.id}
