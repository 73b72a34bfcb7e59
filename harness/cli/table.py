"""`harness table`: the records of a results folder as a table."""

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
        typer.Option("--format", "-f", help="By default what --output's ending says, else terminal."),
    ] = None,
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="Cells whose protocol differs get a table each.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write: .md, .tex, .csv, .html or .svg.")
    ] = None,
) -> None:
    """Put the results of a folder into tables, one a backbone."""
    from rich.console import Console

    from harness.errors import UserError
    from harness.files import write_atomically
    from harness.records.store import Store
    from harness.report.intervals import with_intervals
    from harness.report.rendering import Format, print_table, render_all
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
        raise UserError(f"{results}: no results in there; make some with `harness run`.")
    if output is not None and format == "terminal":
        raise UserError(f"--output {output}: a file needs a format other than terminal.")
    if output is not None and format is None and output.suffix not in endings:
        raise UserError(f"--output {output}: ends in none of {', '.join(endings)}; say --format.")
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols)]
    chosen = endings[output.suffix] if format is None and output is not None else format
    if chosen is None or chosen == "terminal":
        for each in tables:
            print_table(each, Console())
    elif output is None:
        typer.echo(render_all(tables, chosen), nl=False)
    else:
        write_atomically(output, render_all(tables, chosen).encode())
    if unfinished := store.unfinished():
        typer.echo(f"{unfinished} cells are unfinished and not in the table.", err=True)
