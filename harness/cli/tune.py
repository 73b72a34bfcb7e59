"""`harness tune`: choose every method's learning rate on validation data, then run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.settings_options import with_settings


@with_settings
def tune(
    experiment: Annotated[
        Path | None, typer.Argument(help="TOML file with a [run] table; options override it.")
    ] = None,
    learning_rates: Annotated[
        str, typer.Option("--learning-rates", help="Multiples of each method's default learning rate.")
    ] = "0.5,1,2",
    tuning_seeds: Annotated[
        str, typer.Option("--tuning-seeds", help="Seeds of the tuning runs, other than those of the results.")
    ] = "1000",
    **settings: Any,
) -> None:
    """Train every method with several learning rates, choose the best on validation data, and run with it.

    The tuning runs are kept in the folder tuning of the results. Tables say below what was chosen and what it cost. The
    same command continues an interrupted one.
    """
    from harness.cli.terminal import run_and_show
    from harness.config.sources import build_settings, from_file, from_flags
    from harness.errors import UserError
    from harness.experiment.tuning import choose, tuned_settings, tuning_settings, write_choices
    from harness.records.record import Record
    from harness.records.store import Store

    given = from_flags({key: value for key, value in settings.items() if value is not None})
    sources = [given] if experiment is None else [from_file(experiment), given]
    wanted = build_settings(*sources)
    scales = _read("--learning-rates", learning_rates, float)
    runs = tuning_settings(wanted, scales, _read("--tuning-seeds", tuning_seeds, int))
    records: dict[float, list[Record]] = {}
    for scale, run in runs.items():
        typer.echo(f"tuning: {scale:g} times the default learning rates")
        records[scale] = []
        if status := run_and_show(run, False, records[scale]):
            raise typer.Exit(status)
        expected = len(run.methods) * len(run.tasks) * len(run.seeds)
        if len(records[scale]) < expected:
            raise UserError(
                f"{run.output.results}: {len(records[scale])} of {expected} tuning runs have finished; "
                "the same command continues."
            )
    choices = choose(records)
    write_choices(choices, Store(wanted.output.results))
    for run in tuned_settings(wanted, choices):
        if status := run_and_show(run, False):
            raise typer.Exit(status)


def _read(flag: str, text: str, kind: type[Any]) -> list[Any]:
    """Different positive numbers separated by commas.

    Raises:
        UserError: they are not.
    """
    from harness.errors import UserError

    try:
        values = [kind(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or len(set(values)) != len(values) or not all(0 <= v < float("inf") for v in values):
        raise UserError(f"{flag}: must be one or more different numbers, such as 0.5,1,2; not '{text}'.")
    if kind is float and 0 in values:
        raise UserError(f"{flag}: must be greater than 0, not '{text}'.")
    return values
