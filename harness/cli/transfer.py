"""`harness transfer`: evaluate what a cell has trained on another backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.locations import DataRoot


def transfer(
    cells: Annotated[list[str], typer.Argument(help="Cell ids, or their first characters.")],
    backbone: Annotated[str, typer.Option(help="The other backbone.")],
    results: Annotated[Path, typer.Option("--results", "-r", help="Results folder.")] = Path("results"),
    head: Annotated[
        str | None,
        typer.Option(
            help="A finished cell on the other backbone, whose head is used; default: one of classifier."
        ),
    ] = None,
    data_root: DataRoot = None,
    weights: Annotated[
        str | None, typer.Option(help="Pretrained weights of the other backbone, as given to `harness run`.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Vocabulary of the other backbone, as given to `harness run`.")
    ] = None,
) -> None:
    """Evaluate visual prompts on another backbone without tuning (methods vp and tvp).

    Prints the table of all transfers in the results folder and keeps it in tables/transfer.md.
    """
    from tabulate import tabulate

    from harness.experiment.transfer import HEADERS, table_rows, transfer_cell, transfers
    from harness.files import write_atomically
    from harness.process import prepare_process
    from harness.records.store import Store

    prepare_process()
    for cell in cells:
        transfer_cell(cell, backbone, results, head, data_root, weights, tokenizer)
    table = tabulate(table_rows(transfers(results)), HEADERS, tablefmt="github", disable_numparse=True)
    write_atomically(Store(results).tables / "transfer.md", f"{table}\n".encode())
    typer.echo(table)
    typer.echo("Scores on test, in percent. Nothing is tuned on the other backbone; its head is its own.")
