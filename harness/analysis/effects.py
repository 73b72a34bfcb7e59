"""Which parts can be spared: what skipping each of them changes in the scores of random sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from harness.analysis.stats import Interval
from harness.analysis.variance import student


@dataclass(frozen=True)
class Effects:
    """Effects on a set's score, each with the others held fixed, with 95 % intervals.

    parts: of skipping this part rather than an average one.
    neighbours: of one more pair of skipped parts that follow each other; None if that cannot be told.
    explained: share of the variance between the sets' means that these effects account for, 0 to 1.
    """

    parts: Mapping[str, Interval]
    neighbours: Interval | None
    explained: float


def effects(sets: Sequence[Sequence[str]], means: Sequence[float], parts: Sequence[str]) -> Effects | None:
    """Least squares of the sets' mean scores on what they skip; None if there are too few sets.

    parts: all that could be skipped, in the order of the model. A stream is what precedes the first point of a name;
    parts are neighbours if they follow each other in one stream.

    All sets skip equally many parts, so that only differences between parts can be estimated: the effects add up to 0.
    """
    member = np.array([[part in each for part in parts] for each in sets], dtype=float)
    beside = np.array([one.partition(".")[0] == other.partition(".")[0] for one, other in pairwise(parts)])
    pairs = (member[:, :-1] * member[:, 1:] * beside).sum(axis=1)
    columns = np.column_stack([member, pairs])
    columns -= columns.mean(axis=0)
    found = np.asarray(means, dtype=float)
    centred = found - found.mean()
    freedom = len(found) - 1 - int(np.linalg.matrix_rank(columns))
    if freedom < 1:
        return None
    inverse = np.linalg.pinv(columns.T @ columns, hermitian=True)
    # The shortest of all solutions: if each set skips equally many parts of a stream, their effects add up to 0.
    solution = inverse @ columns.T @ centred
    left = centred - columns @ solution
    reach = student(freedom) * np.sqrt(np.maximum(0.0, np.diag(inverse)) * float(left @ left) / freedom)
    intervals = [
        Interval(float(value), float(value - each), float(value + each), 0.95)
        for value, each in zip(solution, reach, strict=True)
    ]
    total = float(centred @ centred)
    return Effects(
        dict(zip(parts, intervals[:-1], strict=True)),
        intervals[-1] if np.ptp(pairs) > 0 else None,
        0.0 if total == 0 else 1 - float(left @ left) / total,
    )
