"""Learning rate and weight decay of each parameter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from harness.config import TrainingSettings
from harness.training.optim import build_optimizer
from methods.base import ParameterGroup


class Parts(nn.Module):
    """A backbone with two matrices and a vector, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.first = nn.Parameter(torch.zeros(2, 3))
        self.backbone.second = nn.Parameter(torch.zeros(3, 2))
        self.backbone.vector = nn.Parameter(torch.zeros(3))
        self.backbone.frozen = nn.Parameter(torch.zeros(4), requires_grad=False)
        self.head = nn.Linear(3, 2)


def rates(model: Any, *groups: ParameterGroup) -> dict[str, tuple[float, float]]:
    """Learning rate and weight decay of each parameter, by name."""
    optimizer = build_optimizer(model, TrainingSettings(weight_decay=0.1), 0.5, 4.0, groups)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["lr"], group["weight_decay"]))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))
    return dict(found)


USUAL = {
    "backbone.first": (0.5, 0.1),
    "backbone.second": (0.5, 0.1),
    "backbone.vector": (0.5, 0.0),
    "head.weight": (4.0, 0.1),
    "head.bias": (4.0, 0.0),
}


def test_matrices_decay_and_the_head_has_its_own_rate() -> None:
    assert rates(Parts()) == USUAL


def test_group_has_a_multiple_of_the_rate_and_other_parameters_the_usual_one() -> None:
    model = Parts()
    group = ParameterGroup("fast", [model.backbone.first, model.backbone.vector], 3.0)
    assert rates(model, group) == USUAL | {"backbone.first": (1.5, 0.1), "backbone.vector": (1.5, 0.0)}


def test_a_group_may_leave_its_matrices_without_decay() -> None:
    model = Parts()
    groups = [
        ParameterGroup("plain", [model.backbone.second], weight_decay=False),
        ParameterGroup("slow", [model.backbone.first], 0.5),
    ]
    assert rates(model, *groups) == USUAL | {"backbone.second": (0.5, 0.0), "backbone.first": (0.25, 0.1)}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (lambda model: [model.backbone.frozen], r"group 'a': a parameter \(4,\) does not train"),
        (lambda model: [nn.Parameter(torch.zeros(5))], r"group 'a': a parameter \(5,\) does not train"),
        (lambda model: [model.head.weight], r"group 'a': a parameter \(2, 3\) does not train"),
        (lambda model: [model.backbone.first] * 2, r"groups 'a' and 'a' share a parameter \(2, 3\)"),
        (lambda model: [model.backbone.second], r"groups 'a' and 'b' share a parameter \(3, 2\)"),
    ],
)
def test_parameters_that_do_not_train_or_are_in_two_groups_are_errors(chosen: Any, message: str) -> None:
    model = Parts()
    groups = ParameterGroup("a", chosen(model)), ParameterGroup("b", [model.backbone.second])
    with pytest.raises(ValueError, match=message):
        rates(model, *groups)


def test_a_negative_rate_is_an_error() -> None:
    model = Parts()
    with pytest.raises(ValueError, match="'a': its scale is -1"):
        rates(model, ParameterGroup("a", [model.backbone.first], -1))
