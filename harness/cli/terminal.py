"""Interactive runs: plan, progress and final table."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from harness.api import Plan, carry_out, make_plan
from harness.config import RunSettings
from harness.errors import counted
from harness.experiment.estimate import duration
from harness.experiment.progress import ProgressReporter, make_console, name_of
from harness.experiment.requirements import describe
from harness.files import write_atomically
from harness.process import REQUESTS, TERMINATED, Interrupts, StopRequestedError
from harness.records.record import Record
from harness.records.store import Store
from harness.report.intervals import with_intervals
from harness.report.rendering import Format, print_tables, render_all
from harness.report.tables import build_tables

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells use it."""


FORMATS: dict[Format, str] = {"github": "md", "latex": "tex", "csv": "csv", "html": "html"}


def run_and_show(
    settings: RunSettings, dry_run: bool, found: list[Record] | None = None, latencies: bool = True
) -> int:
    """Plan, run, measure and print the table.

    found: is given the records of all finished cells.
    latencies: False leaves out the measurement of latencies.

    Returns the exit status: 0, 1 if a cell failed, 130 after Ctrl-C, or 143 after SIGTERM.

    Raises:
        UserError: something the user must fix.
    """
    console = make_console()
    with console.status("loading the backbone") if console.is_terminal else nullcontext():
        plan = make_plan(settings)
    follows = plan.ranks is not None and plan.ranks.rank > 0
    if follows:  # rank 0 prints for all
        console = Console(quiet=True)
    _print_plan(console, plan)
    if dry_run:
        real = [cell for cell in plan.to_run if not cell.testbed.embedded]  # mini needs next to nothing
        for line in describe(real) if real else []:
            console.print(line, markup=False, soft_wrap=True)
        return 0
    interrupts = Interrupts()
    interrupted = False
    try:
        with (
            REQUESTS.listening(),
            interrupts,
            ProgressReporter(console, plan.cells, interrupts, remaining=plan.remaining()) as reporter,
        ):
            carry_out(plan, reporter, reporter.latency, latencies)
            interrupts.check()
    except KeyboardInterrupt:
        interrupted = True
    except StopRequestedError as stop:
        print(f"harness: {stop}: interrupted, will resume; the same command continues", file=sys.stderr)
        return TERMINATED
    if follows:
        return 0
    store = plan.store
    records = [store.record(cell.id) for cell in plan.cells if store.finished(cell.id)]
    if found is not None:
        found += records
    if records:
        show_tables(records, store, console)
    if interrupted:
        jobs = settings.slurm.launcher == "slurm"
        then = (
            "the jobs continue; the same command follows them again"
            if jobs
            else ("the same command resumes where this one stopped")
        )
        print(f"harness: interrupted; {then}", file=sys.stderr)
        return INTERRUPTED
    failed = [cell for cell in plan.cells if not store.finished(cell.id)]
    if failed and settings.slurm.launcher == "slurm" and not settings.slurm.wait:
        console.print(
            "The same command shows how the jobs stand; with --wait it follows them.", soft_wrap=True
        )
        return 0
    for cell in failed:
        console.print(f"[not finished] {name_of(cell)}: see {store.folder(cell.id)}", markup=False)
    if records:
        _print_next(console, records, store)
    return 1 if failed else 0


def _print_next(console: Console, records: Sequence[Record], store: Store) -> None:
    """Commands that continue from the results."""
    folder = shlex.quote(str(store.root))
    labels = list(dict.fromkeys(record.cell.method.label for record in records if record.primary is not None))
    commands = [
        (f"harness table {folder} --intervals", "this table again; --help has columns and formats"),
        (f"harness report {folder}", "tables, figures and predictions on one HTML page"),
    ]
    if len(labels) > 1:
        pair = " ".join(map(shlex.quote, (labels[-1], labels[0])))
        commands.append((f"harness compare {pair} -r {folder}", "is their difference significant?"))
    width = max(len(command) for command, _ in commands)
    console.print("\nNext:")
    for command, purpose in commands:
        console.print(f"  {command:<{width}}  {purpose}", markup=False, soft_wrap=True)


def show_tables(records: Sequence[Record], store: Store, console: Console) -> None:
    """Print the tables of `records` and save them in all formats in the results folder.

    A task that was run with several sets of options has one table for each.
    """
    tables = [with_intervals(each, store) for each in build_tables(records, all_protocols=True)]
    for form, suffix in FORMATS.items():  # first, as nothing that happens to the output may lose them
        write_atomically(store.tables / f"latest.{suffix}", render_all(tables, form).encode())
    console.print()
    print_tables(tables, console)
    console.print(
        f"\nRecords in {store.cells}, this table in {store.tables}/latest.{{{','.join(FORMATS.values())}}}",
        style="dim",
        soft_wrap=True,
    )


def _print_plan(console: Console, plan: Plan) -> None:
    for testbed in plan.testbeds:
        splits = testbed.data.splits
        what = "the embedded mini benchmark" if testbed.embedded else str(testbed.data_root)
        counts = ", ".join(f"{len(splits[split])} {split}" for split in ("train", "val", "test"))
        console.print(
            f"{testbed.task.name} on {what}: {counts}; {counted(testbed.training.epochs, 'epoch')} of batches of "
            f"{testbed.training.batch_size}, backbone {testbed.backbone_name}, {testbed.training.precision}",
            soft_wrap=True,
            markup=False,
        )
    grid = Grid(box=None, pad_edge=False, header_style="dim")
    for header in ("cell", "method", "task", "seed", "state", "estimate"):
        grid.add_column(header, justify="right" if header in ("seed", "estimate") else "left")
    for cell in plan.cells:
        state = "finished" if cell.id in plan.kept else "stale" if cell.id in plan.stale else "to run"
        if cell.id not in plan.kept and plan.store.checkpoint(cell.id).is_dir():
            state = "to resume"
        when = "–" if cell.id in plan.kept else duration(plan.estimates[cell.id].total)
        grid.add_row(cell.id[:8], Text(cell.label), cell.testbed.task.name, str(cell.seed), state, when)
    console.print(grid)
    if plan.stale:
        console.print(
            f"stale: finished with other code. They run again; `harness adopt {plan.store.root}` may avoid that.",
            markup=False,
            soft_wrap=True,
        )
    console.print(f"{plan.summary}\n", markup=False)
