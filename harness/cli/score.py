"""`harness score`: score a prediction file against the official annotations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def score(
    task: Annotated[str, typer.Option(help="Task, such as vqa.")],
    predictions: Annotated[
        Path,
        typer.Option(
            help="A cell's predictions.jsonl, or an official submission file; either may be gzipped."
        ),
    ],
    annotations: Annotated[Path, typer.Option(help="Official annotation file, plain or gzipped.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Score the predictions even if some are missing.")
    ] = False,
) -> None:
    """Score a prediction file against an official annotation file; metrics in percent."""
    from harness.analysis.score_files import score_files

    scored = score_files(task, predictions, annotations, partial)
    for name, value in scored.metrics.items():
        typer.echo(f"{name}\t{value:.4f}")
    typer.echo(f"examples\t{scored.examples}")
    if scored.missing:
        typer.echo(f"{scored.missing} annotated examples have no prediction and are left out.", err=True)
    if scored.unknown:
        typer.echo(f"{scored.unknown} predictions have no annotation and are left out.", err=True)
