"""Tables as text: for a terminal (or a picture of one), GitHub, LaTeX, CSV and HTML."""

from __future__ import annotations

import html
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
from tabulate import tabulate

from harness.errors import UserError
from harness.report.columns import Column, Kind, Selection, select
from harness.report.notes import Note
from harness.report.tables import Table
from harness.report.terminal import Shown, print_columns, room_of, width_of

if TYPE_CHECKING:
    from rich.console import Console


Format = Literal["github", "latex", "csv", "html", "svg"]

USUAL = Selection()

_PICTURE_WIDTH = 116  # characters


def render(table: Table, form: Format, selection: Selection = USUAL) -> str:
    """A table as text.

    `github` and `html` have all usual columns, title and notes. `latex` has the columns of the terminal, in one
    float for scores and one for costs; it needs the package booktabs. `csv` has all columns in full precision.
    `svg` is a picture of the terminal's table.

    Raises:
        UserError: no such column, or columns are chosen for `csv`.
    """
    return render_all([table], form, selection)


def render_all(tables: Sequence[Table], form: Format, selection: Selection = USUAL) -> str:
    """All tables as one text; as CSV one frame, with the columns `table` and `backbone` to tell them apart.

    Raises:
        UserError: no such column, or columns are chosen for `csv`.
    """
    if form == "csv":
        if selection.keys:
            raise UserError("--columns: CSV always has all columns.")
        return str(pd.concat([table.frame for table in tables]).to_csv(index=False))
    if form == "svg":
        return _picture(tables, selection)
    if form == "latex":
        return "\n".join(_latex(table, select(table, selection, "terminal")) for table in tables)
    shown = [(table, select(table, selection, "file")) for table in tables]
    notes = _distribute([notes_on(table, columns) for table, columns in shown])
    one = _github if form == "github" else _html
    return "\n".join(one(table, columns, own) for (table, columns), own in zip(shown, notes, strict=True))


def notes_on(table: Table, columns: Sequence[Column]) -> list[Note]:
    """Notes on the columns that are shown, and on the table as a whole."""
    shown = {column.key for column in columns}
    return [note for note in table.notes if not note.columns or shown.intersection(note.columns)]


def _distribute(notes: Sequence[Sequence[Note]]) -> list[list[str]]:
    """Texts of each table's notes; what is said of all tables is said once, below the last."""
    shared = [note for note in notes[-1] if all(note in own for own in notes)] if len(notes) > 1 else []
    found = [[note.text for note in own if note not in shared] for own in notes]
    found[-1] += [note.text for note in shared]
    return found


def _grid(columns: Sequence[Column], form: str) -> tuple[list[str], list[list[str]]]:
    """Headers and rows, escaped, with the best values bold."""
    escape, embolden = _MARKUP[form]
    cells = [
        [
            embolden(escape(text)) if row in column.bold else escape(text)
            for row, text in enumerate(column.texts)
        ]
        for column in columns
    ]
    return [escape(column.header) for column in columns], [list(row) for row in zip(*cells, strict=True)]


def _tabulated(columns: Sequence[Column], form: str, style: str) -> str:
    headers, rows = _grid(columns, form)
    align = ["left", *["right"] * (len(columns) - 1)]
    return tabulate(rows, headers, tablefmt=style, disable_numparse=True, colalign=align)


def _github(table: Table, columns: Sequence[Column], notes: Sequence[str]) -> str:
    lines = "".join(f"{_escape_github(note)}  \n" for note in notes)
    return f"### {_escape_github(table.title)}\n\n{_tabulated(columns, 'github', 'github')}\n\n{lines}"


def _html(table: Table, columns: Sequence[Column], notes: Sequence[str]) -> str:
    paragraphs = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    body = _tabulated(columns, "html", "unsafehtml")
    return f"<h3>{html.escape(table.title)}</h3>\n{body}\n{paragraphs}\n"


def _latex(table: Table, columns: Sequence[Column]) -> str:
    """One float for the scores and one for the costs, as far as there are columns of both."""
    parts = divide(columns, DIVISIONS[1])
    floats = []
    told: set[Note] = set()
    for part in parts:
        _, rows = _grid(part, "latex")
        kind = "" if len(parts) == 1 else "costs" if part[-1].kind == "costs" else "scores"
        notes = [note for note in notes_on(table, part) if note not in told]
        told.update(note for note in notes if not note.columns)
        caption = _escape_latex(f"{table.title}: {kind}" if kind else table.title)
        # Wide tables span both columns of a paper with two.
        environment = "table*" if width_of([_shown(column, True) for column in part]) > 60 else "table"
        lines = [
            "% needs \\usepackage{booktabs}",
            rf"\begin{{{environment}}}",
            r"\centering\small\setlength{\tabcolsep}{4pt}",
            rf"\caption{{{caption}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(part) - 1)}}}",
            r"\toprule",
            " & ".join(_latex_header(column) for column in part) + r" \\",
            r"\midrule",
            *(" & ".join(row) + r" \\" for row in rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par{{\footnotesize {_escape_latex(note.text)}\par}}" for note in notes),
            rf"\end{{{environment}}}",
        ]
        floats.append("\n".join(lines) + "\n")
    return "\n".join(floats)


def _latex_header(column: Column) -> str:
    """A header in as many lines as keep it about as narrow as the numbers below."""
    width = max(map(len, (*column.texts, *column.header.split())))
    lines = [_escape_latex(line) for line in textwrap.wrap(column.header, width, break_long_words=False)]
    return lines[0] if len(lines) == 1 else r"\shortstack[r]{" + r" \\ ".join(lines) + "}"


def divide(columns: Sequence[Column], kinds: Sequence[Sequence[Kind]]) -> list[list[Column]]:
    """A table for each group of kinds that has columns, each beginning with the method."""
    method, *others = columns
    groups = [[column for column in others if column.kind in group] for group in kinds]
    return [[method, *group] for group in groups if group] or [[method]]


def _picture(tables: Sequence[Table], selection: Selection) -> str:
    """What a terminal shows, as SVG with its fonts named, not embedded."""
    from rich.console import Console

    out = io.StringIO()
    console = Console(record=True, width=_PICTURE_WIDTH, file=out, highlight=False, force_terminal=True)
    print_tables(tables, console, selection)
    return console.export_svg(title="harness table", unique_id="table")


def print_tables(tables: Sequence[Table], console: Console, selection: Selection = USUAL) -> None:
    """Print tables on a terminal: in one piece if there is room, else the scores, then the costs.

    Raises:
        UserError: no such column.
    """
    from rich.text import Text

    chosen = [select(table, selection, "terminal") for table in tables]
    notes = _distribute([notes_on(table, columns) for table, columns in zip(tables, chosen, strict=True)])
    for table, columns, own in zip(tables, chosen, notes, strict=True):
        console.print(Text(table.title, "italic"), soft_wrap=True)
        for part in _fitting(columns, room_of(console)):
            print_columns(part, console)
        for note in own:
            console.print(Text(note, "dim"), soft_wrap=not console.is_terminal)


DIVISIONS: tuple[tuple[tuple[Kind, ...], ...], ...] = (
    (("scores", "summary", "costs"),),
    (("scores", "summary"), ("costs",)),
    (("scores",), ("summary",), ("costs",)),
)
"""Ways to divide a table, the first that fits is used."""


def _fitting(columns: Sequence[Column], room: float) -> list[list[Shown]]:
    """One table if it fits, if need be without blanks around ±; else one of scores and one of costs, or more."""
    for kinds in DIVISIONS:
        for narrow in (False, True):
            parts = [[_shown(column, narrow) for column in part] for part in divide(columns, kinds)]
            if all(width_of(part) <= room for part in parts):
                return parts
    return parts  # `print_columns` divides them further


def _shown(column: Column, narrow: bool) -> Shown:
    texts = [text.replace(" ± ", "±") for text in column.texts] if narrow else column.texts
    return Shown(column.header, texts, replace(column, texts=texts).bold)


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$^\dagger$", "‡": r"$^\ddagger$", "×": r"$\times$"},
    **{"–": "--", "—": "---", "…": r"\dots{}", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$"},
}
"""Characters with a meaning of their own in LaTeX, or that its standard fonts lack."""


def _escape_latex(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in text)
    signed = re.sub(r"(?<![\w.$])([+-])(?=\d)", r"$\1$", escaped)
    starred = re.sub(r"(?<=\d)\*", "$^*$", signed)
    # Other characters would stop LaTeX; Western European letters are fine.
    return "".join(
        each if each.isascii() or 0xC0 <= ord(each) <= 0xFF else f"[U+{ord(each):04X}]" for each in starred
    )


def _escape_github(text: str) -> str:
    return re.sub(r"([|\\*_<`])", r"\\\1", text)


_MARKUP: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "github": (_escape_github, lambda text: f"**{text}**"),
    "latex": (_escape_latex, lambda text: rf"\textbf{{{text}}}"),
    "html": (html.escape, lambda text: f"<b>{text}</b>"),
}
"""How each format writes plain text, and bold."""
