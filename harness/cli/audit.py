"""`harness audit`: test whether the choice of the skipped blocks changes the accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.settings_options import with_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.config import RunSettings
    from harness.records.record import Record


@with_settings
def audit(
    method: Annotated[
        str, typer.Argument(help="The method whose choice is audited: das, das[bottleneck=8].")
    ],
    skip: Annotated[str, typer.Option(help="How many blocks to skip; 2+2: two of each stream.")] = "2",
    sets: Annotated[
        int | None, typer.Option(min=2, help="Random sets to train [default: every possible set].")
    ] = None,
    experiment: Annotated[
        Path | None, typer.Option(help="TOML file whose [run] table has settings; options override it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the first plan and stop.")] = False,
    **settings: Any,
) -> None:
    """Train every set of skipped blocks with several seeds, and compare what a method and simple rules choose.

    The same command resumes an interrupted audit. It writes tables/audit-….md and .csv and a plot into the results
    folder. Settings are those of `harness run`; the methods follow from the argument.
    """
    from harness.cli.terminal import INTERRUPTED
    from harness.config.sources import build_settings, from_file, from_flags
    from harness.errors import UserError
    from harness.experiment.audit import Question, fitting_choosers, read_skip, run_audit
    from harness.report.audit import write_audit
    from harness.specs import parse_spec

    given = {key: value for key, value in settings.items() if value is not None}
    if "methods" in given:
        raise UserError("--methods: an audit runs the method named by its argument and that method's rivals.")
    question = Question(parse_spec(method), read_skip(skip), sets)
    sources = [from_flags({"tasks": "vqa", "seeds": "0,1,2"})]
    sources += [] if experiment is None else [from_file(experiment)]
    chosen = build_settings(*sources, from_flags({**given, "methods": method}))
    if dry_run:
        _run(chosen.model_copy(update={"methods": fitting_choosers(chosen, question)}), dry_run=True)
        return
    found = run_audit(chosen, question, _run)
    if found is None:
        raise typer.Exit(INTERRUPTED)
    name = f"audit-{question.spec.name}-{chosen.backbone}-{chosen.tasks[0].name}-skip{skip.replace('+', '-')}"
    title = f"{question.spec.name} on {chosen.tasks[0].name}, {chosen.backbone}, {skip} skipped"
    text, paths = write_audit(found, title, chosen.output.results, name)
    typer.echo(text)
    typer.echo("\n".join(map(str, paths)))


def _run(settings: RunSettings, dry_run: bool = False) -> Sequence[Record] | None:
    """The records of all cells of `settings`; None if they have not all come to their end."""
    from harness.api import carry_out, make_plan
    from harness.experiment.progress import ProgressReporter, make_console
    from harness.process import Interrupts, StopRequestedError

    console = make_console()
    plan = make_plan(settings)
    console.print(plan.summary, markup=False, soft_wrap=True)
    if dry_run:
        return None
    interrupts = Interrupts()
    try:
        with (
            interrupts,
            ProgressReporter(console, plan.cells, interrupts, remaining=plan.remaining()) as reporter,
        ):
            records = carry_out(plan, reporter, latencies=False)
            interrupts.check()
    except (KeyboardInterrupt, StopRequestedError):
        console.print("interrupted; the same command resumes where this one stopped")
        return None
    if len(records) < len(plan.cells):
        console.print(
            f"{len(records)} of {len(plan.cells)} cells have ended; the same command continues.", markup=False
        )
        return None
    return records
