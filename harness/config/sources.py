"""Build settings from flags, an experiment file and keyword arguments.

An invalid value is refused in the same words everywhere, after the name of its place: `--select: must be best or
last, not 'bset'.`, `exp.toml: [run]: select: …`, `select: …`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.config import BackboneSettings, RunSettings
from harness.config.declared import SETTINGS
from harness.config.experiment import read_experiment
from harness.config.types import as_python
from harness.errors import UserError, did_you_mean
from harness.registry import build_method, build_task, read_specs, resolve_backbone


@dataclass(frozen=True)
class Source:
    """Settings by key from one place.

    where: how an error names a key of this place.
    as_text: values are words of a command line, so that numbers are text.
    """

    values: Mapping[str, Any]
    where: Callable[[str], str]
    as_text: bool = False


def from_flags(values: Mapping[str, Any]) -> Source:
    """Options given on the command line; text, except switches."""
    return Source(values, flag_of, as_text=True)


def from_keywords(values: Mapping[str, Any]) -> Source:
    """Keyword arguments of Python; numbers may be numpy's."""
    return Source({key: as_python(value) for key, value in values.items()}, str)


def from_file(path: Path) -> Source:
    """An experiment file.

    Raises:
        UserError: it cannot be read, is not TOML, or has an unknown table.
    """
    return Source(read_experiment(path), lambda key: f"{path}: [run]: {key}")


def flag_of(key: str) -> str:
    """`--batch-size` for batch_size."""
    return f"--{key.replace('_', '-')}"


def make_settings(**values: Any) -> RunSettings:
    """Settings from keyword arguments, as `harness.run` takes them.

    Raises:
        UserError: naming the setting that is unknown or does not fit.
    """
    return build_settings(from_keywords(values))


def build_settings(*sources: Source) -> RunSettings:
    """One run's settings from several places; later ones override earlier ones.

    Raises:
        UserError: a key is unknown, a value is invalid, or a method, task or backbone or an option of one is
            unknown.
    """
    given: dict[str, tuple[Any, Source]] = {}
    for source in sources:
        for key in source.values:
            if key not in SETTINGS:
                raise UserError(f"{source.where(key)}: no such setting.{did_you_mean(key, SETTINGS)}")
        for key, value in _with_backbone_options(source).items():
            given[key] = (value, source)
    values = {
        key: read_text(key, value) if source.as_text else value for key, (value, source) in given.items()
    }
    try:
        settings = RunSettings.model_validate(_nested(values))
    except ValidationError as error:
        raise UserError(_explain(error, given, sources[-1])) from None
    _check_names(settings, {key: source.where(key) for key, (_, source) in given.items()})
    return settings


def backbone_settings(name: str, options: Mapping[str, Any]) -> tuple[str, BackboneSettings]:
    """A backbone's name and options from keyword arguments; the name may have options too.

    Raises:
        UserError: an option is unknown or invalid, or there is no such backbone.
    """
    source = from_keywords({**options, "backbone": name})
    for key in options:
        if key not in BackboneSettings.model_fields:
            raise UserError(f"{key}: no such setting.{did_you_mean(key, BackboneSettings.model_fields)}")
    values = _with_backbone_options(source)
    named = values.pop("backbone")
    try:
        settings = BackboneSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(
            _explain(error, {key: (value, source) for key, value in values.items()}, source)
        ) from None
    resolve_backbone(named)
    return named, settings


def read_text(key: str, text: object) -> object:
    """Convert a flag's text to a number, or `none` to None if the setting may be None.

    Text that cannot be converted is returned as it is; the setting's type refuses it.
    """
    declared = SETTINGS[key]
    if not isinstance(text, str):
        return text
    if declared.optional and text.strip().lower() == "none":
        return None
    if declared.type in (int, float):
        try:
            return declared.type(text)
        except ValueError:
            return text
    return text


def _with_backbone_options(source: Source) -> dict[str, Any]:
    """Split `vilt[image_size=224]` into name and settings; separate settings override those in brackets."""
    if "backbone" not in source.values:
        return dict(source.values)
    try:
        specs = read_specs(source.values["backbone"], "backbones")
    except UserError as error:
        raise UserError(f"{source.where('backbone')}: {error}") from None
    if len(specs) != 1:
        raise UserError(f"{source.where('backbone')}: one backbone expected, not {len(specs)}.")
    (spec,) = specs
    for key in spec.options:
        if key not in BackboneSettings.model_fields:
            hint = did_you_mean(key, BackboneSettings.model_fields)
            raise UserError(f"{source.where('backbone')}: {spec.name}: no option '{key}'.{hint}")
    options = {key: read_text(key, text) for key, text in spec.options.items()}
    return {**options, **source.values, "backbone": spec.name}


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        group = SETTINGS[key].group
        (nested.setdefault(group, {}) if group else nested)[key] = value
    return nested


def _explain(error: ValidationError, given: Mapping[str, tuple[Any, Source]], last: Source) -> str:
    """The first problem, in one line."""
    first = error.errors()[0]
    key = next(str(part) for part in first["loc"] if part in SETTINGS)
    declared = SETTINGS[key]
    if key not in given:
        return f"{last.where(key)}: must be given: {declared.expected}."
    value, source = given[key]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, ValueError) and str(own):
        return f"{source.where(key)}: {own}"
    word = first["input"]
    hint = did_you_mean(word, declared.choices) if isinstance(word, str) and declared.choices else ""
    hint = hint if "Did you mean" in hint else ""  # the sentence already lists the known words
    return f"{source.where(key)}: must be {declared.expected}, not {value!r}.{hint}"


def _check_names(settings: RunSettings, where: Mapping[str, str]) -> None:
    checks: dict[str, Callable[[], object]] = {
        "methods": lambda: [build_method(spec) for spec in settings.methods],
        "tasks": lambda: [build_task(spec) for spec in settings.tasks],
        "backbone": lambda: resolve_backbone(settings.backbone),
    }
    for key, check in checks.items():
        try:
            check()
        except UserError as error:
            raise UserError(f"{where.get(key, key)}: {error}") from None
