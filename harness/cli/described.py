"""Options of methods and tasks in words: meaning, default and allowed values."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from harness.options import format_value

_ENTRY = re.compile(r"([a-z_]\w*(?:, [a-z_]\w*)*): (.*)")


@dataclass(frozen=True)
class Option:
    """One option of a method or task, in words. `meaning` has a line of its own for each item of a list."""

    name: str
    default: str
    allowed: str
    meaning: str


def options_of(options_class: type[Any]) -> Iterator[Option]:
    """The fields of an options dataclass, with what its docstring says of them."""
    meanings = _meanings(options_class)
    hints = get_type_hints(options_class)
    for field in fields(options_class):
        default = "required" if field.default is MISSING else format_value(field.default)
        allowed = _allowed(options_class, field, hints[field.name])
        yield Option(field.name, default, allowed, meanings.get(field.name, ""))


def _meanings(options_class: type[Any]) -> Mapping[str, str]:
    """Entries `name: text` of the docstrings of a class and its base classes, where an entry ends at the next one."""
    found: dict[str, str] = {}
    for each in reversed(options_class.__mro__):
        names: list[str] = []
        for line in inspect.cleandoc(each.__dict__.get("__doc__") or "").splitlines():
            entry = _ENTRY.fullmatch(line)
            if entry is not None:
                names = entry[1].split(", ")
                found |= dict.fromkeys(names, entry[2])
            elif line.startswith(" "):
                start = "\n" if line.strip().startswith("- ") else " "
                found |= {name: f"{found[name]}{start}{line.strip()}" for name in names}
            elif line:
                names = []
    return found


def _allowed(options_class: type[Any], field: Field[Any], hint: Any) -> str:
    """What a value may be: choices, or the kind of value and the least one that the class accepts."""
    parts = get_args(hint) if get_origin(hint) is not None and _is_union(hint) else (hint,)
    texts = [_kind(options_class, field.name, part) for part in parts if part is not type(None)]
    return " or ".join([*texts, *(["none"] if type(None) in parts else [])])


def _is_union(hint: Any) -> bool:
    return get_origin(hint) is Union or type(hint).__name__ == "UnionType"


def _kind(options_class: type[Any], name: str, hint: Any) -> str:
    if get_origin(hint) is Literal:
        return ", ".join(format_value(choice) for choice in get_args(hint))
    if get_origin(hint) is tuple:
        return "values joined by +"
    if hint is bool:
        return "true, false"
    if hint is int:
        least = next((value for value in range(-1, 100) if _accepts(options_class, name, value)), -1)
        return "whole number" if least == -1 else f"whole number ≥ {least}"
    if hint is float:
        above = (
            ""
            if _accepts(options_class, name, -1.0)
            else " ≥ 0"
            if _accepts(options_class, name, 0.0)
            else " > 0"
        )
        below = (
            ""
            if _accepts(options_class, name, 2.0)
            else " ≤ 1"
            if _accepts(options_class, name, 1.0)
            else " < 1"
        )
        return f"number{above}{' and' if above and below else ''}{below}"
    return "text"


def _accepts(options_class: type[Any], name: str, value: float) -> bool:
    """Whether the class accepts a value beside the defaults of the other options."""
    try:
        options_class(**{name: value})
    except Exception:
        return False
    return True
