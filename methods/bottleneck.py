"""The bottleneck adapter that several methods insert, in series, in parallel or as a shortcut."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, Tensor, nn, no_grad, ones
from torch.nn.utils import skip_init

from harness.backbones.folding import Activation, Affine, Branch, Norm
from methods.base import Inserted

LAYER_NORM_EPS = 1e-5
"""Of torch's LayerNorm, and so of DAS's published adapters."""


class BottleneckAdapter(Inserted):
    """`up(act(down(x)))`, as used in series (Houlsby et al. 2019), in parallel (He et al. 2022), in DAS.

    Both projections have biases, which start at 0; weights start at N(0, `std`), as in DAS.

    width: hidden size D of what goes in and comes out.
    bottleneck: hidden size between the projections.
    generator: source of the weights (CPU).
    layer_norm: normalise the input inside the branch.
    residual: add the (un-normalised) input to the result.
    scale: factor of the branch.
    learn_scale: train that factor.
    zero_up: start `up` at 0, so that the branch adds nothing at first.
    eps: epsilon of the norm.
    """

    def __init__(
        self,
        width: int,
        bottleneck: int,
        generator: Generator,
        *,
        layer_norm: bool = False,
        residual: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        activation: Activation = "relu",
        std: float = 0.02,
        zero_up: bool = False,
        eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps) if layer_norm else None
        self.down = linear(width, bottleneck, std, generator)
        self.up = linear(bottleneck, width, 0.0 if zero_up else std, generator)
        self.scale: nn.Parameter | float = nn.Parameter(ones(1) * scale) if learn_scale else scale
        self.residual = residual
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        """`(…, D)` → `(…, D)`."""
        inner = hidden if self.norm is None else self.norm(hidden)
        inner = self.down(inner)
        inner = F.relu(inner) if self.activation == "relu" else F.gelu(inner)
        if isinstance(self.scale, float) and self.scale == 1.0:
            result: Tensor = self.up(inner)
        else:  # scaling the weights takes fewer operations than scaling every token
            result = F.linear(inner, self.up.weight * self.scale, self.up.bias * self.scale)
        return hidden + result if self.residual else result

    def branch(self) -> Branch | None:
        """Its arithmetic, for folding; None for a subclass, whose arithmetic may be another."""
        if type(self) is not BottleneckAdapter:
            return None
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        norm = None if self.norm is None else Norm.of(self.norm)
        down, up = Affine.of(self.down), Affine.of(self.up).scaled(scale)
        return Branch(down, up, self.activation, norm, self.residual)

    @no_grad()
    def fold_scale(self) -> None:
        """Multiply the factor into `up`; the outputs stay the same."""
        self.up.weight.mul_(self.scale)
        self.up.bias.mul_(self.scale)
        del self.scale  # a trained factor leaves the parameters
        self.scale = 1.0


def linear(inputs: int, outputs: int, std: float, generator: Generator) -> nn.Linear:
    """A linear map with weights N(0, `std`) from `generator` and biases 0; no other draw is made."""
    module: nn.Linear = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.normal_(module.weight, std=std, generator=generator)
    nn.init.zeros_(module.bias)
    return module


def bottleneck_size(width: int, bottleneck: int | None, reduction_factor: float | None = None) -> int:
    """What was chosen, or width / 8: 96 at width 768, as in the papers compared by DAS."""
    if bottleneck is not None:
        return bottleneck
    return max(1, int(width / (reduction_factor or 8)))
