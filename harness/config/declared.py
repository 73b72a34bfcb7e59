"""The declaration of each setting: how it is written, what is expected, its default."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from harness.config import Group, RunSettings
from harness.config.types import About, Form, about


@dataclass(frozen=True)
class Declared:
    """One declared setting.

    group: the attribute of `RunSettings` that holds it; "" for a field of `RunSettings` itself.
    """

    key: str
    group: str
    title: str
    field: FieldInfo

    @property
    def flag(self) -> str:
        """As an option of `harness run`."""
        return f"--{self.key.replace('_', '-')}"

    @property
    def about(self) -> About:
        """The declaration besides the type."""
        return about(self.field)

    @property
    def description(self) -> str:
        """The sentence below the field."""
        return self.field.description or ""

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.field.default is PydanticUndefined

    @property
    def default(self) -> str:
        """The default as a user writes it; for None, what it stands for."""
        value = self.field.default
        if value is None:
            return self.about.unset
        if isinstance(value, bool):
            return "yes" if value else "no"
        if isinstance(value, tuple):
            return ",".join(map(str, value)) or "none"
        return f"{value:g}" if isinstance(value, float) else str(value)

    @property
    def optional(self) -> bool:
        """Whether None is a value."""
        return types.NoneType in get_args(self.field.annotation)

    @property
    def type(self) -> Any:
        """The type of its values apart from None: int, float, bool, str, Path, a Literal or a tuple."""
        return next(part for part in self._parts() if isinstance(part, type) or get_origin(part) is not None)

    @property
    def choices(self) -> tuple[str, ...]:
        """The words it may be or contain; empty if it is not a choice."""
        inner = get_args(self.type)[0] if get_origin(self.type) is tuple else self.type
        return get_args(inner) if get_origin(inner) is Literal else ()

    @property
    def metavar(self) -> str:
        """How a value is written on the command line."""
        if (form := self._form) is not None:
            return form.metavar
        return "|".join(self.choices) or {int: "N", float: "NUMBER", bool: "true|false"}.get(
            self.type, "TEXT"
        )

    @property
    def expected(self) -> str:
        """What a value must be."""
        if (form := self._form) is not None:
            return form.expected
        if self.choices:
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        named = {int: "a whole number", float: "a number", bool: "true or false"}.get(self.type, "text")
        return " ".join([named, *self._bounds()])

    @property
    def _form(self) -> Form | None:
        return next((part for part in self._parts() if isinstance(part, Form)), None)

    def _bounds(self) -> Iterator[str]:
        bounds: dict[str, float] = {}
        for part in self._parts():
            bounds |= {name: getattr(part, name) for name in ("ge", "gt", "le") if hasattr(part, name)}
        if "ge" in bounds and "le" in bounds:
            yield f"from {bounds['ge']} to {bounds['le']}"
        elif "ge" in bounds:
            yield f"of at least {bounds['ge']}"
        elif "gt" in bounds:
            yield f"greater than {bounds['gt']}"

    def _parts(self) -> Iterator[Any]:
        """Types and their annotations, from the outside in, without unions."""
        yield from _unwrap(self.field.annotation)
        yield from _flatten(self.field.metadata)


def _unwrap(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        yield from _unwrap(inner)
        yield from _flatten(metadata)
    elif get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            if member is not types.NoneType:
                yield from _unwrap(member)
    else:
        yield annotation


def _flatten(metadata: Iterable[Any]) -> Iterator[Any]:
    """Bounds of `Field(ge=1)`, which is a `FieldInfo` until pydantic has unpacked it."""
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from item.metadata
        else:
            yield item


def _declared() -> Mapping[str, Declared]:
    found: dict[str, Declared] = {}
    for name, field in RunSettings.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Group):
            found |= {key: Declared(key, name, inner.title, one) for key, one in inner.model_fields.items()}
        else:
            found[name] = Declared(name, "", RunSettings.title, field)
    return found


SETTINGS: Mapping[str, Declared] = _declared()
"""Every setting by its key, in the order of the declaration."""
