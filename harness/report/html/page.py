"""The report: tables, figures, and every cell with its record, learning curve, skipped blocks and predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from harness import __version__
from harness.errors import UserError, counted
from harness.records.record import Record
from harness.records.store import Store
from harness.report.columns import Column, Selection, select
from harness.report.describe import describe
from harness.report.html.diagrams import block_diagram, gate_map, small_curve
from harness.report.html.pictures import Pictures
from harness.report.html.samples import Examples, load_examples, render_samples
from harness.report.html.templating import fill
from harness.report.intervals import with_intervals
from harness.report.plots.figures import make_figures, read_curve
from harness.report.plots.style import as_svg, dark_rules
from harness.report.rendering import DIVISIONS, divide, notes_on
from harness.report.tables import Table, build_tables


@dataclass(frozen=True)
class Group:
    """The cells of one task in a table. name: of its place on the page. shared: facts that all cells have in common."""

    name: str
    title: str
    shared: Mapping[str, str]
    cells: Sequence[Markup]


def build_report(
    store: Store,
    data_root: Path | None = None,
    all_protocols: bool = False,
    on_stage: Callable[[str], None] = lambda text: None,
) -> str:
    """The report as one HTML text.

    data_root: folder of the official data, for images beside predictions; the embedded benchmark needs none.
    on_stage: called with what is being made.

    Raises:
        UserError: the folder has no results, or protocols differ and `all_protocols` is not set.
    """
    records = store.records()
    if not records:
        raise UserError(f"{store.root}: no results in this folder; make some with `harness run`.")
    on_stage(f"tables of {counted(len(records), 'cell')}")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    figures: dict[str, list[Markup]] = {}
    for named in make_figures(store, tables, single=True):
        on_stage(f"figure {named.name}")
        figures.setdefault(named.table, []).append(_svg(named.figure, named.alternative))
    pictures = Pictures()
    shown = sum(len(table.records) for table in tables)
    examples: dict[str, Examples] = {}
    groups: list[Group] = []
    done = 0
    for table in tables:
        for task in table.tasks:
            cells = []
            own = _in_order(table, task.task)
            shared = _shared([list(describe(record)) for record in own])
            for record in own:
                done += 1
                on_stage(f"cell {done} of {shown}")
                data = f"{record.cell.task.name} {record.data.digest}"
                if data not in examples and record.status == "finished":
                    examples[data] = load_examples(record, data_root)
                cells.append(render_cell(store, record, examples.get(data, Examples({})), pictures, shared))
            title = table.title if len(table.tasks) == 1 else f"{task.header} on {_backbone(table)}"
            groups.append(Group(f"cells-{len(groups) + 1}", title, shared, cells))
    return fill(
        "page.html.j2",
        title="; ".join(table.title for table in tables),
        version=__version__,
        count=counted(shown, "cell"),
        unfinished=store.unfinished(),
        tables=[
            (f"table-{place}", table.title, render_table(table)) for place, table in enumerate(tables, 1)
        ],
        figures=[(f"figures-{place}", title, own) for place, (title, own) in enumerate(figures.items(), 1)],
        groups=groups,
        pictures=pictures.all,
        dark=Markup(dark_rules()),
    )


def render_table(table: Table) -> Markup:
    """Scores, then costs, as tables that can be sorted by their headings."""
    columns = select(table, Selection(intervals=True), "file")
    parts = divide(columns, DIVISIONS[1])
    return fill(
        "table.html.j2",
        parts=[("Costs" if part[-1].kind == "costs" else "Scores", *_rows(part)) for part in parts],
        notes=[note.text for note in notes_on(table, columns)],
    )


def _rows(columns: Sequence[Column]) -> tuple[list[str], list[list[tuple[str, str | float, str, bool]]]]:
    """Headers, and of each cell its header, sorting key, text, and whether it is bold."""
    rows = []
    for row in range(len(columns[0].texts)):
        cells = []
        for place, column in enumerate(columns):
            value, text = column.values[row], column.texts[row]
            key = text if place == 0 else value if isinstance(value, (int, float)) else ""
            cells.append((column.header, key, text, row in column.bold))
        rows.append(cells)
    return [column.header for column in columns], rows


def render_cell(
    store: Store, record: Record, examples: Examples, pictures: Pictures, shared: Mapping[str, str]
) -> Markup:
    """All about one cell, in a closed fold. shared: facts that are shown elsewhere."""
    cell = record.cell
    curve = read_curve(store, record)
    history = store.search_history(cell.id)
    samples, missing = Markup(), ""
    if record.status == "finished":
        try:
            samples = render_samples(store.predictions(cell.id), examples, pictures)
        except UserError as error:
            missing = str(error)
    return fill(
        "cell.html.j2",
        name=f"{cell.method.label}, seed {cell.seed}",
        score="failed" if record.primary is None else f"{cell.task.primary_metric} {record.primary:.2f}",
        facts=[(key, value) for key, value in describe(record) if shared.get(key) != value],
        choice=_choice(record),
        gates="" if history is None or history.trace is None else gate_map(history.trace),
        curves=[small_curve(values, column) for column, values in curve.columns.items()] if curve else [],
        finished=record.status == "finished",
        split=record.reported_split,
        samples=samples,
        missing=missing,
    )


def _shared(facts: Sequence[Sequence[tuple[str, str]]]) -> dict[str, str]:
    """Facts that all cells have in common, where there are several cells."""
    if len(facts) < 2:
        return {}
    common = set(facts[0]).intersection(*facts[1:])
    return dict(fact for fact in facts[0] if fact in common)


def _in_order(table: Table, task: str) -> list[Record]:
    """The cells of a task in the order of the table's rows, then by seed."""
    methods = list(table.frame["method"])
    own = [record for record in table.records if record.cell.task.name == task]
    return sorted(own, key=lambda r: (methods.index(r.cell.method.label), r.cell.seed))


def _backbone(table: Table) -> str:
    return str(table.frame["backbone"].iloc[0])


def _choice(record: Record) -> Markup:
    """Diagram of the blocks that a search skipped; empty for other cells."""
    diagram = None if record.search is None else record.search.diagram
    return Markup() if diagram is None else block_diagram(diagram.blocks, diagram.skipped)


_SHORTER = (
    (r"<metadata>.*?</metadata>", ""),
    (r"<style.*?</style>", ""),
    (r"font-family: [^;\"]*", "font-family: sans-serif"),
    (r'<g id="[^"]*"', "<g"),  # the same in all figures
    (r"(?<=[\d\w])\s*\n(?=[A-Za-z\"])", " "),
    (r">\s+<", "><"),
)
"""What a figure can do without on a page, and what replaces it."""


def _svg(figure: Figure, words: str) -> Markup:
    """The figure as an SVG element with words for those who do not see it."""
    text = as_svg(figure, "none")
    text = text[text.index("<svg") :]
    for pattern, replacement in _SHORTER:
        text = re.sub(pattern, replacement, text, flags=re.DOTALL)
    return Markup('<svg role="img" aria-label="{}"').format(words) + Markup(text.removeprefix("<svg"))
