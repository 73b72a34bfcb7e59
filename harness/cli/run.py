"""`harness run`: run methods × tasks × seeds on a backbone and print the table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.cli.settings_options import with_settings


@with_settings
def run(
    experiment: Annotated[
        Path | None, typer.Argument(help="TOML file with a [run] table; options override it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and stop.")] = False,
    **settings: Any,
) -> None:
    """Adapt a backbone to tasks by methods, measure the costs, and print the table.

    Running the same command again keeps finished cells and resumes the rest. Every option is also a key of the
    experiment file's [run] table and a keyword of harness.run in Python. The value 'none' resets an option that the
    file sets.
    """
    from harness.cli.terminal import run_and_show
    from harness.config.sources import build_settings, from_file, from_flags

    given = from_flags({key: value for key, value in settings.items() if value is not None})
    sources = [given] if experiment is None else [from_file(experiment), given]
    raise typer.Exit(run_and_show(build_settings(*sources), dry_run))
