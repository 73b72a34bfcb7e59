"""Attention masks, shared by all backbones."""

from __future__ import annotations

import torch
from torch import Tensor


def additive_mask(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """`(B, T)` bool → additive `(B, 1, 1, T)` in the dtype in which attention is computed; None for None."""
    if mask is None:
        return None
    dtype = (
        torch.get_autocast_dtype(like.device.type)
        if torch.is_autocast_enabled(like.device.type)
        else like.dtype
    )
    bias = torch.zeros(mask.shape, dtype=dtype, device=like.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min)[:, None, None, :]
