"""Published recipes: the settings of the authors' code, filled in where the user has chosen none."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config import RunSettings
from harness.config.declared import SETTINGS
from harness.errors import UserError
from harness.experiment.rates import label_of, rate_multiple
from harness.registry import build_method
from harness.specs import Spec, canonical
from methods.base import Recipe

RATES = ("learning_rate", "block_learning_rate")
"""Whoever sets one of them sets both: the published ratio would be that to another rate."""


def by_recipe(settings: RunSettings) -> list[RunSettings]:
    """The run in parts, each of which trains with the same settings; `recipe` says where these come from.

    With `recipe=published`, the recipe of each method on each task fills in whatever the user has not set. Unset, this
    happens if every method has a recipe on every task, and those of a task agree in all that a table must agree in.

    Raises:
        UserError: `recipe` is `published`, and a method has none.
    """
    own = [settings.model_copy(update={"recipe": "own"})]
    encoders = settings.backbone_options.text_encoder or settings.backbone_options.image_encoder
    if settings.recipe == "own" or (settings.recipe is None and encoders is not None):
        return own  # no recipe is published for other encoders
    parts: list[RunSettings] = []
    for task in settings.tasks:
        of_task: list[RunSettings] = []
        for method in settings.methods:
            recipe = build_method(method).recipes.get((settings.backbone, task.name))
            if recipe is not None:
                of_task.append(_filled(settings, method, task, recipe))
            elif settings.recipe is None:
                return own
            else:
                raise UserError(
                    f"recipe: {canonical(method)} has no published recipe on {task.name} with {settings.backbone}; "
                    "leave recipe unset or use own."
                )
        if settings.recipe is None and not _comparable(of_task):
            return own
        parts += _together(of_task)
    return parts


def _filled(settings: RunSettings, method: Spec, task: Spec, recipe: Recipe) -> RunSettings:
    """The settings of one method on one task."""
    training, values = settings.training, dict(recipe.settings)
    filled = Spec(method.name, {**recipe.method, **method.options}, method.instance)
    if any(getattr(training, key) is not None for key in RATES):
        values = {key: value for key, value in values.items() if key not in RATES}
    if any(values.get(key) is not None for key in RATES):
        multiple = rate_multiple(settings, task.name, label_of(filled, build_method(filled)))
        values |= {key: values[key] * multiple for key in RATES if values.get(key) is not None}
    groups = {SETTINGS[key].group for key in values}
    changed: dict[str, object] = {}
    for name in groups:
        group = getattr(settings, name)
        chosen = {key for key in group.model_fields_set if getattr(group, key) is not None}
        own = {key: value for key, value in values.items() if SETTINGS[key].group == name}
        changed[name] = group.model_copy(update={k: v for k, v in own.items() if k not in chosen})
    specs = {
        "methods": (filled,),
        "tasks": (Spec(task.name, {**recipe.task, **task.options}, task.instance),),
    }
    return settings.model_copy(update={**changed, **specs, "recipe": "published"})


def _comparable(parts: Sequence[RunSettings]) -> bool:
    """Whether one table may hold all of them."""
    first = parts[0]
    return all(
        (part.protocol(), part.backbone_options, part.tasks)
        == (first.protocol(), first.backbone_options, first.tasks)
        for part in parts
    )


def _together(parts: Sequence[RunSettings]) -> list[RunSettings]:
    """Parts with the same settings as one."""
    merged: list[RunSettings] = []
    for part in parts:
        for place, other in enumerate(merged):
            if part.model_copy(update={"methods": other.methods}) == other:
                merged[place] = other.model_copy(update={"methods": (*other.methods, *part.methods)})
                break
        else:
            merged.append(part)
    return merged
