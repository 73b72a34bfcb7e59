"""The report: tables, figures, and every cell with its record, learning curve, skipped blocks and predictions."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from harness import __version__
from harness.errors import UserError
from harness.records.record import Record
from harness.records.store import Store
from harness.report.columns import Selection, select
from harness.report.describe import describe
from harness.report.html.diagrams import block_diagram, small_curve
from harness.report.html.samples import Examples, load_examples, render_samples
from harness.report.html.templating import fill
from harness.report.intervals import with_intervals
from harness.report.plots.figures import make_figures, read_curve
from harness.report.plots.style import as_bytes
from harness.report.rendering import notes_on
from harness.report.tables import Table, build_tables


def build_report(store: Store, data_root: Path | None = None, all_protocols: bool = False) -> str:
    """The report as one HTML text.

    data_root: folder of the official data, for images beside predictions; the embedded benchmark needs none.

    Raises:
        UserError: the folder has no results, or protocols differ and `all_protocols` is not set.
    """
    records = store.records()
    if not records:
        raise UserError(f"{store.root}: no results in this folder; make some with `harness run`.")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    shown = [record for table in tables for record in _in_order(table)]
    examples: dict[str, Examples] = {}
    cells = []
    for record in shown:
        data = f"{record.cell.task.name} {record.data.digest}"
        if data not in examples and record.status == "finished":
            examples[data] = load_examples(record, data_root)
        cells.append(render_cell(store, record, examples.get(data, Examples({}))))
    return fill(
        "page.html.j2",
        title="; ".join(table.title for table in tables),
        version=__version__,
        unfinished=store.unfinished(),
        tables=[render_table(table) for table in tables],
        figures=[_svg(named.figure) for named in make_figures(store, records, all_protocols)],
        cells=cells,
    )


def render_table(table: Table) -> Markup:
    """A table that can be sorted by its headings."""
    columns = select(table, Selection(intervals=True), "file")
    rows = []
    for row in range(len(table.frame)):
        cells = []
        for place, column in enumerate(columns):
            value = column.values[row]
            key = column.texts[row] if place == 0 else value if isinstance(value, (int, float)) else ""
            cells.append((key, column.texts[row], row in column.bold))
        rows.append(cells)
    headers = [column.header for column in columns]
    notes = [note.text for note in notes_on(table, columns)]
    return fill("table.html.j2", title=table.title, headers=headers, rows=rows, notes=notes)


def render_cell(store: Store, record: Record, examples: Examples) -> Markup:
    """All about one cell, in a closed fold."""
    cell = record.cell
    curve = read_curve(store, record)
    samples, missing = Markup(), ""
    if record.status == "finished":
        try:
            samples = render_samples(list(store.predictions(cell.id)), examples)
        except UserError as error:
            missing = str(error)
    return fill(
        "cell.html.j2",
        name=f"{cell.method.label} on {cell.task.name} ({cell.backbone.name}), seed {cell.seed}",
        score="failed" if record.primary is None else f"{cell.task.primary_metric} {record.primary:.2f}",
        facts=list(describe(record)),
        choice=Markup(_choice(record)),
        curves=[small_curve(values, column) for column, values in curve.columns.items()] if curve else [],
        finished=record.status == "finished",
        split=record.reported_split,
        samples=samples,
        missing=missing,
    )


def _in_order(table: Table) -> list[Record]:
    """Cells by task, then in the order of the table's rows, then by seed."""
    methods, tasks = list(table.frame["method"]), [column.task for column in table.tasks]
    return sorted(
        table.records,
        key=lambda r: (tasks.index(r.cell.task.name), methods.index(r.cell.method.label), r.cell.seed),
    )


def _choice(record: Record) -> str:
    """Diagram of the blocks that a search skipped; empty for other cells."""
    diagram = None if record.search is None else record.search.diagram
    return "" if diagram is None else block_diagram(diagram.blocks, diagram.skipped)


def _svg(figure: Figure) -> Markup:
    """The figure as an SVG element, without the XML prolog, which HTML forbids."""
    text = as_bytes(figure, "svg").decode()
    return Markup(text[text.index("<svg") :])
