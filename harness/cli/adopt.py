"""`harness adopt`: keep results of earlier code if a sample gives the same figures with the current code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli.locations import DataRoot, Tokenizer, Weights

if TYPE_CHECKING:
    from rich.console import Console

    from harness.experiment.adopt import Found, Stale
    from harness.experiment.plan import Cell
    from harness.records.record import Record
    from harness.records.store import Store


def adopt(
    results: Annotated[Path, typer.Argument(help="Results folder.")],
    sample: Annotated[int, typer.Option(min=1, help="Stale cells to run again.")] = 3,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed for drawing the sample; default: random.")
    ] = None,
    data_root: DataRoot = None,
    weights: Weights = None,
    tokenizer: Tokenizer = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the stale cells and stop.")] = False,
) -> None:
    """Keep results after a change of code that does not change results.

    A finished cell is stale if the current code would run the same configuration under another id. A sample of the
    stale cells, spread over the methods, is run again. If all figures and predictions agree, every stale cell moves to
    the current id, and its record names the sample. Otherwise nothing is changed. Exit status 1: a figure differs, or
    another run has started one of the cells.
    """
    import secrets
    import tempfile

    from harness.errors import UserError
    from harness.experiment import adopt as adopting
    from harness.experiment.progress import make_console
    from harness.experiment.reload import cell_of
    from harness.process import prepare_process
    from harness.records.store import Store

    prepare_process()
    console = make_console()
    store = Store(results)
    records = store.records()
    if not records:
        raise UserError(f"{results}: no results in this folder; create some with `harness run`.")

    def open_cell(record: Record) -> Cell:
        root = None if record.data.benchmark == "mini" else data_root
        return cell_of(record, root, weights, tokenizer, record.environment.device or "auto")

    found = adopting.find_stale(records, open_cell)
    chosen = secrets.randbelow(2**32) if seed is None else seed
    sampled = adopting.draw(found.stale, sample, chosen)
    _print_found(console, found, sampled, chosen)
    if dry_run:
        return
    adopting.clear_leftovers(store, found.leftovers)
    if not found.stale:
        return
    same = True
    with tempfile.TemporaryDirectory() as scratch:
        for each in sampled:
            same &= _comes_out_the_same(console, each, open_cell(each.record), store, Path(scratch))
    if not same:
        console.print("nothing was changed")
        raise typer.Exit(1)
    busy = adopting.adopt(store, found.stale, sampled, chosen)
    console.print(f"{len(found.stale) - len(busy)} cells adopted")
    if busy:
        console.print(f"left out because another run has started them: {', '.join(busy)}", soft_wrap=True)
        raise typer.Exit(1)


def _print_found(console: Console, found: Found, sampled: list[Stale], seed: int) -> None:
    from rich.table import Table
    from rich.text import Text

    for reason, cells in found.left_alone.items():
        shown = ", ".join(cells[:3]) + (", …" if len(cells) > 3 else "")
        console.print(f"left alone, {len(cells)} ({shown}): {reason}", markup=False, soft_wrap=True)
    if not found.stale:
        console.print("no stale cells")
        return
    grid = Table("stale", "today", "method", "task", "seed", "", box=None, pad_edge=False, header_style="dim")
    for each in found.stale:
        cell = each.cell
        mark = "sampled" if each in sampled else ""
        old = each.record.cell.id[:8]
        grid.add_row(old, cell.id[:8], Text(cell.method.label), cell.task.name, str(cell.seed), mark)
    console.print(grid)
    console.print(f"{len(found.stale)} stale cells, {len(sampled)} of them to run again (--seed {seed})")


def _comes_out_the_same(console: Console, stale: Stale, cell: Cell, store: Store, scratch: Path) -> bool:
    from rich.table import Table

    from harness.experiment.adopt import differing_figures
    from harness.experiment.progress import ProgressReporter
    from harness.experiment.reproduce import environment_differences, require_device
    from harness.process import Interrupts

    record = stale.record
    require_device(record)
    for line in environment_differences(record):
        console.print(f"not as recorded: {line}", style="yellow", markup=False, soft_wrap=True)
    with Interrupts() as interrupts, ProgressReporter(console, [cell], interrupts) as reporter:
        differing = differing_figures(stale, cell, store, scratch, reporter)
    name = f"{cell.label} on {cell.testbed.task.name}, seed {cell.seed}"
    if not differing:
        console.print(f"{name}: all figures and predictions agree", markup=False, soft_wrap=True)
        return True
    grid = Table("figure", "recorded", "again", box=None, pad_edge=False, header_style="dim")
    for figure in differing:
        grid.add_row(figure.name, figure.recorded, figure.again)
    console.print(f"{name} ({record.cell.id}) differs:", markup=False, soft_wrap=True)
    console.print(grid)
    return False
