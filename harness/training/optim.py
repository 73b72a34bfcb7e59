"""Optimiser and learning-rate schedule."""

from __future__ import annotations

import torch
from torch import nn

from harness.config import TrainingSettings
from harness.training.model import TaskModel


def build_optimizer(
    model: TaskModel, training: TrainingSettings, learning_rate: float, head_learning_rate: float
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
