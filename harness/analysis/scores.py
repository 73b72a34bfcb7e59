"""Per-example scores of stored cells, as input for intervals and significance tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.analysis.bootstrap import Ratios
from harness.errors import UserError
from harness.records.record import Record, TaskChoice
from harness.records.store import Store
from harness.registry import resolve_scorer
from tasks.scorer import Prediction, Share

Units = dict[str, tuple[float, str]]
"""Value and group of each unit that a share counts, by unit."""


_TOLERANCE = 1e-6
"""Points by which a metric may differ from the record's, as sums in another order do."""


@dataclass(frozen=True)
class MethodScores:
    """A method's metric on one task by seed and cluster of examples.

    seeds: in the order of `ratios.numerators`. examples: number of test examples.
    """

    label: str
    seeds: tuple[int, ...]
    examples: int
    ratios: Ratios

    def of_seeds(self, chosen: Iterable[int]) -> Ratios:
        """Ratios of these seeds only, in this order."""
        return self.ratios.of_seeds([self.seeds.index(seed) for seed in chosen])


def read_scores(store: Store, records: Sequence[Record], metric: str | None = None) -> list[MethodScores]:
    """Scores of the finished cells of one task and backbone, one entry per method, all with the same clusters.

    metric: None means the task's primary metric.

    Raises:
        UserError: a cell's predictions are missing or contradict its record, two cells predicted different
            examples, or it is unknown which examples the metric counts.
    """
    finished = [record for record in records if record.primary is not None]
    if not finished:
        return []
    metric = metric or finished[0].cell.task.primary_metric
    shares = shares_of(finished[0].cell.task, metric)
    clusters: dict[str, int] | None = None
    reference: list[Units] = []
    examples = 0
    by_method: dict[str, list[tuple[int, np.ndarray]]] = {}
    denominators = np.empty(0)
    for record in sorted(finished, key=lambda each: each.cell.seed):
        # Always in the same order, so that equal scores have equal sums.
        predictions = sorted(store.predictions(record.cell.id), key=lambda each: str(each["id"]))
        units = [_units(predictions, share, record) for share in shares]
        _check_metric(units, shares, record, metric)
        if clusters is None:
            reference, examples = units, len(predictions)
            clusters = _clusters(predictions, shares)
            denominators = _sums(units, clusters, counted=True)
        elif any(a.keys() != b.keys() for a, b in zip(units, reference, strict=True)):
            raise UserError(
                f"cell {record.cell.id} ({record.cell.method.label}, seed {record.cell.seed}) and cell "
                f"{finished[0].cell.id} predicted different test examples and cannot be compared."
            )
        sums = _sums(units, clusters)
        by_method.setdefault(record.cell.method.label, []).append((record.cell.seed, sums))
    weights = np.array([100 * share.weight for share in shares])
    return [
        MethodScores(
            label,
            tuple(seed for seed, _ in found),
            examples,
            Ratios(np.stack([sums for _, sums in found]), denominators, weights),
        )
        for label, found in by_method.items()
    ]


def shares_of(task: TaskChoice, metric: str) -> tuple[Share, ...]:
    """The shares that add up to a metric, from the task's scorer.

    If the scorer names none or the task is not installed, the primary metric is taken to be the mean score. Metrics
    computed from shares are always checked against the record.

    Raises:
        UserError: it is unknown which examples the metric counts.
    """
    try:
        found = resolve_scorer(task.name).shares(metric)
    except UserError:
        found = ()
    if found:
        return found
    if metric == task.primary_metric:
        return (Share(),)
    raise UserError(f"{task.name}: it is unknown which examples '{metric}' counts, so it has no interval.")


def _units(predictions: Sequence[Prediction], share: Share, record: Record) -> Units:
    found: Units = {}
    try:
        for prediction in predictions:
            if share.of(prediction):
                unit, value = share.unit(prediction), share.value(prediction)
                lowest = min(value, found[unit][0]) if unit in found else value
                found[unit] = (lowest, str(prediction["group"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"cell {record.cell.id}: its predictions have no scores, so there is no interval."
        ) from error
    return found


def _check_metric(units: Sequence[Units], shares: Sequence[Share], record: Record, metric: str) -> None:
    known = record.metrics[record.reported_split]
    if metric not in known:
        raise UserError(
            f"cell {record.cell.id} has no metric '{metric}' on {record.reported_split}; "
            f"it has {', '.join(known)}."
        )
    if all(units):
        made = sum(
            100 * share.weight * math.fsum(value for value, _ in each.values()) / len(each)
            for share, each in zip(shares, units, strict=True)
        )
        if abs(made - known[metric]) <= _TOLERANCE:
            return
    raise UserError(
        f"cell {record.cell.id}: its predictions do not give the {metric} of {known[metric]:.4f} in its "
        "record; delete the cell's folder and run it again."
    )


def _clusters(predictions: Sequence[Prediction], shares: Sequence[Share]) -> dict[str, int]:
    """Cluster index of each group; groups linked by a unit (all images of a sentence) share a cluster."""
    above = {str(prediction["group"]): str(prediction["group"]) for prediction in predictions}

    def top(group: str) -> str:
        while above[group] != group:
            above[group] = group = above[above[group]]
        return group

    for share in shares:
        first: dict[str, str] = {}
        for prediction in predictions:
            if share.of(prediction):
                group = str(prediction["group"])
                above[top(group)] = top(first.setdefault(share.unit(prediction), group))
    index = {group: number for number, group in enumerate(sorted({top(group) for group in above}))}
    return {group: index[top(group)] for group in above}


def _sums(units: Sequence[Units], clusters: dict[str, int], counted: bool = False) -> np.ndarray:
    """`(C, G)` sums of the units' values by cluster, or their counts."""
    total = len(set(clusters.values()))
    rows = []
    for each in units:
        places = np.fromiter((clusters[group] for _, group in each.values()), dtype=np.int64, count=len(each))
        values = np.fromiter((1.0 if counted else value for value, _ in each.values()), float, len(each))
        rows.append(np.bincount(places, weights=values, minlength=total))
    return np.stack(rows)
