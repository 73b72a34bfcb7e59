"""Options of methods and tasks: from text to the fields of a dataclass, and back."""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from harness.errors import UserError, did_you_mean

OptionsT = TypeVar("OptionsT")


_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")


def format_value(value: object) -> str:
    """A value as text in a spec: `true`, `none`, `3+7`, `0.1`, `auto`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "+".join(format_value(item) for item in value)
    return str(value)


def guess_value(text: str) -> str | int | float | bool:
    """Convert text whose type is not declared to the first of bool, int, float and str that fits."""
    for convert in (_boolean, _integer, _number):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def build_options(options_class: type[OptionsT], options: Mapping[str, str], where: str) -> OptionsT:
    """`options` as an instance of a dataclass, each value converted to its field's type.

    where: what the options belong to, as error messages name it: `lora`, `exp.toml: [methods.lora]`.

    Raises:
        UserError: an unknown option, a value of the wrong type, or one that the dataclass itself refuses.
    """
    hints = get_type_hints(options_class)
    known = {item.name: item for item in fields(options_class) if item.init}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for key, text in options.items():
        if key not in known:
            hint = did_you_mean(key, known) if known else " It has no options."
            raise UserError(f"{where}: no option '{key}'.{hint}")
        try:
            values[key] = _convert(text, hints[key])
        except ValueError as error:
            raise UserError(f"{where}: {key} must be {error}, not '{text}'.") from None
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{where}: {key} must be given.")
    try:
        return options_class(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _convert(text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`; a ValueError says what was expected."""
    if get_origin(hint) in (Union, types.UnionType):
        return _convert_union(text, get_args(hint))
    if get_origin(hint) is Literal:
        for choice in get_args(hint):
            if text == format_value(choice):
                return choice
        raise ValueError(f"one of {', '.join(format_value(choice) for choice in get_args(hint))}")
    if get_origin(hint) is tuple:
        return _convert_tuple(text, get_args(hint))
    if hint in _SIMPLE:
        return _SIMPLE[hint](text)
    raise TypeError(f"options of type {hint} cannot be written in a spec")


def _convert_union(text: str, alternatives: Sequence[Any]) -> Any:
    if types.NoneType in alternatives and text.lower() == "none":
        return None
    expected: list[str] = []
    for alternative in alternatives:
        if alternative is types.NoneType:
            continue
        try:
            return _convert(text, alternative)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join([*expected, *(["none"] if types.NoneType in alternatives else [])]))


def _convert_tuple(text: str, items: Sequence[Any]) -> tuple[Any, ...]:
    words = text.split("+") if text else []
    hints = [items[0]] * len(words) if items[1:] == (Ellipsis,) else list(items)
    if len(words) != len(hints):
        raise ValueError(f"{len(hints)} values joined by '+'")
    try:
        return tuple(_convert(word.strip(), hint) for word, hint in zip(words, hints, strict=True))
    except ValueError as error:
        raise ValueError(f"values joined by '+', each {error}") from None


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError("true or false")
    return text.lower() == "true"


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError("a whole number")
    return int(text)


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ValueError("a number") from None
    if not isfinite(value):
        raise ValueError("a finite number")
    return value


_SIMPLE: dict[Any, Callable[[str], Any]] = {
    bool: _boolean,
    int: _integer,
    float: _number,
    str: str,
    Path: Path,
}
