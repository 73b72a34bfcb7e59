"""`harness evaluate`: a finished cell's tuned weights on its data again, or on other data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    cell: Annotated[str, typer.Argument(help="The cell's id, or how it begins.")],
    results: Annotated[Path, typer.Option(help="Folder of the records.")] = Path("results"),
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    data_root: Annotated[
        Path | None, typer.Option(help="Other data than the cell was trained on, same task.")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="The backbone's weights, as given to `harness run`.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The vocabulary, as given to `harness run`.")] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Write the file that the official evaluation server takes.")
    ] = None,
) -> None:
    """Load a finished cell's tuned weights, predict, and print the metrics."""
    from harness.experiment.evaluate import evaluate_cell

    metrics = evaluate_cell(cell, results, split, data_root, weights, tokenizer, submission)
    for name, value in metrics.items():
        typer.echo(f"{name}\t{value:.4f}")
    if submission is not None:
        typer.echo(f"submission written to {submission}")
