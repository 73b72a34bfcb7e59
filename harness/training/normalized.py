"""AdamW in which some groups of parameters take steps of a fixed length."""

from __future__ import annotations

from typing import Any

import torch


class MixedAdamW(torch.optim.AdamW):
    """AdamW; a group with `normalized` moves by `−lr · g / ‖g‖₂`, with the norm over all its parameters.

    A step without a finite gradient, or with the gradient 0, leaves such a group as it is.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of all groups."""
        for group in self.param_groups:
            if not group.get("normalized"):
                continue
            own = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not own:
                continue
            norm = torch.stack([each.grad.float().square().sum() for each in own]).sum().sqrt()
            moves = (norm > 0) & norm.isfinite()  # not asked for here, which would wait for a GPU
            for parameter in own:
                change = group["lr"] / norm * parameter.grad
                parameter.sub_(torch.where(moves, change, 0.0).to(parameter.dtype))
                parameter.grad = None  # AdamW leaves it alone
        return super().step(closure)
