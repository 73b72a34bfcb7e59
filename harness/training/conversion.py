"""Evaluation under autocast without converting the same weights at every call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import nn

from harness.backbones.folded import FoldedPart


@contextmanager
def converted_once(fabric: Fabric, model: nn.Module) -> Iterator[None]:
    """Within the block, deployed blocks hold their matrices in the type to which autocast converts them.

    Results are the same as without. Nothing happens if the precision is not a mixed one.
    """
    kind = fabric.device.type
    with fabric.autocast():
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    parts = [part for part in model.modules() if dtype is not None and isinstance(part, FoldedPart)]
    before = [(parameter, parameter.data) for part in parts for parameter in part.converted()]
    with torch.inference_mode(False):
        for parameter, data in before:
            parameter.data = data.to(dtype)
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data
