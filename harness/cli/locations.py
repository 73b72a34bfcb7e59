"""Places on this machine: options of several commands for a stored cell's data and weights, and `~` in all paths."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypeVar, cast

import typer

from harness.folders import home_expanded

DataRoot: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Folder of the official data, for cells not trained on the embedded benchmark."),
]
Weights: TypeAlias = Annotated[
    str | None, typer.Option(help="Pretrained weights, as given to `harness run`.")
]
Tokenizer: TypeAlias = Annotated[str | None, typer.Option(help="Vocabulary, as given to `harness run`.")]

CommandT = TypeVar("CommandT", bound=Callable[..., None])


def with_home(command: CommandT) -> CommandT:
    """A command whose paths may begin with `~`, also where the shell leaves that as it is (`--output=~/table.md`)."""

    @wraps(command)
    def run(**arguments: Any) -> None:
        command(**{name: _expanded(value) for name, value in arguments.items()})

    return cast(CommandT, run)


def _expanded(value: Any) -> Any:
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return home_expanded(value) if isinstance(value, Path) else value
