"""Sentences about a set of pictures, chosen so that neither the sentence nor the picture alone gives a label away.

Each sentence is said of every item of the set (a picture, or a pair of them) and has every label equally often;
and each item has every label equally often over the set's sentences. A guess from the text alone, or from the
pictures alone, is then right for exactly one label in so many, whatever it has learned.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from tasks.mini.world import pick


class Sentence(Protocol):
    """What can be said of an item; equal ones say the same."""

    @property
    def kind(self) -> str:
        """Of its construction; kinds are chosen equally often where a set lets them."""

    def __hash__(self) -> int: ...


SentenceT = TypeVar("SentenceT", bound=Sentence)

Pattern = tuple[int, ...]
"""The label of a sentence, from 0, for each item of the set."""


def choose_balanced(
    candidates: Sequence[tuple[SentenceT, Pattern]], labels: int, rounds: int, rng: np.random.Generator
) -> list[tuple[SentenceT, Pattern]] | None:
    """`rounds * labels` different candidates, balanced as said above; `None` where there are not enough.

    A round takes one sentence of a pattern and, for the rest, sentences whose pattern is that one with every
    label raised by 1, by 2, and so on, modulo `labels`.
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
            kind = pick(list(dict.fromkeys(sentence.kind for sentence in by_pattern[pattern])), rng)
            sentence = pick([sentence for sentence in by_pattern[pattern] if sentence.kind == kind], rng)
            del by_pattern[pattern][sentence]
            chosen.append((sentence, pattern))
    return chosen


def is_even(pattern: Pattern, labels: int) -> bool:
    """Whether every label occurs equally often."""
    return all(pattern.count(label) * labels == len(pattern) for label in range(labels))


def _shifts(pattern: Pattern, labels: int) -> list[Pattern]:
    return [tuple((label + shift) % labels for label in pattern) for shift in range(labels)]
