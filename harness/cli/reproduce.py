"""`harness reproduce`: run a record's cell again and compare the figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.locations import DataRoot, Tokenizer, Weights


def reproduce(
    record: Annotated[
        str, typer.Argument(help="A record.json, a cell's folder, or the first characters of a cell id.")
    ],
    results: Annotated[
        Path, typer.Option("--results", "-r", help="Results folder, if an id is given.")
    ] = Path("results"),
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Results folder for the new run; default: a temporary one."),
    ] = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
) -> None:
    """Run a record's cell again with the settings it stores and compare figure by figure.

    Other weights or data are refused; differences of code, versions and hardware are printed. Times are shown but
    not compared. Exit status 1: a figure differs.
    """
    import tempfile

    from rich.table import Table
    from rich.text import Text

    from harness.experiment.progress import ProgressReporter, make_console
    from harness.experiment.reproduce import compare, differences, find_record, open_cell, run_again
    from harness.process import Interrupts, prepare_process

    prepare_process()
    console = make_console()
    folder, found = find_record(record, results)
    cell = open_cell(found, data_root, weights, tokenizer)
    for line in differences(found, cell):
        console.print(f"not as recorded: {line}", style="yellow", markup=False, soft_wrap=True)
    with (
        tempfile.TemporaryDirectory() as scratch,
        Interrupts() as interrupts,
        ProgressReporter(console, [cell], interrupts) as reporter,
    ):
        again = run_again(found, cell, folder, output or Path(scratch), reporter)
        report = compare(folder, found, again)
    grid = Table("figure", "recorded", "again", "", box=None, pad_edge=False, header_style="dim")
    for figure in report.figures:
        grid.add_row(
            figure.name, figure.recorded, figure.again, Text("" if figure.same else "differs", "red")
        )
    for time in report.times:
        grid.add_row(Text(time.name, "dim"), time.recorded, time.again, Text("not compared", "dim"))
    console.print(grid)
    different = [figure.name for figure in report.figures if not figure.same]
    if different:
        console.print(f"differ: {', '.join(different)}", markup=False, soft_wrap=True)
        raise typer.Exit(1)
    console.print(f"all {len(report.figures)} figures agree")
