"""Specs: a method, task or backbone with options, as `das[skip=4],lora[r=8]` or in an experiment file."""

from __future__ import annotations

import re
import tomllib
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from harness.errors import UserError, did_you_mean

OptionsT = TypeVar("OptionsT")

_NAME = re.compile(r"[A-Za-z0-9_.:+-]+")
_OPTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTEGER = re.compile(r"[+-]?[0-9]+(_[0-9]+)*")
_BRACKETS_AND_COMMAS = frozenset("[],")


@dataclass(frozen=True)
class Spec:
    """A name and its options as they were written: `lora[r=8]` is `Spec("lora", {"r": "8"})`."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)


def parse_specs(text: str) -> list[Spec]:
    """Specs separated by commas; commas inside brackets separate options.

    Raises:
        UserError: naming the character (from 1) where brackets do not match, what is empty, or what is there
            twice.
    """
    specs: list[Spec] = []
    for part in _split(text):
        spec = _parse_one(part, text)
        if spec in specs:
            raise UserError(f"'{text}': {canonical(spec)} is there twice.")
        specs.append(spec)
    return specs


def parse_spec(text: str) -> Spec:
    """Exactly one spec.

    Raises:
        UserError: it is malformed, or there are several.
    """
    specs = parse_specs(text)
    if len(specs) != 1:
        raise UserError(f"'{text}': exactly one is wanted here, not {len(specs)}.")
    return specs[0]


def canonical(spec: Spec) -> str:
    """The one way of writing a spec: options in alphabetical order, no blanks. `parse_spec` undoes it."""
    options = ",".join(f"{key}={spec.options[key]}" for key in sorted(spec.options))
    return f"{spec.name}[{options}]" if options else spec.name


def spec_label(spec: Spec, options_class: type[Any] | None = None) -> str:
    """The shortest label that tells the spec: with `options_class`, options at their default are left out.

    Raises:
        UserError: the options do not fit `options_class`.
    """
    if options_class is None:
        return canonical(spec)
    options = build_options(options_class, spec.options, spec.name)
    return options_label(spec.name, vars(options), vars(options_class()))


def options_label(name: str, options: Mapping[str, object], defaults: Mapping[str, object]) -> str:
    """`lora[r=8]`: the name with those resolved options that differ from the defaults."""
    different = {
        key: format_value(value)
        for key, value in options.items()
        if key not in defaults or defaults[key] != value
    }
    return canonical(Spec(name, different))


def format_value(value: object) -> str:
    """A value as it is written in a spec: `true`, `none`, `3+7`, `0.1`, `auto`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "+".join(format_value(item) for item in value)
    return str(value)


def guess_value(text: str) -> str | int | float | bool:
    """A value whose type no dataclass tells: the first of bool, int, float and str that fits."""
    for convert in (_boolean, _integer, _number):
        try:
            return convert(text)
        except ValueError:
            continue
    return text


def build_options(options_class: type[OptionsT], options: Mapping[str, str], where: str) -> OptionsT:
    """`options` as an instance of a dataclass, each value converted to its field's type.

    where: what the options are of, for the messages: `lora`, `exp.toml: [methods.lora]`.

    Raises:
        UserError: an unknown option, a value of the wrong type, or one the dataclass itself refuses.
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
            raise UserError(f"{where}: {key} has to be {error}, not '{text}'.") from None
    for key, item in known.items():
        if key not in values and item.default is MISSING and item.default_factory is MISSING:
            raise UserError(f"{where}: {key} has to be given.")
    try:
        return options_class(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def _split(text: str) -> Iterator[tuple[int, str]]:
    """Parts between top-level commas, each with the position of its first character, from 1."""
    opened: int | None = None
    start = 0
    for index, character in enumerate(text):
        if character == "[":
            if opened is not None:
                raise UserError(f"'{text}': character {index + 1}: '[' inside of brackets.")
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
        if not equals or not _OPTION.fullmatch(key):
            raise UserError(f"{where}: an option is written name=value, not '{option.strip()}'.")
        if key in options:
            raise UserError(f"{where}: option '{key}' of {name} is there twice.")
        options[key] = value
    return Spec(name, options)


def _convert(text: str, hint: Any) -> Any:
    """`text` as a value of type `hint`; ValueError says what was expected."""
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


class Experiment(TypedDict, total=False):
    """What an experiment file says; keys that it does not have are left to the command line's defaults.

    methods, tasks and backbones hold what `[run]` names, with the options of `[methods.<name>]` and so on.
    """

    methods: list[Spec]
    tasks: list[Spec]
    backbone: list[Spec]
    weights: str
    tokenizer: str
    image_size: int
    text_length: int
    seeds: list[int]
    data_root: str
    results: str
    epochs: int
    batch_size: int
    learning_rate: float
    select: str
    precision: str
    accelerator: str
    workers: int
    image_budget_mib: float
    skip_bad_images: bool
    augment: str
    cache_mib: float
    cache_disk_gib: float
    cache_precision: str


_TABLES = {"methods": "methods", "tasks": "tasks", "backbones": "backbone"}
"""Tables of options in an experiment file, and the key of `[run]` that names what they are for."""


def read_experiment(path: Path) -> Experiment:
    """Read a TOML experiment file.

        [run]
        methods = ["full", "das[skip=4]", "lora"]
        tasks = "vqa"
        seeds = [0, 1, 2]
        [methods.lora]
        r = 8

    A table's options go to every spec of that name; what a spec says itself comes first. A table that `[run]`
    has no such key for names what is run.

    Raises:
        UserError: the file cannot be read, is not TOML (with the line), or has an unknown key.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: not valid TOML: {error}.") from error
    for key, value in content.items():
        if key != "run" and key not in _TABLES:
            raise UserError(f"{path}: unknown key '{key}'.{did_you_mean(key, ['run', *_TABLES])}")
        if not isinstance(value, dict):
            raise UserError(f"{path}: '{key}' has to be a table, written [{key}].")
    hints = get_type_hints(Experiment)
    experiment: dict[str, Any] = {}
    for key, value in content.get("run", {}).items():
        if key not in hints:
            raise UserError(f"{path}: [run]: unknown key '{key}'.{did_you_mean(key, hints)}")
        named = key in _TABLES.values()
        experiment[key] = (
            _read_specs(value, f"{path}: [run]: {key}")
            if named
            else _read_value(value, hints[key], f"{path}: [run]: {key}")
        )
    for table, key in _TABLES.items():
        options = {
            name: _read_options(values, f"{path}: [{table}.{name}]")
            for name, values in content.get(table, {}).items()
        }
        if options:
            experiment[key] = _apply(options, experiment.get(key), f"{path}: [{table}.{{}}]")
    return cast(Experiment, experiment)


def _read_specs(value: object, where: str) -> list[Spec]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words) or not words:
        raise UserError(f"{where} has to be a string or a list of strings.")
    try:
        return parse_specs(",".join(words))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read_value(value: object, hint: Any, where: str) -> Any:
    if get_origin(hint) is list:
        values = value if isinstance(value, list) else [value]
        return [_read_value(item, get_args(hint)[0], where) for item in values]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        expected = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}[hint]
        raise UserError(f"{where} has to be {expected}, not {value!r}.")
    return value


def _read_options(values: object, where: str) -> dict[str, str]:
    if not isinstance(values, dict):
        raise UserError(f"{where} has to be a table of options.")
    options: dict[str, str] = {}
    for key, value in values.items():
        text = format_value(value)
        if isinstance(value, dict) or not _OPTION.fullmatch(key) or _BRACKETS_AND_COMMAS & set(text):
            raise UserError(
                f"{where}: {key} = {value!r} cannot be an option (no tables, no ',', '[' or ']')."
            )
        options[key] = text.strip()
    return options


def _apply(tables: Mapping[str, Mapping[str, str]], specs: list[Spec] | None, where: str) -> list[Spec]:
    if specs is None:
        return [Spec(name, options) for name, options in tables.items()]
    named = [spec.name for spec in specs]
    for name in tables:
        if name not in named:
            raise UserError(f"{where.format(name)}: [run] does not name it.{did_you_mean(name, named)}")
    full: list[Spec] = []
    for spec in specs:
        merged = Spec(spec.name, {**tables.get(spec.name, {}), **spec.options})
        if merged in full:
            raise UserError(f"{where.format(spec.name)}: {canonical(merged)} would run twice.")
        full.append(merged)
    return full
