"""`harness report`: write a results folder as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    results: Annotated[Path, typer.Argument(help="Results folder, as `harness run` writes it.")] = Path(
        "results"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write [default: RESULTS/report.html].")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Folder of the official data, to show images beside predictions."),
    ] = None,
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="One table per protocol where protocols differ.")
    ] = False,
) -> None:
    """Write tables, figures and all cells with sample predictions to one HTML page that needs no network."""
    from rich.console import Console

    from harness.files import require_writable, write_atomically
    from harness.records.store import Store
    from harness.report.html.page import build_report

    path = output or results / "report.html"
    if output is not None:
        require_writable(path)
    with Console(stderr=True).status("reading the results") as status:
        page = build_report(Store(results), data_root, all_protocols, status.update)
    write_atomically(path, page.encode())
    typer.echo(f"{path} ({len(page.encode()) / 1e6:.1f} MB)")
