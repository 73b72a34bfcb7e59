"""Settings of a run."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, get_args, get_origin, get_type_hints

from harness.backbones.base import BackboneOptions
from harness.errors import UserError, did_you_mean
from harness.options import format_value
from harness.specs import OPTION_NAME, Spec, canonical, parse_specs
from harness.training.encoding_store import Precision


@dataclass(frozen=True)
class Request:
    """What the user asked for, resolved no further than names and values.

    epochs, batch_size: None takes the task's recipe.
    learning_rate: None takes the backbone's rate times the method's scale.
    workers: processes that decode images; 0 decodes in threads.
    image_budget_mib: memory for decoded images, kept between epochs.
    augment: what is done to training images, a key of `AUGMENTATIONS`.
    cache_mib, cache_disk_gib: memory (of each process) and disk for encodings, which are computed once; both 0
        computes them anew each time.
    cache_precision: `half` keeps encodings in 16 bits.
    measured_image_size: (height, width) that compute and latency are stated for; None takes the commonest.
    """

    methods: tuple[Spec, ...]
    tasks: tuple[Spec, ...]
    backbone: str = "vilt-mini"
    backbone_options: BackboneOptions = BackboneOptions()
    seeds: tuple[int, ...] = (0,)
    data_root: Path | None = None
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    select: str = "best"
    precision: str = "32-true"
    accelerator: str = "auto"
    workers: int = 0
    image_budget_mib: float = 2048
    skip_bad_images: bool = False
    augment: str = "none"
    measured_image_size: tuple[int, int] | None = None
    cache_mib: float = 2048
    cache_disk_gib: float = 8
    cache_precision: Precision = "full"


_BRACKETS_AND_COMMAS = frozenset("[],")


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
        if isinstance(value, dict) or not OPTION_NAME.fullmatch(key) or _BRACKETS_AND_COMMAS & set(text):
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
