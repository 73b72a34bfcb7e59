"""Types of settings: ranges, notation, and what depends on a setting."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, InstanceOf
from pydantic.fields import FieldInfo

from harness.errors import UserError
from harness.registry import read_specs
from harness.specs import Spec

LARGEST_SIDE = 2048
"""Pixels; larger numbers are taken for typing errors."""


class Decides(Enum):
    """What depends on a setting."""

    PROTOCOL = "protocol"
    """Results are comparable only if it agrees; it is in the protocol under its own name."""
    CELL = "cell"
    """Another value gives another cell, which may be in the same table."""
    INDIRECT = "by what it names"
    """It chooses what is loaded; protocol and id contain digests, resolved options and sizes instead."""
    NOTHING = "–"
    """No result depends on it, apart from rounding."""


@dataclass(frozen=True)
class About:
    """Properties of a field besides type, default and description.

    local: it names something on this machine; records do not keep it.
    unset: what None stands for.
    """

    decides: Decides
    local: bool = False
    unset: str = ""


@dataclass(frozen=True)
class Form:
    """How values of a type are written on the command line, and what an error message expects."""

    metavar: str
    expected: str


def about(field: FieldInfo) -> About:
    """The `About` of a field."""
    return next(item for item in field.metadata if isinstance(item, About))


def _parts(value: object) -> object:
    """A tuple from comma-separated text, from one value, or from another sequence."""
    if isinstance(value, str):
        return tuple(_number(part.strip()) for part in value.split(",")) if value.strip() else ()
    return tuple(map(as_python, value)) if isinstance(value, Iterable) else (value,)


def as_python(value: Any) -> Any:
    """Convert NumPy's numbers and arrays to Python's numbers and lists; return anything else unchanged."""
    return value.tolist() if hasattr(value, "tolist") else value


def _number(text: str) -> int | float | str:
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError
    return values


def _size(value: object) -> object:
    """`384x576`, or a pair."""
    if isinstance(value, str):
        height, _, width = value.partition("x")
        return (int(height), int(width)) if height.isdecimal() and width.isdecimal() else value
    return tuple(value) if isinstance(value, list) else value


def _path(value: object) -> object:
    return Path(_at_home(value)) if isinstance(value, str | Path) and str(value) else value


def _at_home(value: str | Path) -> str:
    """`value` with `~` and `~user` expanded."""
    text = os.path.expanduser(value)  # noqa: PTH111 - pathlib's raises a RuntimeError
    if text.startswith("~"):
        raise ValueError(f"there is no home folder for '{text}'.")
    return text


def _roots(value: object) -> object:
    """A path, or `((task, path), …)` from a table or from `vqa=/a,nlvr2=/b`."""
    if isinstance(value, str) and all(re.match(r"\w+=.", part) for part in value.split(",")):
        pairs = [part.split("=", 1) for part in value.split(",")]
        if len({task for task, _ in pairs}) < len(pairs):
            raise ValueError("names a task twice.")
        value = dict(pairs)
    if isinstance(value, Mapping):
        return tuple((str(task), _path(path)) for task, path in value.items())
    return _path(value)


def _place(value: object) -> object:
    """Weights stay text, as they may also be a hub id or `random`."""
    return _at_home(value) if isinstance(value, str | Path) else value


def specs_of(kind: Literal["methods", "tasks"]) -> BeforeValidator:
    def read(value: object) -> object:
        try:
            return tuple(read_specs(value, kind))
        except UserError as error:  # pydantic passes on a ValueError with the name of its field
            raise ValueError(str(error)) from None

    return BeforeValidator(read)


Count = Annotated[int, Field(ge=1)]
MicroBatch = Annotated[Count | Literal["auto"], Form("N|auto", "a whole number of at least 1, or auto")]
Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
LocalPath = Annotated[Path, BeforeValidator(_path), Form("PATH", "a path")]
DataRoots = Annotated[
    Path | tuple[tuple[str, Path], ...],
    BeforeValidator(_roots),
    Form("PATH|TASK=PATH,…", "a path, or a path for each task, such as vqa=/a,nlvr2=/b"),
]
Place = Annotated[str, Field(min_length=1), BeforeValidator(_place), Form("PATH|NAME", "a path or a name")]
ImageSize = Annotated[
    tuple[Side, Side],
    BeforeValidator(_size),
    Form("HEIGHTxWIDTH", f"HEIGHTxWIDTH, each from 1 to {LARGEST_SIDE} pixels, such as 384x576"),
]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    Field(min_length=1),
    BeforeValidator(_parts),
    AfterValidator(_different),
    Form("N,N,…", "one or more different whole numbers of at least 0"),
]
Betas = Annotated[
    tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
    BeforeValidator(_parts),
    Form("N,N", "two numbers of at least 0 and less than 1"),
]
Tracker = Literal["csv", "tensorboard", "mlflow", "wandb"]
Trackers = Annotated[
    tuple[Tracker, ...],
    BeforeValidator(_parts),
    Form("NAME,NAME,…", f"names among {', '.join(get_args(Tracker))}"),
]
Specs = Annotated[tuple[InstanceOf[Spec], ...], Field(min_length=1)]
CachePrecision = Literal["full", "half"]
