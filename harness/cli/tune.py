"""`harness tune`: choose every method's learning rate on validation data, then run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli.settings_options import with_settings

if TYPE_CHECKING:
    from harness.config import RunSettings
    from harness.records.record import Record


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
    tune_on: Annotated[
        str | None,
        typer.Option(
            "--tune-on", help="Tune on this task alone, for all tasks. By default each has rates of its own."
        ),
    ] = None,
    extend: Annotated[
        int,
        typer.Option(
            "--extend",
            min=0,
            help="How often to try the next multiple for a method whose best one is the largest or smallest.",
        ),
    ] = 0,
    **settings: Any,
) -> None:
    """Train every method with several learning rates, choose the best on validation data, and run with it.

    The tuning runs are kept in the folder tuning of the results. Tables say below what was chosen and what it cost. The
    same command continues an interrupted one.
    """
    from harness.cli.terminal import run_and_show
    from harness.config.sources import build_settings, from_file, from_flags
    from harness.experiment.tuning import tune as run_tuned

    given = from_flags({key: value for key, value in settings.items() if value is not None})
    sources = [given] if experiment is None else [from_file(experiment), given]

    def run(tuned: RunSettings, *, latencies: bool) -> list[Record]:
        training = tuned.training
        rates = (
            f"{training.learning_rate_scale:g} times the default" if training.tuned_rates is None else "tuned"
        )
        typer.echo(f"{rates} learning rates, {tuned.output.results}")
        records: list[Record] = []
        if status := run_and_show(tuned, False, records, latencies):
            raise typer.Exit(status)
        return records

    scales = _read("--learning-rates", learning_rates, float)
    run_tuned(
        build_settings(*sources), scales, _read("--tuning-seeds", tuning_seeds, int), run, tune_on, extend
    )


def _read(flag: str, text: str, kind: type[Any]) -> list[Any]:
    """Numbers separated by commas.

    Raises:
        UserError: they are not numbers.
    """
    from harness.errors import UserError

    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"{flag}: must be numbers separated by commas, not '{text}'.") from None
