"""The bottleneck adapter of several methods: sequential, parallel or as a shortcut."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Generator, Tensor, nn, no_grad, ones
from torch.nn.utils import skip_init

from harness.backbones.folding import Activation, Affine, Branch, Norm
from methods.base import Inserted

LAYER_NORM_EPS = 1e-5
"""Default of torch's LayerNorm, which the published code of DAS uses."""


def eps_beside(block: object) -> float:
    """Epsilon of a branch's LayerNorm beside a block: the block's own before its sublayers, if it has one.

    Both then read the same normalised tokens, so that the branch becomes part of the block's matrices.
    """
    own: float | None = getattr(block, "norm_eps", None)
    return LAYER_NORM_EPS if own is None else own


class BottleneckAdapter(Inserted):
    """`up(act(down(x)))`: sequential (Houlsby et al. 2019), parallel (He et al. 2022), in DAS.

    Both projections have biases, initialised to 0; weights are drawn from N(0, `std`²), as in DAS.

    width: size D of input and output.
    bottleneck: hidden size between the projections.
    generator: the weights are drawn from it (CPU).
    layer_norm: normalise the input inside the branch.
    residual: add the input, not normalised, to the result.
    scale: factor of the branch.
    learn_scale: train this factor.
    zero_up: initialise `up` to 0, so that the branch adds nothing at the start.
    eps: epsilon of the LayerNorm.
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
        else:  # scaling the weights costs less than scaling every token
            result = F.linear(inner, self.up.weight * self.scale, self.up.bias * self.scale)
        return hidden + result if self.residual else result

    def branch(self) -> Branch | None:
        """Its arithmetic, for folding; None for a subclass, which may compute something else."""
        if type(self) is not BottleneckAdapter:
            return None
        scale = self.scale.detach() if isinstance(self.scale, Tensor) else self.scale
        norm = None if self.norm is None else Norm.of(self.norm)
        down, up = Affine.of(self.down), Affine.of(self.up).scaled(scale)
        return Branch(down, up, self.activation, norm, self.residual)

    @no_grad()
    def fold_scale(self) -> None:
        """Multiply the factor into `up`, with the same outputs."""
        self.up.weight.mul_(self.scale)
        self.up.bias.mul_(self.scale)
        del self.scale  # it may be a parameter
        self.scale = 1.0


def linear(inputs: int, outputs: int, std: float, generator: Generator) -> nn.Linear:
    """A linear map with weights from N(0, `std`²) and biases 0. Nothing else is drawn from `generator`."""
    module: nn.Linear = skip_init(nn.Linear, inputs, outputs)  # type: ignore[no-untyped-call]
    nn.init.normal_(module.weight, std=std, generator=generator)
    nn.init.zeros_(module.bias)
    return module


def bottleneck_size(width: int, bottleneck: int | None, reduction_factor: float | None = None) -> int:
    """The chosen size, or width / 8 by default (96 at width 768, as in DAS's comparison)."""
    if bottleneck is not None:
        return bottleneck
    return max(1, int(width / (reduction_factor or 8)))
