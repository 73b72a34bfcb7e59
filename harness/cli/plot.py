"""`harness plot`: figures of a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def plot(
    results: Annotated[Path, typer.Argument(help="Results folder, as `harness run` writes it.")] = Path(
        "results"
    ),
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the figures [default: RESULTS/plots].")
    ] = None,
    costs: Annotated[
        str | None, typer.Option(help="Panels of accuracy against costs: flops, latency, parameters.")
    ] = None,
    all_protocols: Annotated[
        bool, typer.Option("--all-protocols", help="One set of figures per protocol where protocols differ.")
    ] = False,
) -> None:
    """Draw accuracy against costs, learning curves and the gates of searches, each as PNG and SVG."""
    from rich.console import Console

    from harness.records.store import Store
    from harness.report.plots.figures import write_figures

    chosen = tuple(filter(None, (costs or "").replace(" ", "").split(",")))
    with Console(stderr=True).status("reading the results") as status:
        paths = write_figures(
            Store(results), output or results / "plots", all_protocols, chosen, status.update
        )
    for path in paths:
        typer.echo(path)
