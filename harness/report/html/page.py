"""The report: tables, figures, and every cell with its configuration, curve, choice and predictions."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from harness import __version__
from harness.errors import UserError
from harness.records.record import Record
from harness.records.store import Store
from harness.report.describe import describe
from harness.report.html.assets import SCRIPT, STYLE
from harness.report.html.diagrams import block_diagram, small_curve
from harness.report.html.samples import Examples, load_examples, render_samples
from harness.report.intervals import with_intervals
from harness.report.plots.figures import make_figures, read_curve
from harness.report.plots.gates import read_search
from harness.report.plots.style import as_bytes
from harness.report.rendering import columns_of
from harness.report.tables import Table, build_tables


def build_report(store: Store, data_root: Path | None = None, all_protocols: bool = False) -> str:
    """The page as text.

    data_root: the official files, for images of predictions on other data than the embedded benchmark.

    Raises:
        UserError: there are no results, or (without `all_protocols`) protocols differ.
    """
    records = store.records()
    if not records:
        raise UserError(f"{store.root}: no results in there; make some with `harness run`.")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    shown = [record for table in tables for record in _in_order(table)]
    figures = "".join(
        f"<figure>{_svg(named.figure)}</figure>" for named in make_figures(store, records, all_protocols)
    )
    examples: dict[str, Examples] = {}
    cells = []
    for record in shown:
        data = f"{record.cell.task.name} {record.data.digest}"
        if data not in examples and record.status == "finished":
            examples[data] = load_examples(record, data_root)
        cells.append(render_cell(store, record, examples.get(data, Examples({}))))
    unfinished = store.unfinished()
    waiting = f" {unfinished} cells are unfinished and not in here." if unfinished else ""
    title = "; ".join(table.title for table in tables)
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f"<h1>{escape(title)}</h1>",
            f'<p class="dim">{len(shown)} cells, harness {escape(__version__)}.{waiting} A click on a heading '
            "sorts the table.</p>",
            *map(render_table, tables),
            "<h2>Figures</h2>",
            figures or '<p class="dim">Nothing to draw.</p>',
            "<h2>Cells</h2>",
            *cells,
            f"<script>{SCRIPT}</script></body></html>",
            "",
        ]
    )


def render_table(table: Table) -> str:
    """A table whose headings sort it."""
    columns = columns_of(table)
    head = "".join(
        f'<th scope="col"><button type="button">{escape(column.header)}</button></th>' for column in columns
    )
    rows = []
    for row in range(len(table.frame)):
        cells = []
        for place, column in enumerate(columns):
            value = column.values[row]
            key = column.texts[row] if place == 0 else value if isinstance(value, (int, float)) else ""
            if column.header.endswith("95 % interval"):
                key = column.texts[row].partition(" ")[0].replace("–", "")
            text = escape(column.texts[row])
            text = f"<b>{text}</b>" if row in column.bold() else text
            cells.append(f'<td data-value="{escape(str(key))}">{text}</td>')
        rows.append(f"<tr>{''.join(cells)}</tr>")
    notes = "".join(f"<p>{escape(note)}</p>" for note in table.notes)
    return (
        f'<h2>{escape(table.title)}</h2><div class="wide"><table class="results"><thead><tr>{head}</tr></thead>'
        f'<tbody>{"".join(rows)}</tbody></table></div><div class="notes">{notes}</div>'
    )


def render_cell(store: Store, record: Record, examples: Examples) -> str:
    """Everything about one cell, folded away."""
    cell = record.cell
    score = "failed" if record.primary is None else f"{cell.task.primary_metric} {record.primary:.2f}"
    name = f"{cell.method.label} on {cell.task.name} ({cell.backbone.name}), seed {cell.seed}"
    parts = [_definitions(dict(describe(record)))]
    if diagram := _choice(record):
        parts += ["<h3>Blocks</h3>", f'<figure class="diagram">{diagram}</figure>']
    curve = read_curve(store, record)
    drawn = [small_curve(values, column) for column, values in curve.columns.items()] if curve else []
    if drawn:
        parts += ["<h3>Learning curve</h3>", f'<div class="curve">{"".join(drawn)}</div>']
    if record.status == "finished":
        parts.append(f"<h3>Predictions on {escape(record.reported_split)}</h3>")
        try:
            parts.append(render_samples(list(store.predictions(cell.id)), examples))
        except UserError as error:
            parts.append(f'<p class="dim">{escape(str(error))}</p>')
    return (
        f"<details><summary><b>{escape(name)}</b> <span>{escape(score)}</span></summary>"
        f"<div>{''.join(parts)}</div></details>"
    )


def _in_order(table: Table) -> list[Record]:
    """Cells by task, then in the order of the table's rows, then by seed."""
    methods, tasks = list(table.frame["method"]), [column.task for column in table.tasks]
    return sorted(
        table.records,
        key=lambda r: (tasks.index(r.cell.task.name), methods.index(r.cell.method.label), r.cell.seed),
    )


def _choice(record: Record) -> str:
    """The blocks and which are skipped, of a cell that chose among them."""
    search = read_search(record)
    if search is not None:
        return block_diagram(search.blocks, search.skipped)
    decision: Mapping[str, object] = {} if record.search is None else record.search.decision
    gates, skipped = decision.get("gates"), decision.get("skipped")
    if isinstance(gates, dict) and isinstance(skipped, list):
        return block_diagram(list(gates), [str(block) for block in skipped])
    return ""


def _definitions(pairs: Mapping[str, str]) -> str:
    rows = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in pairs.items())
    return f"<dl>{rows}</dl>"


def _svg(figure: Figure) -> str:
    """Without the prolog, which HTML has no place for."""
    text = as_bytes(figure, "svg").decode()
    return text[text.index("<svg") :]
