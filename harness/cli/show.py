"""`harness show`: a readable summary of one cell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.report.describe import describe


def show(
    cell: Annotated[str, typer.Argument(help="Cell id, or its first characters.")],
    results: Annotated[Path, typer.Option("--results", "-r", help="Results folder.")] = Path("results"),
) -> None:
    """Show a cell's settings, scores and costs."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from harness.records.store import Store

    store = Store(results)
    record = store.find(cell)
    grid = Table.grid(padding=(0, 2))
    for key, value in describe(record):
        grid.add_row(Text(key, "bold"), Text(value))
    grid.add_row(Text("files", "bold"), Text(str(store.folder(record.cell.id))))
    Console().print(grid)
