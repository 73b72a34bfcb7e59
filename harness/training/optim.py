"""Optimiser and learning-rate schedule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.backbones.block import Block
from harness.config import TrainingSettings
from harness.training.model import TaskModel
from harness.training.normalized import MixedAdamW
from methods.base import Inserted, ParameterGroup


def build_optimizer(
    model: TaskModel,
    training: TrainingSettings,
    learning_rate: float,
    head_learning_rate: float,
    own_groups: Sequence[ParameterGroup] = (),
) -> torch.optim.AdamW:
    """AdamW over all parameters that require gradient.

    The head and the blocks have rates of their own (`head_learning_rate`, `training.block_learning_rate`). Biases and
    norms have no weight decay, except for the norms that `training.decay_norms` is about.

    own_groups: parameters that the method gives other rates (`Method.parameter_groups`).

    Raises:
        ValueError: a parameter is in two groups, or does not train.
    """
    taken = _check_groups(model, own_groups)
    rates = dict.fromkeys(map(id, model.head.parameters()), head_learning_rate)
    if training.block_learning_rate is not None:
        rates |= dict.fromkeys(map(id, _in_blocks(model.backbone)), training.block_learning_rate)
    gains = _gains(model) if training.decay_norms else set()
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in taken:
            decays = parameter.ndim > 1 or id(parameter) in gains
            groups.setdefault((rates.get(id(parameter), learning_rate), decays), []).append(parameter)
    settings: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate, "weight_decay": training.weight_decay if decays else 0.0}
        for (rate, decays), parameters in groups.items()
    ]
    for group in own_groups:
        rate = learning_rate * group.learning_rate_scale
        for matrices in (True, False):
            parameters = [each for each in group.parameters if (each.ndim > 1) == matrices]
            decay = training.weight_decay if matrices and group.weight_decay else 0.0
            if parameters:
                settings.append({"params": parameters, "lr": rate, "weight_decay": decay})
                if group.normalized:
                    settings[-1]["normalized"] = True
    kind = MixedAdamW if any(group.normalized for group in own_groups) else torch.optim.AdamW
    return kind(settings, betas=training.betas, eps=training.eps, fused=True)


def _in_blocks(backbone: Backbone) -> Iterator[nn.Parameter]:
    """Parameters of the blocks that are not skipped, adapters in them included, and of what is beside the blocks."""
    for module in backbone.blocks.modules():
        if isinstance(module, Block):
            yield from module.parameters()
    for module in backbone.beside_blocks():
        yield from module.parameters()


def _gains(model: TaskModel) -> set[int]:
    """Identities of the gains of LayerNorms in the head and in modules that a method inserted."""
    owners = [model.head, *(module for module in model.backbone.modules() if isinstance(module, Inserted))]
    norms = (norm for owner in owners for norm in owner.modules() if isinstance(norm, nn.LayerNorm))
    return {id(norm.weight) for norm in norms}


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
