"""Command-line options generated from the declaration of the settings."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from harness.config.declared import SETTINGS, Declared
from harness.config.sources import flag_of
from harness.errors import UserError, did_you_mean

CommandT = TypeVar("CommandT", bound=Callable[..., None])


EXAMPLES = (
    (
        "harness run --methods full,lora,das --tasks vqa --seeds 0,1,2",
        "three methods on the embedded benchmark",
    ),
    (
        "harness run --methods full,lora --tasks vqa --backbone vilt --weights vilt_200k_mlm_itm.ckpt --data-root vqa2",
        "published weights and data",
    ),
    ("harness run experiment.toml --results results/mine --dry-run", "what an experiment file would run"),
)
"""Whole commands and what they do."""


class SettingsCommand(TyperCommand):
    """A command whose help groups the options, and that reports unknown options as a `UserError`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, the command's own options, then the settings by group."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                own = "Arguments" if parameter.param_type_name == "argument" else "Options"
                panel = getattr(parameter, "rich_help_panel", None) or own
                sections.setdefault(panel, []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Whole example commands."""
        with formatter.section("Examples"):
            formatter.write_dl([(command, f"\n{purpose}") for command, purpose in EXAMPLES])

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises `UserError` for an unknown option, or one that is given twice."""
        given = Counter(arg.partition("=")[0] for arg in args)
        for flag in (flag for each in self.params for flag in each.opts):
            if given[flag] > 1:
                raise UserError(f"{flag}: given twice; give it once, several values separated by commas.")
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if not hasattr(error, "possibilities"):  # only typer's NoSuchOption has them
                raise
            name = str(error.option_name)  # type: ignore[attr-defined]
            flags = [*map(flag_of, SETTINGS), *(flag for each in self.params for flag in each.opts)]
            raise UserError(f"{name}: no such setting.{did_you_mean(name, set(flags))}") from None


def with_settings(command: CommandT) -> CommandT:
    """Add an option for every setting to a command that takes settings as keywords; None: not given."""
    own = [
        parameter
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    parameters = [*own, *map(_parameter, SETTINGS.values())]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _parameter(declared: Declared) -> inspect.Parameter:
    flag, text = declared.flag, declared.description.rstrip(".")
    default = "" if declared.required else f" [default: {declared.default}]"
    shown: dict[str, Any] = {"help": f"{text}{default}", "rich_help_panel": declared.title}
    if declared.type is bool:
        option = typer.Option(f"{flag}/--no-{flag.removeprefix('--')}", **shown)
        annotation: Any = Annotated[bool | None, option]
    else:
        annotation = Annotated[str | None, typer.Option(flag, metavar=declared.metavar, **shown)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(declared.key, kind, default=None, annotation=annotation)
