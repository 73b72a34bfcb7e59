"""Check before anything is trained that methods fit a backbone, on copies that have shapes but no content."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from harness.backbones.base import Backbone
from harness.errors import UserError
from methods.base import Method


def check_method(backbone: Backbone, method: Method[Any]) -> None:
    """Adapt a copy of the backbone by a method; takes almost no memory or time.

    Raises:
        UserError: the method refuses its options on this backbone.
    """
    try:
        with torch.device("meta"):
            adapt(without_content(backbone), method)
    except UserError:
        adapt(copy.deepcopy(backbone), method)  # it may only have missed the content
    except Exception:  # likewise; if not, the cell itself says what is wrong
        return


def adapt(backbone: Backbone, method: Method[Any]) -> None:
    """Adapt a backbone by a method, a search of which is taken to have ended."""
    decide_unsearched(method, backbone)
    method.adapt(backbone, torch.Generator().manual_seed(0))


def decide_unsearched(method: Method[Any], backbone: Backbone) -> None:
    """Let a method that searches have decided already: for its first possible decision."""
    if not method.searches:
        return
    for case in method.cost_cases(backbone):
        if case.decision is not None:
            method.decide(case.decision)
            return


def without_content(backbone: Backbone) -> Backbone:
    """A copy whose parameters and buffers are on the meta device; the original is not changed."""
    empty: dict[int, Any] = {id(buffer): buffer.detach().to("meta") for buffer in backbone.buffers()}
    for parameter in backbone.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    return copy.deepcopy(backbone, empty)
