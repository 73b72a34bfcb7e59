"""Attention for blocks that reduce tokens: proportional to token sizes, with its weights, or as PuMer computes it.

Queries, keys and values are split by head: `(B, H, Q, C)`, `(B, H, N, C)`, `(B, H, N, C)`. Masks are additive,
`(B, 1, 1, N)`, as in `harness.backbones.block.Tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones import kernels
from harness.backbones.block import Tokens

PUBLISHED_EPSILON = 1e-6


@dataclass(frozen=True)
class AttentionStyle:
    """How a block attends.

    proportional: add the logarithm of a token's size to its scores, so that a token that stands for n is attended
        to as n equal tokens would be (ToMe, equation 1).
    weights: also return the attention weights; of the leading `rows` queries where the caller names them.
    published: the masked softmax of PuMer's code (`published_softmax`).
    """

    proportional: bool = False
    weights: bool = False
    published: bool = False

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        read: Tokens,
        rows: int | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor | None]:
        """Mixed values `(B, H, Q, C)`, and the attention weights `(B, H, rows, N)` or None.

        read: the tokens whose keys and values these are, for their mask and sizes.
        rows: queries whose weights are returned; None: all. The others use fused attention.
        dropout: probability of dropping a weight. The published weights are those after dropout.
        """
        if self.published:
            weights = published_softmax(_scores(query, key), read.mask)
            weights = F.dropout(weights, dropout) if dropout else weights
            return weights @ value, weights[:, :, :rows] if self.weights else None
        bias = key_bias(read, self.proportional, query.dtype)
        if not self.weights:
            return _fused(query, key, value, bias, dropout), None
        leading = query[:, :, :rows]
        scores = _scores(leading, key)
        weights = (scores if bias is None else scores + bias).softmax(dim=-1)
        dropped = F.dropout(weights, dropout) if dropout else weights
        mixed = dropped.to(value.dtype) @ value
        if leading.shape[2] < query.shape[2]:
            rest = _fused(query[:, :, leading.shape[2] :], key, value, bias, dropout)
            mixed = torch.cat([mixed, rest], dim=2)
        return mixed, weights


def key_bias(tokens: Tokens, proportional: bool, dtype: torch.dtype) -> Tensor | None:
    """What is added to the scores of each key `(B, 1, 1, N)`: the mask and, if asked for, log sizes."""
    if not proportional or tokens.sizes is None:
        return tokens.mask
    bias = tokens.sizes.log()[:, None, None, :].to(dtype)
    return bias if tokens.mask is None else bias + tokens.mask


def published_softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """The masked softmax of PuMer's code (`differentiable_masked_softmax`): `(B, H, Q, N)` → the same.

    Weights of masked keys are multiplied by the mask, except that query i always sees key i, padding or not, also
    across two streams. A mask between 0 and 1 (a token merged from a word and padding) acts in proportion.
    """
    queries, keys = scores.shape[-2:]
    weights = (scores - scores.amax(dim=-1, keepdim=True)).float().exp()
    if mask is not None:
        weights = weights * mask.float().exp().expand(-1, -1, queries, -1).masked_fill(
            torch.eye(queries, keys, dtype=torch.bool, device=scores.device), 1.0
        )
    total = weights.sum(dim=-1, keepdim=True)
    return ((weights + PUBLISHED_EPSILON / keys) / (total + PUBLISHED_EPSILON)).to(scores.dtype)


def mask_weights(mask: Tensor) -> Tensor:
    """Additive `(B, 1, 1, N)` → weights `(B, N)`: 1 for a token, 0 for padding, fractions between."""
    return mask[:, 0, 0].float().exp()


def additive(weights: Tensor) -> Tensor:
    """The inverse of `mask_weights`, float32, with the lowest number where the weight is 0."""
    return weights.float().log().clamp(min=torch.finfo(torch.float32).min)[:, None, None, :]


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)


def _fused(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    return kernels.attention(query, key, value, bias, dropout)
