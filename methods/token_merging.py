"""Pruning and merging of tokens as pure functions of tensors and lengths.

Bipartite soft matching, its weighted mean and its schedules are those of ToMe (Bolya et al., ICLR 2023; public code
facebookresearch/ToMe). Counts that are shares of a length are rounded as PuMer does (Cao et al., ACL 2023;
csarron/PuMer).

The number of tokens that are left depends only on lengths, never on values, so shapes are known without data. Rows may
be padded at the end. A padded row gives the result that it would give without padding: `lengths` is the number of
tokens of each row that are not padding, and only this decides how many of them are merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


def merge_schedule(r: int | Sequence[int], blocks: int, inflection: float = 0.0) -> tuple[int, ...]:
    """Tokens to merge in each of `blocks` blocks.

    r: one number for all blocks, or one number per block; missing ones are 0.
    inflection: how a single `r` changes over the blocks: 0 constant, −1 linearly from 2 r down to 0, 1 from 0 up to
        2 r.

    Raises:
        ValueError: more numbers than blocks.
    """
    if not isinstance(r, int):
        if len(r) > blocks:
            raise ValueError(f"{len(r)} numbers of tokens for {blocks} blocks")
        return (*r, *[0] * (blocks - len(r)))
    first = int(r * (1 - inflection))
    last = 2 * r - first
    step = (last - first) / max(blocks - 1, 1)
    return tuple(int(first + step * block) for block in range(blocks))


def share(part: float, length: int) -> int:
    """A share of a length in whole tokens, halves rounded to even: .1 of 145 is 14, .3 of 145 is 44."""
    return round(part * length)


def cap_merges(wanted: int, length: int, protected: int = 1) -> int:
    """`wanted`, but at most half of the unprotected tokens, because each needs another one to merge into."""
    return max(min(wanted, (length - protected) // 2), 0)


@dataclass(frozen=True)
class Merges:
    """How many tokens each row merges.

    most: the largest number in any row. left: number of tokens in the longest row of the result.
    rows: `(B,)` int64, the number in each row; None: `most` in every row.
    """

    most: int
    left: int
    rows: Tensor | None = None

    @classmethod
    def by_length(cls, before: Sequence[int], merged: Sequence[int], lengths: Tensor | None) -> Self:
        """Counts for rows of `lengths` `(B,)` tokens; None: all rows have the greatest length.

        before, merged: of a row with n tokens, `before[n]` enter the matching and `merged[n]` are merged. The last
        entries are those of the greatest length.
        """
        if lengths is None:
            return cls(merged[-1], before[-1] - merged[-1])
        # A slightly shorter row may keep one token more, since both numbers are rounded.
        left = max(entering - gone for entering, gone in zip(before, merged, strict=True))
        return cls(max(merged), left, torch.tensor(merged, device=lengths.device)[lengths])


@dataclass(frozen=True)
class Matching:
    """Which tokens stay, and which are merged into which.

    kept: `(B, K)` positions of the tokens that stay, in the order of the result. In shorter rows other tokens follow,
        which the padding mask must hide.
    sources: `(B, R)` positions of the merged tokens. targets: `(B, R)` index into `kept` that each is merged into.
    merging: `(B, R)` bool, False for sources that the row does not merge; None: all are merged.
    """

    kept: Tensor
    sources: Tensor
    targets: Tensor
    merging: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        """`(B, T, C)` → `(B, K, C)`: the sum of each token that stays and those merged into it."""
        added = take(values, self.sources)
        if self.merging is not None:
            added = added.masked_fill(~self.merging[..., None], 0)
        return take(values, self.kept).scatter_add(1, _expand(self.targets, values), added)


@torch.no_grad()
def bipartite_matching(
    metric: Tensor, merges: Merges, lengths: Tensor | None = None, protect_first: bool = True
) -> Matching:
    """ToMe's bipartite soft matching of tokens by the cosine similarity of `metric` `(B, T, C)`.

    Tokens at even positions can be merged into tokens at odd positions. Each even token is paired with the most
    similar odd one, and the pairs with the highest similarity are merged; of equal ones the first. The result holds
    the remaining even tokens, then the odd ones.

    merges: at least one; each row's number is at most `cap_merges` of its length.
    lengths: `(B,)` int64, number of tokens of each row that are not padding; None: all.
    protect_first: never merge the token at position 0, and sort the remaining even tokens by position, so that it
        stays first. False: they are sorted by descending similarity.
    """
    tokens, most = metric.shape[1], merges.most
    evens = (tokens + 1) // 2
    unit = F.normalize(metric, dim=-1)
    similarity = unit[:, ::2] @ unit[:, 1::2].transpose(1, 2)
    own = None if lengths is None else is_own(lengths, tokens)
    if own is not None:
        similarity = similarity.masked_fill(~(own[:, ::2, None] & own[:, None, 1::2]), -torch.inf)
    if protect_first:
        similarity[:, 0] = -torch.inf
    best, pick = similarity.max(dim=-1)
    ranking = best.argsort(dim=-1, descending=True, stable=True)
    sources = ranking[:, :most]
    merging = None if merges.rows is None else is_own(merges.rows, most)

    # Sort keys of the result: even positions, then odd ones; tokens that do not stay go to the end.
    gone = torch.zeros_like(best, dtype=torch.bool)
    gone = gone.scatter(
        1, sources, torch.ones_like(sources, dtype=torch.bool) if merging is None else merging
    )
    gone = F.pad(gone, (0, tokens - evens))
    places = torch.arange(tokens, device=metric.device)
    if own is not None:
        gone = gone | ~torch.cat([own[:, ::2], own[:, 1::2]], dim=1)
    keys = places.expand(len(metric), -1)
    if not protect_first:
        keys = torch.cat([inverse(ranking), keys[:, evens:]], dim=1)
    order = (keys + tokens * gone).argsort(dim=1)
    positions = torch.cat([places[::2], places[1::2]])
    targets = inverse(order).gather(1, evens + pick.gather(1, sources))
    # Sources that are not merged may have picked padding, which is not in the result.
    return Matching(
        positions[order[:, : merges.left]], 2 * sources, targets.clamp(max=merges.left - 1), merging
    )


def merge(matching: Matching, hidden: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The mean of each merged group, weighted by `sizes` `(B, T)`, `(B, K, D)`, and the sizes of the groups `(B, K)`.

    sizes: None: all 1, which gives the plain mean.
    """
    if sizes is None:
        sizes = torch.ones(hidden.shape[:2], device=hidden.device)
    total = matching.sum(sizes[..., None])
    mean = matching.sum(hidden * sizes[..., None]) / total
    return mean.to(hidden.dtype), total[..., 0]


@torch.no_grad()
def best_first(scores: Tensor, keep: int) -> Tensor:
    """Positions `(B, keep)` of the highest `scores` `(B, T)` in descending order; of equal ones the first."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :keep]


@torch.no_grad()
def best_in_place(scores: Tensor, keep: int, rows: Tensor | None = None) -> Tensor:
    """The same positions as `best_first`, sorted by position.

    rows: `(B,)` int64, how many each row keeps, at most `keep`; other positions follow, which its mask must hide.
    """
    rank = inverse(scores.argsort(dim=1, descending=True, stable=True))
    dropped = rank >= (keep if rows is None else rows[:, None])
    places = torch.arange(scores.shape[1], device=scores.device)
    return (places + scores.shape[1] * dropped).argsort(dim=1)[:, :keep]


def is_own(lengths: Tensor, tokens: int) -> Tensor:
    """`(B,)` lengths → `(B, tokens)` bool, True at positions below the row's length."""
    return torch.arange(tokens, device=lengths.device) < lengths[:, None]


def take(values: Tensor, positions: Tensor) -> Tensor:
    """`(B, T, C)` at `positions` `(B, K)` → `(B, K, C)`."""
    return values.gather(1, _expand(positions, values))


def inverse(permutation: Tensor) -> Tensor:
    """The inverse of each row's permutation: entry i is the place of i."""
    places = torch.arange(permutation.shape[1], device=permutation.device).expand_as(permutation)
    return torch.empty_like(permutation).scatter(1, permutation, places)


def _expand(positions: Tensor, values: Tensor) -> Tensor:
    return positions[..., None].expand(-1, -1, values.shape[-1])
