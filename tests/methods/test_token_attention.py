"""Attention of the reducing blocks: sizes, weights, and PuMer's masked softmax."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.backbones.block import Tokens
from harness.backbones.masks import additive_mask
from methods.token_attention import AttentionStyle, additive, mask_weights, published_softmax


def heads(tokens: int, seed: int) -> Tensor:
    return torch.randn(2, 3, tokens, 4, generator=torch.Generator().manual_seed(seed))


def read(tokens: int, sizes: Tensor | None = None, mask: Tensor | None = None) -> Tokens:
    hidden = torch.zeros(2, tokens, 1)
    return Tokens(hidden, additive_mask(mask, hidden), sizes=sizes)


def test_a_token_of_size_two_is_attended_to_as_two_equal_tokens() -> None:
    query, key, value = heads(5, 0), heads(4, 1), heads(4, 2)
    sizes = torch.tensor([[1.0, 2, 1, 1]]).expand(2, -1)
    twice = torch.tensor([0, 1, 1, 2, 3])
    expected, _ = AttentionStyle()(query, key[:, :, twice], value[:, :, twice], read(5))
    found, _ = AttentionStyle(proportional=True)(query, key, value, read(4, sizes))
    torch.testing.assert_close(found, expected)
    ignored, _ = AttentionStyle()(query, key, value, read(4, sizes))
    assert not torch.allclose(ignored, expected)


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("masked", [False, True])
def test_weights_of_the_leading_queries_are_the_softmax(rows: int | None, masked: bool) -> None:
    query, key, value = heads(5, 0), heads(4, 1), heads(4, 2)
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]]) if masked else None
    sizes = torch.tensor([[1.0, 3, 1, 2]]).expand(2, -1)
    tokens = read(4, sizes, mask)
    scores = query @ key.transpose(-1, -2) / math.sqrt(4) + sizes.log()[:, None, None]
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
    expected = scores.softmax(dim=-1)
    mixed, weights = AttentionStyle(proportional=True, weights=True)(query, key, value, tokens, rows)
    assert weights is not None
    torch.testing.assert_close(weights, expected[:, :, :rows])
    torch.testing.assert_close(mixed, expected @ value)
    assert AttentionStyle(proportional=True)(query, key, value, tokens, rows)[1] is None


def test_masked_softmax_of_pumer_by_hand() -> None:
    scores = torch.tensor([[0.0, math.log(2), math.log(3)], [0.0, 0.0, math.log(5)]])[None, None]
    mask = additive(torch.tensor([[1.0, 0.5, 0.0]]))
    eps = 1e-6
    # Divided by the largest: query 0 gives 1/3, 2/3 · 0.5 and 0; query 1 gives 1/5, 1/5 to itself, whole, and 0.
    expected = torch.tensor(
        [
            [(weight + eps / 3) / (total + eps) for weight in row]
            for row, total in (((1 / 3, 1 / 3, 0.0), 2 / 3), ((1 / 5, 1 / 5, 0.0), 2 / 5))
        ]
    )
    torch.testing.assert_close(published_softmax(scores, mask)[0, 0], expected)


def test_masked_softmax_of_pumer_lets_every_query_see_the_key_at_its_position() -> None:
    padding = additive(torch.tensor([[1.0, 0.0]]))
    weights = published_softmax(torch.zeros(1, 1, 3, 2), padding)[0, 0]
    torch.testing.assert_close(weights, torch.tensor([[1.0, 0], [0.5, 0.5], [1.0, 0]]), atol=1e-6, rtol=0)


def test_masked_softmax_of_pumer_is_the_softmax_where_nothing_is_padded() -> None:
    scores = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(published_softmax(scores, None), scores.softmax(-1), atol=2e-6, rtol=0)
    torch.testing.assert_close(
        published_softmax(scores, torch.zeros(2, 1, 1, 5)), scores.softmax(-1), atol=2e-6, rtol=0
    )


def test_additive_masks_and_mask_weights_are_inverse() -> None:
    weights = torch.tensor([[1.0, 0.25, 0.0]])
    mask = additive(weights)
    assert mask.flatten().tolist() == pytest.approx([0, math.log(0.25), torch.finfo(torch.float32).min])
    torch.testing.assert_close(mask_weights(mask), weights)
    bools = torch.tensor([[True, False]])
    assert mask_weights(additive_mask(bools, torch.zeros(1))).tolist() == [[1, 0]]  # type: ignore[arg-type]


def test_published_weights_are_those_after_dropout_and_sound_ones_those_before() -> None:
    query, key, value = heads(6, 0), heads(8, 1), heads(8, 2)
    torch.manual_seed(0)
    _, published = AttentionStyle(weights=True, published=True)(query, key, value, read(8), dropout=0.5)
    assert published is not None
    dropped = published == 0
    assert 0.3 < dropped.float().mean() < 0.7
    torch.manual_seed(0)
    mixed, sound = AttentionStyle(weights=True)(query, key, value, read(8), dropout=0.5)
    assert sound is not None
    torch.testing.assert_close(sound.sum(dim=-1), torch.ones(2, 3, 6))
    torch.manual_seed(0)
    torch.testing.assert_close(mixed, F.dropout(sound, 0.5) @ value)
