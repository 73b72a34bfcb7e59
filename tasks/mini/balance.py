"""Choose sentences about a set of pictures so that neither sentence nor picture alone predicts the label.

Each sentence is used with every item of the set (a picture, or a pair of pictures) and has every label equally
often. Each item also has every label equally often over the set's sentences. A model that sees only the text, or
only the pictures, is therefore exactly at chance, whatever it has learned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np

from tasks.mini.world import pick


class Sentence(Protocol):
    """A sentence about an item; equal sentences say the same."""

    @property
    def kind(self) -> str:
        """Name of its construction; kinds are drawn by their weights, as far as the set allows."""

    def __hash__(self) -> int: ...


SentenceT = TypeVar("SentenceT", bound=Sentence)

Pattern = tuple[int, ...]
"""A sentence's label (from 0) for each item of the set."""


def choose_balanced(
    candidates: Sequence[tuple[SentenceT, Pattern]],
    labels: int,
    rounds: int,
    rng: np.random.Generator,
    weights: Mapping[str, float] = MappingProxyType({}),
) -> list[tuple[SentenceT, Pattern]] | None:
    """`rounds * labels` different candidates, balanced as described above; `None` if there are too few.

    A round takes one sentence of some pattern, then sentences with the same pattern shifted by 1, by 2, and so
    on: the shift is added to every label, modulo `labels`.

    weights: sampling weights of the kinds among the sentences that fit; 1 for kinds that are not listed.
    """
    by_pattern: dict[Pattern, dict[SentenceT, None]] = defaultdict(dict)
    for sentence, pattern in candidates:
        if is_even(pattern, labels):
            by_pattern[pattern][sentence] = None
    chosen: list[tuple[SentenceT, Pattern]] = []
    for _ in range(rounds):
        families = [_shifts(pattern, labels) for pattern in sorted(by_pattern)]
        families = [family for family in families if all(by_pattern.get(pattern) for pattern in family)]
        if not families:
            return None
        for pattern in pick(families, rng):
            kinds = list(dict.fromkeys(sentence.kind for sentence in by_pattern[pattern]))
            ends = np.cumsum([weights.get(kind, 1.0) for kind in kinds])
            kind = kinds[int(np.searchsorted(ends, rng.random() * ends[-1], side="right"))]
            sentence = pick([sentence for sentence in by_pattern[pattern] if sentence.kind == kind], rng)
            del by_pattern[pattern][sentence]
            chosen.append((sentence, pattern))
    return chosen


def is_even(pattern: Pattern, labels: int) -> bool:
    """True if every label occurs equally often."""
    return all(pattern.count(label) * labels == len(pattern) for label in range(labels))


def _shifts(pattern: Pattern, labels: int) -> list[Pattern]:
    return [tuple((label + shift) % labels for label in pattern) for shift in range(labels)]
