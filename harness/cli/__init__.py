"""The command line: one subcommand per file; heavy imports are inside the subcommands."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from harness import __version__
from harness.cli.boundary import run_command

app = typer.Typer(
    help="Benchmark parameter- and computation-efficient transfer learning of vision-language models.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"petl-harness {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the subcommand."""


def _register() -> None:
    from harness.cli.adopt import adopt
    from harness.cli.audit import audit
    from harness.cli.check import check
    from harness.cli.compare import compare
    from harness.cli.evaluate import evaluate
    from harness.cli.export import export
    from harness.cli.locations import with_home
    from harness.cli.methods import list_names, methods
    from harness.cli.plot import plot
    from harness.cli.pretrain import pretrain
    from harness.cli.profile import profile
    from harness.cli.report import report
    from harness.cli.reproduce import reproduce
    from harness.cli.run import run
    from harness.cli.score import score
    from harness.cli.settings_options import SettingsCommand
    from harness.cli.show import show
    from harness.cli.table import table
    from harness.cli.transfer import transfer
    from harness.cli.tune import tune

    commands: list[Callable[..., None]] = [
        *(run, tune, table, compare, plot, report, check, show, evaluate, reproduce, adopt, audit, export),
        *(transfer, profile, score, pretrain, methods),
    ]
    for command in commands:
        kind = SettingsCommand if command in (run, tune, audit) else None
        app.command(cls=kind)(with_home(command))
    app.command("list")(with_home(list_names))


_register()


def call(arguments: list[str] | None = None) -> int:
    """Run a command line, by default that of this process; returns its exit status (see `run_command`)."""
    if not (sys.argv[1:] if arguments is None else arguments):
        arguments = ["--help"]
    return run_command(partial(app, arguments, prog_name="harness", standalone_mode=False))


def main() -> None:
    """Entry point of the console script: every error is one line, and the exit status is 2 (see `run_command`)."""
    if not os.environ.get("TRANSFORMERS_VERBOSITY"):
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"  # its hints are about other programs than this
    os.environ["MPLBACKEND"] = "agg"  # figures go to files; a notebook's backend cannot be loaded here
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home folder it uses a temporary one
    raise SystemExit(call())
