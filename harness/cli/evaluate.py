"""`harness evaluate`: evaluate a finished cell's tuned weights on its own or other data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.locations import Tokenizer, Weights


def evaluate(
    cell: Annotated[str, typer.Argument(help="Cell id, or its first characters.")],
    results: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    split: Annotated[
        str, typer.Option(help="val, test, or an official test split such as test-dev2015.")
    ] = "test",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of other official data for the same task.")
    ] = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    submission: Annotated[
        Path | None, typer.Option(help="File to write in the format of the official evaluation server.")
    ] = None,
) -> None:
    """Load a finished cell's tuned weights, predict, and print the metrics."""
    from harness.experiment.evaluate import evaluate_cell

    metrics = evaluate_cell(cell, results, split, data_root, weights, tokenizer, submission)
    for name, value in metrics.items():
        typer.echo(f"{name}\t{value:.4f}")
    if not metrics and submission is None:
        typer.echo("no annotations to score with; --submission FILE writes the predictions")
    if submission is not None:
        typer.echo(f"submission written to {submission}")
