"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from harness.config import TrainingSettings
from harness.training.model import TaskModel
from methods.base import ParameterGroup


def build_optimizer(
    model: TaskModel,
    training: TrainingSettings,
    learning_rate: float,
    head_learning_rate: float,
    own_groups: Sequence[ParameterGroup] = (),
) -> torch.optim.AdamW:
    """AdamW over all parameters that require gradient. The head has its own rate; biases and norms have no decay.

    own_groups: parameters that the method gives other rates (`Method.parameter_groups`).

    Raises:
        ValueError: a parameter is in two groups, or does not train.
    """
    taken = _check_groups(model, own_groups)
    head = {id(parameter) for parameter in model.head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in taken:
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {
            "params": parameters,
            "lr": head_learning_rate if in_head else learning_rate,
            "weight_decay": training.weight_decay if decays else 0.0,
        }
        for (in_head, decays), parameters in groups.items()
    ]
    for group in own_groups:
        rate = learning_rate * group.learning_rate_scale
        for matrices in (True, False):
            parameters = [each for each in group.parameters if (each.ndim > 1) == matrices]
            decay = training.weight_decay if matrices and group.weight_decay else 0.0
            if parameters:
                settings.append({"params": parameters, "lr": rate, "weight_decay": decay})
    return torch.optim.AdamW(settings, betas=training.betas, eps=training.eps, fused=True)


def _check_groups(model: TaskModel, groups: Sequence[ParameterGroup]) -> set[int]:
    """Identities of the parameters in `groups`."""
    trained = {id(parameter) for parameter in model.backbone.parameters() if parameter.requires_grad}
    owners: dict[int, str] = {}
    for group in groups:
        if not group.learning_rate_scale >= 0:
            raise ValueError(f"parameter group '{group.name}': its scale is {group.learning_rate_scale}")
        for parameter in group.parameters:
            if id(parameter) not in trained:
                raise ValueError(
                    f"parameter group '{group.name}': a parameter {tuple(parameter.shape)} does not train"
                )
            if id(parameter) in owners:
                raise ValueError(
                    f"parameter groups '{owners[id(parameter)]}' and '{group.name}' share a parameter "
                    f"{tuple(parameter.shape)}"
                )
            owners[id(parameter)] = group.name
    return set(owners)


def build_schedule(
    optimizer: torch.optim.Optimizer, steps: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear rise over the first `warmup` share of `steps`, then linear fall to 0."""
    rising = max(1, int(warmup * steps))

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return max(0.0, (steps - step) / max(1, steps - rising))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale)
