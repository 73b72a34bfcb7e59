"""`harness export`: write a cell's tuned weights for other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli.locations import DataRoot, Tokenizer, Weights


def export(
    cell: Annotated[str, typer.Argument(help="Cell id, or its first characters.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder to write.")],
    results: Annotated[Path, typer.Option("--results", "-r", help="Results folder.")] = Path("results"),
    format: Annotated[
        Literal["adapters", "peft"],
        typer.Option("--format", "-f", help="adapters: LoRA, adapter, parallel; peft: LoRA."),
    ] = "adapters",
    data_root: DataRoot = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Write a cell's tuned LoRA or adapter weights so that `adapters` or `peft` loads them on ViltModel."""
    from harness.experiment.export import export_cell
    from harness.process import prepare_process

    prepare_process()
    export_cell(cell, results, output, format, data_root, weights, tokenizer)
    typer.echo(f"written to {output}; its README.md shows how to load it")
