"""What a choice among alternatives is worth once each alternative has been trained with several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np

from harness.analysis.effects import Effects, effects
from harness.analysis.stats import Interval
from harness.analysis.variance import (
    Components,
    best_of_the_others,
    components,
    contrast,
    seeds_to_tell,
    weights_of,
)

Set = tuple[str, ...]
"""Names of what is skipped, in the order of the model."""


@dataclass(frozen=True)
class Chooser:
    """How well one way of choosing does.

    chosen: the set it chose with each seed. score: mean score of these sets. rank: their mean rank among all sets, 1
    the best. gain: score less that of an average set. regret: the oracle's score less this one; None for the oracle.
    """

    label: str
    chosen: tuple[Set, ...]
    score: float
    rank: float | None
    gain: Interval
    regret: Interval | None


@dataclass(frozen=True)
class Audit:
    """The result of an audit.

    sets: all sets that were trained, best first. scores: `(sets, seeds)`. drawn: those among them that were drawn at
    random (or all sets), by which variance and averages are estimated. effects: which parts can be spared, by these.
    """

    sets: tuple[Set, ...]
    scores: np.ndarray
    drawn: tuple[Set, ...]
    components: Components
    choosers: tuple[Chooser, ...]
    higher_is_better: bool
    effects: Effects | None

    @property
    def matters(self) -> bool:
        """Whether the sets differ, at the 5 % level."""
        return self.components.p_value < 0.05


def audit(
    scores: Mapping[Set, Sequence[float]],
    drawn: Sequence[Set],
    choices: Mapping[str, Sequence[Set]],
    higher_is_better: bool = True,
    parts: Sequence[str] = (),
) -> Audit:
    """Compare choosers with random sets and with an oracle.

    scores: of every set, one per seed, in the same order of seeds. drawn: the sets that were not picked by a chooser.
    choices: the sets chosen, by chooser; each must have scores. parts: all that could be skipped, in the order of the
    model.
    """
    sign = 1 if higher_is_better else -1
    sets = sorted(scores, key=lambda each: -sign * float(np.mean(scores[each])))
    table = np.array([scores[each] for each in sets], dtype=float)
    places = {each: place for place, each in enumerate(sets)}
    among = [places[each] for each in drawn]
    found = components(table[among])
    average = weights_of(among, table.shape)
    best = best_of_the_others(sign * table)

    def chooser(label: str, weights: np.ndarray, chosen: Sequence[Set] = ()) -> Chooser:
        ranks = [places[each] + 1 for each in chosen]
        return Chooser(
            label,
            tuple(chosen),
            float((table * weights).sum()),
            sum(ranks) / len(ranks) if ranks else None,
            contrast(table, sign * (weights - average), found),
            None if weights is best else contrast(table, sign * (best - weights), found),
        )

    choosers = [
        *(
            chooser(label, weights_of([places[each] for each in chosen], table.shape), chosen)
            for label, chosen in choices.items()
        ),
        chooser("an average set", average),
        chooser("oracle", best),
    ]
    spared = effects(drawn, [float(mean) for mean in table[among].mean(axis=1)], parts) if parts else None
    return Audit(tuple(sets), table, tuple(drawn), found, tuple(choosers), higher_is_better, spared)


def verdict(found: Audit) -> str:
    """One sentence on whether the choice matters."""
    parts = found.components
    size = f"{parts.groups} sets × {parts.seeds} seeds"
    spread = (
        f"standard deviation between sets {sqrt(max(0.0, parts.between.estimate)):.1f} points, 95 % interval "
        f"{sqrt(parts.between.low):.1f} to {sqrt(parts.between.high):.1f}, against "
        f"{sqrt(parts.within.estimate):.1f} between retrainings of one set"
    )
    if found.matters:
        return f"The choice matters after retraining ({size}): {spread}."
    return f"As far as {size} can tell, the choice does not matter after retraining: {spread}."


def seeds_needed(found: Audit) -> dict[float, int]:
    """Seeds per set that find a difference, by the difference in points: 1, and the typical one between two sets."""
    parts = found.components
    differences = [1.0]
    if parts.between.estimate > 0:
        differences.append(sqrt(2 * parts.between.estimate))
    return {each: seeds_to_tell(each, parts.within.estimate) for each in differences}
