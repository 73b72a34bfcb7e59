"""The types of settings: their ranges, how they are written, and what depends on them."""

from __future__ import annotations

import os
from collections.abc import Iterable
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
"""Pixels; what is more is taken for a typing error."""


class Decides(Enum):
    """What depends on a setting."""

    PROTOCOL = "protocol"
    """It must agree for two results to compare, and stands in the protocol under its own name."""
    CELL = "cell"
    """With another value it is another cell, which may still stand in the same table."""
    INDIRECT = "by what it names"
    """It chooses what is loaded; digests, resolved options and sizes stand in protocol and id instead of it."""
    NOTHING = "–"
    """No result depends on it, rounding aside."""


@dataclass(frozen=True)
class About:
    """What a field says beside its type, its default and its sentence.

    local: it names something on this machine. Records do not keep it; it is given anew.
    unset: what None stands for.
    """

    decides: Decides
    local: bool = False
    unset: str = ""


@dataclass(frozen=True)
class Form:
    """How values of a type are written on the command line, and what an error says was expected."""

    metavar: str
    expected: str


def about(field: FieldInfo) -> About:
    """What the declaration of a field says."""
    return next(item for item in field.metadata if isinstance(item, About))


def _parts(value: object) -> object:
    """A tuple from text with commas, from one value, or from any other sequence."""
    if isinstance(value, str):
        return tuple(_number(part.strip()) for part in value.split(",")) if value.strip() else ()
    return tuple(map(as_python, value)) if isinstance(value, Iterable) else (value,)


def as_python(value: Any) -> Any:
    """Numbers and arrays of numpy as Python's numbers and lists; anything else as it is."""
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
    """With `~` and `~user` replaced."""
    text = os.path.expanduser(value)  # noqa: PTH111 - pathlib's raises a RuntimeError
    if text.startswith("~"):
        raise ValueError(f"there is no home folder for '{text}'.")
    return text


def _place(value: object) -> object:
    """Weights may also be a hub id or `random`, so that they stay text."""
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
