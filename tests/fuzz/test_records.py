"""Edited results are read and shown, or named on one line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from harness.records.record_file import RECORD, read_record
from harness.records.search_history import SEARCH
from harness.records.store import CURVE, PREDICTIONS, Store
from harness.report.describe import describe
from harness.report.html.pictures import Pictures
from harness.report.html.samples import Examples, render_samples
from harness.report.intervals import with_intervals
from harness.report.plots.figures import read_curve
from harness.report.rendering import print_tables, render_all
from harness.report.tables import build_tables
from tests.support.fuzzing import at_most_a_user_error, cases, changed_json, damaged
from tests.support.stored_results import as_json, as_search, make_record, predictions_of, record_of

RECORDED = as_json(search=as_search())


@cases(300)
@given(content=changed_json(RECORDED))
def test_edited_records(tmp_path: Path, content: Any) -> None:
    store = Store(tmp_path)
    folder = store.folder(make_record().cell.id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(content))
    with at_most_a_user_error():
        records = store.records()
        for record in records:
            describe(record)
        tables = build_tables(records)
        print_tables(tables, Console(file=io.StringIO()))
        for form in ("github", "latex", "csv", "html"):
            render_all(tables, form)


@cases(120)
@given(content=damaged(json.dumps(RECORDED).encode()))
def test_damaged_records(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / RECORD
    path.write_bytes(content)
    with at_most_a_user_error():
        read_record(path)


ROWS = predictions_of([1.0, 0.3, 0.0, 1.0])
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


@st.composite
def edited(draw: Any) -> bytes:
    return "".join(f"{json.dumps(draw(changed_json(row, 1)))}\n" for row in ROWS).encode()


@cases(150)
@given(rows=edited() | damaged(LINES))
def test_damaged_predictions(tmp_path: Path, rows: bytes) -> None:
    store = Store(tmp_path)
    record = record_of("lora", 0, ROWS)
    folder = store.commit(record, predictions=ROWS)
    (folder / PREDICTIONS).write_bytes(rows)
    with at_most_a_user_error():
        for table in build_tables([record]):
            with_intervals(table, store)
    with at_most_a_user_error():
        render_samples(store.predictions(record.cell.id), Examples({}), Pictures())


@cases(150)
@given(
    content=damaged(b"epoch,train_loss,val_accuracy\n1,2.5,40\n2,1.5,50\n"), history=st.binary(max_size=20)
)
def test_damaged_curves_and_histories(tmp_path: Path, content: bytes, history: bytes) -> None:
    store = Store(tmp_path)
    record = make_record()
    folder = store.commit(record)
    (folder / CURVE).write_bytes(content)
    (folder / SEARCH).write_bytes(history)
    with at_most_a_user_error():
        read_curve(store, record)
    with at_most_a_user_error():
        store.search_history(record.cell.id)
