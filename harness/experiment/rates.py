"""Multiples of the methods' default learning rates: one for all, and what `harness tune` chose for each."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from harness.config import RunSettings
from harness.errors import UserError
from harness.records.choices import read_choices
from harness.specs import Spec, canonical, options_label
from methods.base import Method, NoOptions


def rate_multiple(settings: RunSettings, task: str, label: str) -> float:
    """What the default learning rate of a method, named by its label, is multiplied by on a task.

    Raises:
        UserError: `tuned_rates` is given, and there is no such file, or nothing for this method in it.
    """
    training = settings.training
    if training.tuned_rates is None:
        return training.learning_rate_scale
    if not training.tuned_rates.is_file():
        raise UserError(f"tuned_rates: {training.tuned_rates}: no such file; `harness tune` writes it.")
    for choice in read_choices(training.tuned_rates):
        if (settings.backbone, task, label) in choice.keys:
            return training.learning_rate_scale * choice.scale
    raise UserError(
        f"tuned_rates: {training.tuned_rates} has no learning rate for {label} on {task} with {settings.backbone}; "
        "`harness tune` adds it."
    )


def label_of(spec: Spec, method: Method[Any]) -> str:
    """`lora[r=8]`: a method's name with the options that differ from their defaults."""
    if spec.members:
        return "+".join(map(label_of, spec.members, method.members))
    if isinstance(method.options, NoOptions):
        return canonical(spec)
    return options_label(method.name, method.config(), asdict(method.Options()))
