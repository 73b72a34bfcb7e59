"""Optimiser, learning-rate schedule, and the settings of both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from harness.training.model import TaskModel


@dataclass(frozen=True)
class Training:
    """How a cell is trained; the same for every method of a table.

    epochs: passes over the training split.
    batch_size: examples per optimiser step.
    learning_rate: of everything but the head; None is the backbone's own times the method's scale.
    weight_decay: on matrices only (not on biases and norms), as in the published recipes.
    warmup: share of the steps over which the rate rises linearly; then it falls linearly to 0.
    select: report the epoch that is `best` on the validation split, or the `last`.
    """

    epochs: int = 10
    batch_size: int = 64
    learning_rate: float | None = None
    weight_decay: float = 0.01
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    select: str = "best"


def build_optimizer(
    model: TaskModel, training: Training, learning_rate: float, head_learning_rate: float
) -> torch.optim.AdamW:
    """AdamW over what requires gradient; the head has its own rate, biases and norms no decay."""
    head = {id(parameter) for parameter in model.head.parameters()}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in head, parameter.ndim > 1), []).append(parameter)
    settings = [
        {
            "params": parameters,
            "lr": head_learning_rate if in_head else learning_rate,
            "weight_decay": training.weight_decay if decays else 0.0,
        }
        for (in_head, decays), parameters in groups.items()
    ]
    return torch.optim.AdamW(settings, betas=training.betas, eps=training.eps, fused=True)


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
