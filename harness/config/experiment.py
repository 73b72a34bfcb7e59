"""Experiment files: the settings of a run as TOML.

    [run]
    methods = ["full", "das[skip=4]", "lora"]
    tasks = "vqa"
    seeds = [0, 1, 2]
    [methods.lora]
    r = 8

The options of a table apply to every spec of that name; options in a spec override them. If `[run]` does not
have the key, the tables name what is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from os.path import expanduser
from pathlib import Path
from typing import Any

from harness.errors import UserError, did_you_mean
from harness.files import read_toml
from harness.options import format_value
from harness.registry import Kind, read_specs
from harness.specs import OPTION_NAME, Spec, canonical, with_defaults

_TABLES: Mapping[Kind, str] = {"methods": "methods", "tasks": "tasks", "backbones": "backbone"}
"""Tables of options, and the key of `[run]` that they belong to."""


_BRACKETS_AND_COMMAS = frozenset("[],")


def read_experiment(path: Path) -> dict[str, Any]:
    """The keys of `[run]` as written, with the options of the tables merged into the specs.

    Raises:
        UserError: the file cannot be read, is not TOML (with the line), has an unknown table, or has options for
            a name that is not in `[run]`.
    """
    content = read_toml(Path(expanduser(path))).value  # noqa: PTH111 - pathlib's fails on ~nobody
    for key, value in content.items():
        if key != "run" and key not in _TABLES:
            raise UserError(f"{path}: unknown key '{key}'.{did_you_mean(key, ['run', *_TABLES])}")
        if not isinstance(value, dict):
            raise UserError(f"{path}: '{key}' must be a table, written [{key}].")
    experiment: dict[str, Any] = dict(content.get("run", {}))
    for kind, key in _TABLES.items():
        options = {
            name: _read_options(values, f"{path}: [{kind}.{name}]")
            for name, values in content.get(kind, {}).items()
        }
        if options:
            named = _read_specs(experiment[key], kind, f"{path}: [run]: {key}") if key in experiment else None
            experiment[key] = _merge(options, named, f"{path}: [{kind}.{{}}]")
    return experiment


def _read_specs(value: object, kind: Kind, where: str) -> list[Spec]:
    try:
        return read_specs(value, kind)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _read_options(values: object, where: str) -> dict[str, str]:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be a table of options.")
    options: dict[str, str] = {}
    for key, value in values.items():
        text = format_value(value)
        if isinstance(value, dict) or not OPTION_NAME.fullmatch(key) or _BRACKETS_AND_COMMAS & set(text):
            raise UserError(
                f"{where}: {key} = {value!r} cannot be an option (no tables, no ',', '[' or ']')."
            )
        options[key] = text.strip()
    return options


def _merge(tables: Mapping[str, Mapping[str, str]], specs: list[Spec] | None, where: str) -> list[Spec]:
    if specs is None:
        return [Spec(name, options) for name, options in tables.items()]
    named = [member.name for spec in specs for member in (spec.members or (spec,))]
    for name in tables:
        if name not in named:
            raise UserError(f"{where.format(name)}: [run] does not name it.{did_you_mean(name, named)}")
    full: list[Spec] = []
    for spec in specs:
        merged = with_defaults(spec, tables)
        if merged in full:
            raise UserError(f"{where.format(spec.name)}: {canonical(merged)} would run twice.")
        full.append(merged)
    return full
