"""A small results folder with full tuning, a search and a failed measurement, and what tests read from its table."""

from __future__ import annotations

from typing import Any

from harness.records.record import Record
from harness.report.tables import Table, build_tables
from tests.support.stored_results import as_search, make_record

FULL: dict[str, Any] = {
    "updated": 2_400_000,
    "macs": 80_000_000,
    "p50": 10.0,
    "tuned_file_bytes": 10 * 2**20,
    "training__examples_per_second": 100.0,
}
FAILURE = {"error": "operator unknown"}


def small_results() -> list[Record]:
    """Results in any order, DAS before full tuning; LoRA's latency failed."""
    return [
        make_record("das", 0, 59.0, 24_000, 60_000_000, 8.0, search=as_search()),
        make_record("lora[r=8]", 0, 60.5, 12_500, 80_000_000, latency=FAILURE),
        make_record("full", 0, 61.0, **FULL),
        make_record("full", 1, 63.0, **FULL),
        make_record("full", 2, 62.0, **FULL),
        make_record("classifier", 0, 50.0, 0, 80_000_000, 10.0, memory=None),
    ]


def only(records: list[Record], **options: Any) -> Table:
    (table,) = build_tables(records, **options)
    return table


def texts(table: Table) -> list[str]:
    """The notes below a table."""
    return [note.text for note in table.notes]


def cells_of(line: str) -> list[str]:
    """The cells of a line of Markdown."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def row(table: Table, method: str) -> dict[str, Any]:
    (found,) = [row for row in table.frame.to_dict("records") if row["method"] == method]
    return found
