"""`harness table`: tables of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def table(
    results: Annotated[Path, typer.Argument(help="Results folder, as `harness run` writes it.")] = Path(
        "results"
    ),
    format: Annotated[
        Literal["terminal", "github", "latex", "csv", "html", "svg"] | None,
        typer.Option("--format", "-f", help="Format; default: from the ending of --output, else terminal."),
    ] = None,
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="One table per protocol where protocols differ.")
    ] = False,
    columns: Annotated[
        str | None,
        typer.Option(help="Columns to show, such as vqa,updated,flops,latency; a wrong name lists all."),
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Show the 95 % interval of each score.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .md, .tex, .csv, .html or .svg.")
    ] = None,
) -> None:
    """Print the results of a folder as tables, one per backbone."""
    from rich.console import Console

    from harness.errors import UserError, counted
    from harness.files import write_atomically
    from harness.records.store import Store
    from harness.report.columns import Selection
    from harness.report.intervals import with_intervals
    from harness.report.rendering import Format, print_tables, render_all
    from harness.report.tables import build_tables

    endings: dict[str, Format] = {
        ".md": "github",
        ".tex": "latex",
        ".csv": "csv",
        ".html": "html",
        ".svg": "svg",
    }
    store = Store(results)
    records = store.records()
    if not records:
        raise UserError(f"{results}: no results in this folder; make some with `harness run`.")
    if output is not None and format == "terminal":
        raise UserError(f"--output {output}: a file needs a format other than terminal.")
    if output is not None and format is None and output.suffix not in endings:
        raise UserError(f"--output {output}: unknown ending; use {', '.join(endings)} or give --format.")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    selection = Selection(tuple(filter(None, (columns or "").replace(" ", "").split(","))), intervals)
    chosen = endings[output.suffix] if format is None and output is not None else format
    if chosen is None or chosen == "terminal":
        print_tables(tables, Console(highlight=False), selection)
    elif output is None:
        typer.echo(render_all(tables, chosen, selection), nl=False)
    else:
        write_atomically(output, render_all(tables, chosen, selection).encode())
    if unfinished := store.unfinished():
        verb = "is" if unfinished == 1 else "are"
        typer.echo(f"{counted(unfinished, 'cell')} {verb} unfinished and not in the table.", err=True)
