"""Matching, merging and pruning against hand-worked cases and a slow implementation of the paper's rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from methods.token_merging import (
    Matching,
    Merges,
    best_first,
    best_in_place,
    bipartite_matching,
    cap_merges,
    merge,
    merge_schedule,
    share,
)


def angles(*degrees: float) -> Tensor:
    """One row of unit vectors with these angles."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=-1)[None]


def groups(matching: Matching, tokens: int) -> list[list[list[int]]]:
    """For each row and each token of the result, the positions that were merged into it."""
    identity = torch.eye(tokens).expand(len(matching.kept), -1, -1)
    return [[token.nonzero().flatten().tolist() for token in row] for row in matching.sum(identity)]


def all_merging(metric: Tensor, count: int, protect_first: bool = True) -> Matching:
    return bipartite_matching(metric, Merges(count, metric.shape[1] - count), protect_first=protect_first)


def slow_groups(metric: Sequence[Sequence[float]], count: int, protect_first: bool) -> list[list[int]]:
    """ToMe's rules applied token by token: for each token of the result, the positions merged into it."""

    def cosine(i: int, j: int) -> float:
        norms = math.hypot(*metric[i]) * math.hypot(*metric[j])
        return sum(a * b for a, b in zip(metric[i], metric[j], strict=True)) / norms

    odd = list(range(1, len(metric), 2))
    candidates = [i for i in range(0, len(metric), 2) if not (protect_first and i == 0)]
    pick = {i: max(odd, key=lambda j: (cosine(i, j), -j)) for i in candidates}
    ranking = sorted(candidates, key=lambda i: (-cosine(i, pick[i]), i))
    left = [0, *sorted(ranking[count:])] if protect_first else ranking[count:]
    joined = [[j, *(i for i in ranking[:count] if pick[i] == j)] for j in odd]
    return [[i] for i in left] + [sorted(group) for group in joined]


@pytest.mark.parametrize(
    ("r", "inflection", "blocks", "expected"),
    [
        (8, 0.0, 4, (8, 8, 8, 8)),
        (8, -1.0, 12, (16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0)),
        (8, 1.0, 3, (0, 8, 16)),
        (4, -0.5, 3, (6, 4, 2)),
        ((5, 3), 0.0, 4, (5, 3, 0, 0)),
        (3, -1.0, 1, (6,)),
    ],
)
def test_merge_schedules_by_hand(
    r: int | tuple[int, ...], inflection: float, blocks: int, expected: tuple[int, ...]
) -> None:
    assert merge_schedule(r, blocks, inflection) == expected


def test_a_schedule_longer_than_the_model_is_refused() -> None:
    with pytest.raises(ValueError, match="3 numbers of tokens for 2 blocks"):
        merge_schedule((1, 2, 3), 2)


@pytest.mark.parametrize(
    ("part", "length", "expected"),
    [(0.1, 145, 14), (0.3, 145, 44), (0.5, 5, 2), (0.5, 7, 4), (0.01, 49, 0), (0.2, 32, 6)],
)
def test_shares_are_rounded_half_to_even(part: float, length: int, expected: int) -> None:
    assert share(part, length) == expected


@pytest.mark.parametrize(
    ("wanted", "length", "protected", "expected"),
    [(44, 131, 1, 44), (9, 8, 1, 3), (9, 9, 1, 4), (9, 8, 0, 4), (2, 2, 1, 0), (2, 1, 1, 0), (2, 0, 1, 0)],
)
def test_at_most_half_of_the_unprotected_tokens_are_merged(
    wanted: int, length: int, protected: int, expected: int
) -> None:
    assert cap_merges(wanted, length, protected) == expected


def test_the_most_similar_candidates_join_their_most_similar_partner() -> None:
    # Candidates 0 (protected), 2 at 50°, 4 at 92°, 6 at 10°; partners 1 at 0°, 3 at 90°, 5 at 45°.
    metric = angles(1, 0, 50, 90, 92, 45, 10)
    assert groups(all_merging(metric, 1), 7) == [[[0], [2], [6], [1], [3, 4], [5]]]
    assert groups(all_merging(metric, 2), 7) == [[[0], [6], [1], [3, 4], [2, 5]]]
    assert groups(all_merging(metric, 3), 7) == [[[0], [1, 6], [3, 4], [2, 5]]]


def test_several_candidates_may_join_one_partner() -> None:
    metric = angles(180, 10, 12, 90, 9, 120)
    matching = all_merging(metric, 2)
    assert groups(matching, 6) == [[[0], [1, 2, 4], [3], [5]]]
    states = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [7.0], [6.0]]])
    hidden, sizes = merge(matching, states)
    assert hidden.flatten().tolist() == [1, 4, 4, 6]
    assert sizes.tolist() == [[1, 3, 1, 1]]
    hidden, sizes = merge(matching, states, torch.tensor([[1.0, 1, 2, 1, 3, 5]]))
    assert hidden.flatten().tolist() == pytest.approx([1, (2 + 2 * 3 + 3 * 7) / 6, 4, 6])
    assert sizes.tolist() == [[1, 6, 1, 5]]


def test_first_of_equal_similarities_is_taken() -> None:
    metric = angles(0, 0, 0, 0, 0, 0)
    assert groups(all_merging(metric, 1), 6) == [[[0], [4], [1, 2], [3], [5]]]
    assert groups(all_merging(metric, 1, protect_first=False), 6) == [[[2], [4], [0, 1], [3], [5]]]


def test_remaining_tokens_are_sorted_by_similarity_without_a_protected_token() -> None:
    metric = angles(0, 1, 40, 90, 75, 180)  # candidates 0, 2, 4 are 1°, 39° and 15° from their picks
    assert groups(all_merging(metric, 1, protect_first=False), 6) == [[[4], [2], [0, 1], [3], [5]]]


@pytest.mark.parametrize("protect_first", [True, False])
@pytest.mark.parametrize("tokens", [3, 4, 7, 12])
def test_matching_equals_a_slow_reference(tokens: int, protect_first: bool) -> None:
    generator = torch.Generator().manual_seed(tokens)
    metric = torch.randn(6, tokens, 3, generator=generator, dtype=torch.float64)
    states = torch.randn(6, tokens, 2, generator=generator, dtype=torch.float64)
    sizes = torch.randint(1, 5, (6, tokens), generator=generator).double()
    for count in range(1, cap_merges(tokens, tokens, int(protect_first)) + 1):
        matching = all_merging(metric, count, protect_first)
        expected = [slow_groups(row.tolist(), count, protect_first) for row in metric]
        assert groups(matching, tokens) == expected
        hidden, total = merge(matching, states, sizes)
        for row, parts in enumerate(expected):
            for place, part in enumerate(parts):
                weight = sizes[row, part]
                mean = (states[row, part] * weight[:, None]).sum(dim=0) / weight.sum()
                torch.testing.assert_close(hidden[row, place], mean)
                assert total[row, place] == weight.sum()


def test_padding_merges_with_nothing_and_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    metric = torch.randn(12, 13, 3, generator=generator)
    lengths = torch.arange(2, 14)
    counts = [cap_merges(share(0.3, length), length) for length in range(14)]
    merges = Merges.by_length(range(14), counts, lengths)
    found = groups(bipartite_matching(metric, merges, lengths), 13)
    for row, length in enumerate(lengths.tolist()):
        alone = slow_groups(metric[row, :length].tolist(), counts[length], protect_first=True)
        assert found[row][: len(alone)] == alone
        assert len(found[row]) == merges.left


def test_result_has_room_for_a_short_row_that_keeps_more_than_a_longer_one() -> None:
    keep = [length - share(0.2, length) for length in range(9)]
    counts = [cap_merges(share(0.2, length), kept) for length, kept in enumerate(keep)]
    assert keep[7:] == [6, 6]
    assert counts[7:] == [1, 2]
    merges = Merges.by_length(keep, counts, torch.tensor([8, 7]))
    assert (merges.most, merges.left) == (2, 5)
    assert merges.rows is not None
    assert merges.rows.tolist() == [2, 1]
    assert Merges.by_length(keep, counts, None) == Merges(2, 4)


def test_highest_scores_are_kept_by_score_or_by_position() -> None:
    scores = torch.tensor([[0.1, 0.5, 0.3, 0.5, 0.2], [5.0, 4.0, 3.0, 2.0, 1.0]])
    assert best_first(scores, 3).tolist() == [[1, 3, 2], [0, 1, 2]]
    assert best_in_place(scores, 3).tolist() == [[1, 2, 3], [0, 1, 2]]
    rows = torch.tensor([1, 3])
    fewer = best_in_place(scores, 3, rows)
    assert fewer[0, 0] == 1
    assert fewer[1].tolist() == [0, 1, 2]


def test_shapes_do_not_depend_on_values() -> None:
    metric = torch.empty(2, 9, 4, device="meta")
    lengths = torch.empty(2, dtype=torch.long, device="meta")
    counts = [cap_merges(2, length) for length in range(10)]
    for given in (None, lengths):
        matching = bipartite_matching(metric, Merges.by_length(range(10), counts, given), given)
        hidden, sizes = merge(matching, metric)
        assert hidden.shape == (2, 7, 4)
        assert sizes.shape == (2, 7)
    assert best_in_place(metric[..., 0], 5, lengths).shape == (2, 5)


def test_gradients_reach_the_states_and_not_the_metric() -> None:
    metric = torch.randn(1, 5, 3, requires_grad=True)
    states = torch.randn(1, 5, 2, requires_grad=True)
    merge(all_merging(metric, 2), states)[0].sum().backward()
    assert metric.grad is None
    assert states.grad is not None
    assert (states.grad != 0).all()
