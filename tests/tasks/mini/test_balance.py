from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest

from tasks.mini.balance import Pattern, choose_balanced


@dataclass(frozen=True)
class Statement:
    number: int
    kind: str = "any"


def numbered(*patterns: Pattern) -> list[tuple[Statement, Pattern]]:
    return [(Statement(number), pattern) for number, pattern in enumerate(patterns)]


def test_a_sentence_comes_with_one_of_the_opposite_pattern() -> None:
    candidates = numbered((1, 1, 0, 0), (1, 0, 1, 0), (0, 0, 1, 1), (1, 1, 1, 0))
    for seed in range(5):
        chosen = choose_balanced(candidates, 2, 1, np.random.default_rng(seed))
        assert chosen is not None
        assert sorted(said.number for said, _ in chosen) == [0, 2]


@pytest.mark.parametrize(("labels", "items"), [(2, 4), (3, 3), (3, 6)])
def test_sentences_and_items_have_every_label_equally_often(labels: int, items: int) -> None:
    rng = np.random.default_rng(3)
    candidates = [(Statement(k), tuple(rng.permutation(items) % labels)) for k in range(4000)]
    chosen = choose_balanced(candidates, labels, 2, rng)
    assert chosen is not None
    assert len({said for said, _ in chosen}) == 2 * labels
    for _, pattern in chosen:
        assert set(Counter(pattern).values()) == {items // labels}
    for column in zip(*(pattern for _, pattern in chosen), strict=True):
        assert set(Counter(column).values()) == {2}


def test_too_few_candidates_give_none() -> None:
    rng = np.random.default_rng(0)
    assert choose_balanced(numbered((1, 1, 0, 0), (1, 0, 1, 0)), 2, 1, rng) is None
    assert choose_balanced(numbered((1, 1, 0, 0), (0, 0, 1, 1)), 2, 2, rng) is None
    equal = [(Statement(0), (1, 0)), (Statement(0), (1, 0)), (Statement(1), (0, 1))]
    assert choose_balanced(equal, 2, 2, rng) is None  # equal sentences count once


def test_kinds_are_chosen_equally_often_whatever_their_number_of_candidates() -> None:
    candidates = [(Statement(k, "rare" if k == 0 else "frequent"), (0, 1)) for k in range(50)]
    candidates.append((Statement(99), (1, 0)))
    rng = np.random.default_rng(0)
    found: Counter[str] = Counter()
    for _ in range(400):
        chosen = choose_balanced(candidates, 2, 1, rng)
        assert chosen is not None
        found.update(said.kind for said, pattern in chosen if pattern == (0, 1))
    assert 150 < found["rare"] < 250
    chosen = choose_balanced(candidates, 2, 1, rng, {"rare": 0.0})
    assert chosen is not None
    assert "rare" not in {said.kind for said, _ in chosen}
