"""Tables as text: for a terminal (or a picture of one), GitHub, LaTeX, CSV and HTML."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import pandas as pd
from tabulate import tabulate

from harness.report.tables import Table, Value

if TYPE_CHECKING:
    from rich.console import Console


Format = Literal["github", "latex", "csv", "html", "svg"]


_PICTURE_WIDTH = 116  # characters


@dataclass(frozen=True)
class Column:
    """A column as it is shown. best: which end is bold, if any. terminal: shown where room is scarce."""

    header: str
    values: Sequence[Value]
    texts: Sequence[str]
    best: Literal["max", "min"] | None = None
    terminal: bool = False

    @property
    def width(self) -> int:
        """On a terminal: headers break between words, numbers never."""
        return max(map(len, (*self.texts, *self.header.split())))

    def bold(self) -> set[int]:
        """Rows to be printed bold: whose first number reads as the best's, unless all measured do."""
        numbers = [value for value in self.values if isinstance(value, (int, float))]
        if self.best is None or not numbers:
            return set()
        read = [re.split("[ ±]", text)[0] for text in self.texts]
        best = read[list(self.values).index(max(numbers) if self.best == "max" else min(numbers))]
        rows = {row for row, text in enumerate(read) if text == best}
        return rows if len(rows) < len(numbers) else set()


def render(table: Table, form: Format) -> str:
    """A table as text: `github` and `html` with title and notes, `latex` for booktabs, `csv` numbers only, `svg`
    the terminal's table as a picture.
    """
    if form == "svg":
        return _picture([table])
    if form == "csv":
        return str(table.frame.to_csv(index=False))
    columns = columns_of(table)
    escape, embolden = _MARKUP[form]
    rows = [
        [
            embolden(escape(column.texts[row])) if row in column.bold() else escape(column.texts[row])
            for column in columns
        ]
        for row in range(len(table.frame))
    ]
    headers = [escape(column.header) for column in columns]
    title, notes = escape(table.title), [escape(note) for note in table.notes]
    align = ["left", *["right"] * (len(columns) - 1)]
    if form == "latex":
        lines = [
            f"% {table.title}",
            rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
            r"\toprule",
            *(" & ".join(line) + r" \\" for line in [headers]),
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in rows),
            r"\bottomrule",
            r"\end{tabular}",
            *(rf"\par\footnotesize {note}" for note in notes),
        ]
        return "\n".join(lines) + "\n"
    if form == "html":
        body = tabulate(rows, headers, tablefmt="unsafehtml", disable_numparse=True, colalign=align)
        paragraphs = "\n".join(f"<p>{note}</p>" for note in notes)
        return f"<h3>{title}</h3>\n{body}\n{paragraphs}\n"
    body = tabulate(rows, headers, tablefmt="github", disable_numparse=True, colalign=align)
    return f"### {title}\n\n{body}\n\n" + "".join(f"{note}  \n" for note in notes)


def render_all(tables: Sequence[Table], form: Format) -> str:
    """All tables as one text; as CSV one frame, told apart by its columns `table` and `backbone`."""
    if form == "svg":
        return _picture(tables)
    if form == "csv":
        return str(pd.concat([table.frame for table in tables]).to_csv(index=False))
    return "\n".join(render(table, form) for table in tables)


def _picture(tables: Sequence[Table]) -> str:
    """What a terminal shows, as SVG with its fonts named, not embedded."""
    from rich.console import Console

    console = Console(record=True, width=_PICTURE_WIDTH, file=io.StringIO(), highlight=False)
    for table in tables:
        print_table(table, console)
    return console.export_svg(title="harness table", unique_id="table")


def print_table(table: Table, console: Console) -> None:
    """The most important columns on a terminal, in at most 100 characters where labels are not long."""
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    wanted = [column for column in columns_of(table) if column.terminal]
    columns = _fitting(wanted, console.width)
    grid = Grid(title=Text(table.title), title_justify="left", box=box.SIMPLE_HEAD, show_edge=False)
    grid.padding = (0, 1, 0, 0)
    for index, column in enumerate(columns):
        grid.add_column(Text(column.header), justify="right" if index else "left", width=column.width)
    for row in range(len(table.frame)):
        grid.add_row(*(Text(column.texts[row], "bold" if row in column.bold() else "") for column in columns))
    console.print(grid)
    for note in table.notes:
        console.print(Text(note, "dim"))
    shown = {column.header for column in columns}
    if left_out := [column.header for column in wanted if column.header not in shown]:
        console.print(Text(f"No room in {console.width} characters for: {', '.join(left_out)}.", "dim"))


def _without(start: str) -> Callable[[list[Column]], list[Column]]:
    return lambda columns: [column for column in columns if not column.header.startswith(start)]


def _without_spaces(columns: list[Column]) -> list[Column]:
    return [replace(each, texts=[text.replace(" ± ", "±") for text in each.texts]) for each in columns]


_NARROWER = (
    *(_without("Tuned file"), _without("95 % interval"), _without("Training memory"), _without_spaces),
    *map(_without, ("Average", "Δ full", "Latency", "FLOPs", "Updated")),
)
"""What is done to the columns, one after the other, until they fit."""


def _fitting(columns: list[Column], room: int) -> list[Column]:
    """Without what a narrow terminal has no room for; a table cut in words or numbers is no table."""
    for narrower in _NARROWER:
        if sum(column.width + 2 for column in columns) <= room:
            break
        columns = narrower(columns)
    return columns


def columns_of(table: Table) -> list[Column]:
    rows = table.frame.to_dict("records")

    def column(
        header: str,
        key: str,
        form: Callable[[float], str],
        best: Literal["max", "min"] | None = None,
        terminal: bool = False,
    ) -> Column:
        values = [row[key] for row in rows]
        return Column(header, values, [_text(value, form) for value in values], best, terminal)

    columns = [Column("Method", [None] * len(rows), [row["method"] for row in rows], terminal=True)]
    parameter_keys = ("updated_parameters", "common_and_head_parameters")
    unit, size = _unit([row[key] for row in rows for key in parameter_keys], ("K", 1e3), ("M", 1e6), 5e4)
    columns += [
        column(f"Updated ({unit})", parameter_keys[0], _scaled_to(size), terminal=True),
        column(f"Common+head ({unit})", parameter_keys[1], _scaled_to(size)),
    ]
    for task in table.tasks:
        header = task.header if len(table.tasks) > 1 else task.metric.replace("_", " ").capitalize()
        scores = column(header, task.key, _fixed, "max" if task.higher_is_better else "min", terminal=True)
        spreads = [row[f"{task.key}_sd"] for row in rows]
        texts = [
            text if spread is None else f"{text} ± {spread:.2f}"
            for text, spread in zip(scores.texts, spreads, strict=True)
        ]
        columns.append(replace(scores, texts=texts))
        if any(row.get(f"{task.key}_low") is not None for row in rows):
            bounds = [_bounds(row[f"{task.key}_low"], row[f"{task.key}_high"]) for row in rows]
            name = "95 % interval" if len(table.tasks) == 1 else f"{task.header} 95 % interval"
            columns.append(Column(name, [None] * len(rows), bounds, terminal=len(table.tasks) == 1))
    directions = {task.higher_is_better for task in table.tasks}
    if len(table.tasks) > 1:
        end: Literal["max", "min"] | None = "max" if directions == {True} else "min"
        end = None if len(directions) > 1 else end
        columns.append(column("Average", "average", _fixed, end, terminal=True))
    if len({row["seeds"] for row in rows}) > 1:
        columns.append(column("Seeds", "seeds", "{:.0f}".format))
    unit, size = _unit([row["macs"] for row in rows], ("M", 1e6), ("G", 1e9), 1e9)
    interleaved = len({row["latency_interleaved_id"] for row in rows if row["latency_interleaved_id"]}) <= 1
    latency = column("Latency p50 / p90 (ms)", "latency_p50_ms", _short, "min" if interleaved else None, True)
    tails = [_text(row["latency_p90_ms"], _short) for row in rows]
    both = [
        p50 if not isinstance(value, float) else f"{p50} / {p90}"
        for value, p50, p90 in zip(latency.values, latency.texts, tails, strict=True)
    ]
    differences = column("Δ full (points)", "delta_vs_full", _signed, terminal=True)
    stars = ["*" if row.get("delta_significant") else "" for row in rows]
    marked = [text + star for text, star in zip(differences.texts, stars, strict=True)]
    columns += [
        replace(differences, texts=marked),
        column(f"FLOPs ({unit})†", "macs", _scaled_to(size), "min", terminal=True),
        column("ΔFLOPs (%)", "macs_change_percent", _signed),
        replace(latency, texts=both),
        column("ΔLatency (%)", "latency_change_percent", _signed),
        column("Training memory (MiB)", "peak_training_mib", _short, "min", terminal=True),
        column("Tuned file (MiB)", "tuned_file_mib", _short, "min", terminal=True),
        column("Training (ex/s)", "train_examples_per_second", _short, "max"),
    ]
    if any(row["search_share_percent"] is not None for row in rows):
        columns.append(column("Search share (%)", "search_share_percent", lambda value: f"{value:.0f}"))
    return columns


def _bounds(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _text(value: Value, form: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else form(value)


def _unit(
    values: Iterable[Value], small: tuple[str, float], large: tuple[str, float], least: float
) -> tuple[str, float]:
    """The large unit unless it would make the smallest number, zeros aside, less than `least`."""
    numbers = [value for value in values if isinstance(value, float) and value]
    return large if not numbers or min(numbers) >= least else small


def _scaled_to(size: float) -> Callable[[float], str]:
    return lambda value: f"{value / size:.2f}" if value else "0"


def _fixed(value: float) -> str:
    return f"{value:.2f}"


def _signed(value: float) -> str:
    rounded = round(value, 2)
    return f"{rounded:+.2f}" if rounded else "0.00"


def _short(value: float) -> str:
    """Three significant digits, or all of the whole part."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
    **{"±": r"$\pm$", "Δ": r"$\Delta$", "†": r"$^\dagger$", "×": r"$\times$", "–": "--", "…": r"\dots{}"},
}


def _escape_latex(text: str) -> str:
    signed = re.fullmatch(r"([+-])(\d[^*]*)(\*?)", text)
    if signed is not None:
        return f"${signed[1]}${signed[2]}" + ("$^*$" if signed[3] else "")
    return "".join(_LATEX.get(character, character) for character in text)


def _escape_github(text: str) -> str:
    return re.sub(r"([|\\*_<`])", r"\\\1", text)


_MARKUP: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "github": (_escape_github, lambda text: f"**{text}**"),
    "latex": (_escape_latex, lambda text: rf"\textbf{{{text}}}"),
    "html": (html.escape, lambda text: f"<b>{text}</b>"),
}
"""How each format writes plain text, and bold."""
