"""Token reduction on `Tokens`: padding, the two parts of a joint stream, and the interfaces of reductions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import Tokens
from harness.errors import UserError
from methods.token_merging import Merges, bipartite_matching, cap_merges, is_own, merge, take

JointReduction: TypeAlias = Callable[[Tokens, Tensor, Tensor | None], Tokens]
"""Called by a block of a joint stream between attention and feed-forward. Arguments: the tokens after attention; their
keys, averaged over heads, `(B, T, C)`; the attention weights of the text rows `(B, H, L, T)` if the block computes
them."""

PairReduction: TypeAlias = Callable[
    [Tokens, Tokens, Tensor, Tensor, Tensor | None], tuple[Tokens, Tokens | None]
]
"""Called by a block with cross-attention before its feed-forward. Arguments: its tokens; the tokens of the other
stream; the keys of its self-attention, averaged over heads, `(B, T, C)`; those of its cross-attention `(B, S, C)`; the
weights of its cross-attention `(B, H, T, S)` if the block computes them. Returns the tokens of both streams; None
instead of the second means that the other stream is unchanged."""


def split(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """The text and the image tokens of a joint stream.

    Raises:
        ValueError: the tokens do not say where the text ends.
    """
    length = tokens.text_length
    if length is None:
        raise ValueError("the joint stream does not say how many of its tokens are text")
    image = Tokens(
        tokens.hidden[:, length:],
        None if tokens.mask is None else tokens.mask[..., length:],
        sizes=None if tokens.sizes is None else tokens.sizes[:, length:],
    )
    return replace(tokens.first(length), text_length=None), image


def join(text: Tokens, image: Tokens) -> Tokens:
    """A joint stream, text first."""
    mask = sizes = None
    if text.mask is not None or image.mask is not None:
        parts = [_mask_of(part) for part in (text, image)]
        dtype = torch.promote_types(parts[0].dtype, parts[1].dtype)
        mask = torch.cat([part.to(dtype) for part in parts], dim=-1)
    if text.sizes is not None or image.sizes is not None:
        sizes = torch.cat([_sizes_of(part) for part in (text, image)], dim=1)
    return Tokens(torch.cat([text.hidden, image.hidden], dim=1), mask, len(text), sizes)


def own_lengths(tokens: Tokens) -> Tensor | None:
    """`(B,)` int64, number of tokens in each row before its padding; None: nothing is padded."""
    return None if tokens.mask is None else (tokens.mask[:, 0, 0] == 0).sum(dim=-1)


def padded(mask: Tensor | None, lengths: Tensor | None, tokens: int) -> Tensor | None:
    """The additive mask of rows of `tokens` tokens, the first `lengths` `(B,)` of them not padding; dtype as `mask`."""
    if mask is None or lengths is None:
        return None
    empty = mask.new_zeros(len(lengths), tokens)
    return empty.masked_fill(~is_own(lengths, tokens), torch.finfo(mask.dtype).min)[:, None, None, :]


def pick(tokens: Tokens, positions: Tensor, lengths: Tensor | None) -> Tokens:
    """The tokens at `positions` `(B, K)`; the first `lengths` `(B,)` of each row are not padding."""
    sizes = tokens.sizes
    return Tokens(
        take(tokens.hidden, positions),
        padded(tokens.mask, lengths, positions.shape[1]),
        sizes=None if sizes is None else sizes.gather(1, positions),
    )


def merge_similar(
    tokens: Tokens,
    keys: Tensor,
    merges: Merges,
    *,
    protect_first: bool = True,
    track_sizes: bool = True,
) -> Tokens:
    """Merge similar tokens of one modality; padding is never merged.

    keys: `(B, T, C)`, whose cosine is the similarity. merges: how many tokens each row merges.
    track_sizes: weight tokens by their sizes and return the new sizes; False: plain means, no sizes.
    """
    if merges.most == 0:
        return tokens
    lengths = own_lengths(tokens)
    matching = bipartite_matching(keys, merges, lengths, protect_first)
    hidden, sizes = merge(matching, tokens.hidden, tokens.sizes if track_sizes else None)
    left = lengths if lengths is None else lengths - (merges.most if merges.rows is None else merges.rows)
    mask = padded(tokens.mask, left, merges.left)
    return Tokens(hidden, mask, sizes=sizes if track_sizes else None)


def merges_of_constant(r: int, tokens: Tokens, protected: int = 1) -> Merges:
    """Merge `r` tokens of every row, or as many as its length allows."""
    counts: Sequence[int] = [cap_merges(r, length, protected) for length in range(len(tokens) + 1)]
    return Merges.by_length(range(len(counts)), counts, own_lengths(tokens))


def require_own_blocks(method: str, backbone: Backbone, kind: type[torch.nn.Module]) -> None:
    """Check that every block is an original one of the class `kind`, which a reducing block can replace.

    Raises:
        UserError: another method has replaced or wrapped a block, or the backbone is not supported.
    """
    if backbone.fixed_tokens:
        raise UserError(
            f"{method}: {backbone.name} adds encoder states to its tokens before each depth, so that their number "
            "must stay; tokens can be reduced in ViLT and METER only."
        )
    for block in backbone.blocks:
        if type(block) is not kind:
            raise UserError(
                f"{method}: block {getattr(block, 'name', '?')} of {backbone.name} is a {type(block).__name__}, "
                f"not a {kind.__name__}; tokens can be reduced in ViLT's and METER's own blocks only."
            )


def _mask_of(tokens: Tokens) -> Tensor:
    if tokens.mask is not None:
        return tokens.mask
    hidden = tokens.hidden
    return torch.zeros(len(hidden), 1, 1, len(tokens), dtype=torch.float32, device=hidden.device)


def _sizes_of(tokens: Tokens) -> Tensor:
    if tokens.sizes is not None:
        return tokens.sizes
    return torch.ones(tokens.hidden.shape[:2], device=tokens.hidden.device)
