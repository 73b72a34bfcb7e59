"""`harness run`: methods × tasks × seeds on a backbone, then the table."""

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
    """Adapt a backbone to tasks by methods, measure what it costs, and print the table.

    The same command again keeps what is finished and resumes the rest. Every option is also a key of the
    experiment file's [run] table and a keyword of harness.run in Python. 'none' as the value of an option takes
    back what the file says.
    """
    from harness.cli.terminal import run_and_show
    from harness.config.sources import build_settings, from_file, from_flags

    given = from_flags({key: value for key, value in settings.items() if value is not None})
    sources = [given] if experiment is None else [from_file(experiment), given]
    raise typer.Exit(run_and_show(build_settings(*sources), dry_run))
