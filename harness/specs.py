"""Specs: a method, task or backbone with options, as `das[skip=4],lora[r=8]` or in an experiment file.

Methods combine with `+`: `lora[r=8]+das`. A `+` separates two methods if a name follows it; `compacter++` is one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from harness.errors import UserError
from harness.options import format_value

_NAME = re.compile(r"[A-Za-z0-9_.:-]+\+*")
_COMBINES = re.compile(r"\+(?=\s*[A-Za-z0-9_.:-])")


OPTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Spec:
    """A name and its options as they were written: `lora[r=8]` is `Spec("lora", {"r": "8"})`.

    instance: the method object that was given instead of a name; its name need not be registered.
    members: the specs that are combined, in alphabetical order of their names; () for a single one.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    instance: object | None = field(default=None, compare=False, repr=False)
    members: tuple[Spec, ...] = ()


def combine(members: Iterable[Spec], instance: object | None = None) -> Spec:
    """Several specs as one, whose name joins theirs: `das+lora`. Their order makes no difference.

    Raises:
        UserError: a name appears twice.
    """
    ordered = tuple(sorted(members, key=lambda member: member.name))
    for one, other in pairwise(ordered):
        if one.name == other.name:
            raise UserError(f"{one.name} cannot be combined with itself.")
    return Spec("+".join(member.name for member in ordered), {}, instance, ordered)


def member_names(name: str) -> list[str]:
    """The names that a spec's name combines: `das+lora` → das, lora. A single name is returned as it is."""
    return [part.strip() for part in _COMBINES.split(name)]


def with_defaults(spec: Spec, tables: Mapping[str, Mapping[str, str]]) -> Spec:
    """The spec with more options by name, which the spec's own options override; for members of it likewise."""
    if spec.members:
        return combine((with_defaults(member, tables) for member in spec.members), spec.instance)
    return Spec(spec.name, {**tables.get(spec.name, {}), **spec.options}, spec.instance)


def parse_specs(text: str) -> list[Spec]:
    """Specs separated by commas; commas inside brackets separate options.

    Raises:
        UserError: brackets do not match, a name or an option is empty, or a spec appears twice. The message names
            the character, counted from 1.
    """
    specs: list[Spec] = []
    for part in _split(text):
        spec = _parse_one(part, text)
        if spec in specs:
            raise UserError(f"'{text}': {canonical(spec)} appears twice.")
        specs.append(spec)
    return specs


def parse_spec(text: str) -> Spec:
    """Exactly one spec.

    Raises:
        UserError: it is malformed, or it is more than one.
    """
    specs = parse_specs(text)
    if len(specs) != 1:
        raise UserError(f"'{text}': expected exactly one, not {len(specs)}.")
    return specs[0]


def canonical(spec: Spec) -> str:
    """A spec as text: options in alphabetical order, no blanks. `parse_spec` reads it back."""
    if spec.members:
        return "+".join(map(canonical, spec.members))
    options = ",".join(f"{key}={spec.options[key]}" for key in sorted(spec.options))
    return f"{spec.name}[{options}]" if options else spec.name


def options_label(name: str, options: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """`lora[r=8]`: the name with the resolved options that differ from the defaults."""
    different = {
        key: format_value(value)
        for key, value in options.items()
        if key not in defaults or defaults[key] != value
    }
    return canonical(Spec(name, different))


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Parts between top-level commas, each with the position of its first character, from 1."""
    opened: int | None = None
    start = 0
    for index, character in enumerate(text):
        if character == "[":
            if opened is not None:
                raise UserError(f"'{text}': character {index + 1}: '[' inside brackets.")
            opened = index
        elif character == "]":
            if opened is None:
                raise UserError(f"'{text}': character {index + 1}: ']' without a '[' before it.")
            opened = None
        elif character == "," and opened is None:
            yield start + 1, text[start:index]
            start = index + 1
    if opened is not None:
        raise UserError(f"'{text}': character {opened + 1}: this '[' is never closed.")
    yield start + 1, text[start:]


def _parse_one(part: tuple[int, str], text: str) -> Spec:
    """One spec, or several that are combined."""
    position, piece = part
    members = [_parse_member(member, text) for member in _split_members(position, piece)]
    if len(members) == 1:
        return members[0]
    try:
        return combine(members)
    except UserError as error:
        raise UserError(f"'{text}': character {position}: {error}") from None


def _split_members(position: int, piece: str) -> Iterator[tuple[int, str]]:
    """Parts between `+` outside brackets, each with the position of its first character."""
    start = 0
    for match in _COMBINES.finditer(piece):
        if piece.count("[", 0, match.start()) == piece.count("]", 0, match.start()):
            yield position + start, piece[start : match.start()]
            start = match.end()
    yield position + start, piece[start:]


def _parse_member(part: tuple[int, str], text: str) -> Spec:
    position, piece = part
    written, _, inside = piece.strip().partition("[")
    name = written.strip()
    where = f"'{text}': character {position}"
    if not name:
        raise UserError(f"{where}: a name is missing.")
    if not _NAME.fullmatch(name):
        raise UserError(f"{where}: '{name}' cannot be a name.")
    inside, _, tail = inside.partition("]")
    if tail.strip():
        raise UserError(f"{where}: a comma is missing before '{tail.strip()}'.")
    options: dict[str, str] = {}
    for option in inside.split(",") if inside.strip() else []:
        key, equals, value = (word.strip() for word in option.partition("="))
        if not equals or not OPTION_NAME.fullmatch(key):
            raise UserError(f"{where}: an option is written name=value, not '{option.strip()}'.")
        if key in options:
            raise UserError(f"{where}: option '{key}' of {name} appears twice.")
        options[key] = value
    return Spec(name, options)
