"""Significance tests between methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.analysis import stats
from harness.analysis.bootstrap import RESAMPLES, resample
from harness.analysis.scores import MethodScores, read_scores
from harness.analysis.stats import Interval
from harness.errors import UserError, did_you_mean
from harness.records.protocol import check_protocol, newest
from harness.records.record import Record
from harness.records.store import Store

TEST = "paired two-level bootstrap"


SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """`first − second` in points of a metric, on the same examples and seeds.

    p_value: two-sided. adjusted: after Holm's correction over all comparisons of the call.
    clusters: number of groups of examples that are resampled together.
    """

    first: str
    second: str
    task: str
    backbone: str
    metric: str
    difference: Interval
    p_value: float
    adjusted: float
    seeds: tuple[int, ...]
    examples: int
    clusters: int
    higher_is_better: bool

    @property
    def significant(self) -> bool:
        """Whether the difference is significant at the 5 % level after correction."""
        return self.adjusted < SIGNIFICANT


def compare(
    store: Store,
    pairs: Sequence[tuple[str, str]],
    *,
    tasks: Sequence[str] = (),
    backbones: Sequence[str] = (),
    metric: str | None = None,
    resamples: int = RESAMPLES,
    records: Sequence[Record] | None = None,
) -> list[Comparison]:
    """Test each pair of method labels on every task and backbone that has both.

    tasks, backbones: empty means all. records: None means all records of the folder.

    Raises:
        UserError: no finished cell of a label, task or backbone, cells of different protocols, nothing to
            compare, or unusable predictions (see `scores.read_scores`).
    """
    records = [r for r in (store.records() if records is None else records) if r.primary is not None]
    pairs = [(first, second) for first, second in (_find_names("method", pair, records) for pair in pairs)]
    tasks, backbones = _find_names("task", tasks, records), _find_names("backbone", backbones, records)
    for first, second in pairs:
        if first == second:
            raise UserError(f"{first} and {second}: a method cannot be compared with itself.")
    found: list[Comparison] = []
    for backbone, task in dict.fromkeys((r.cell.backbone.name, r.cell.task.name) for r in records):
        if (tasks and task not in tasks) or (backbones and backbone not in backbones):
            continue
        here = [r for r in records if (r.cell.backbone.name, r.cell.task.name) == (backbone, task)]
        labels = {record.cell.method.label for record in here}
        asked = [pair for pair in pairs if labels.issuperset(pair)]
        members = {label for pair in asked for label in pair}
        chosen = newest(record for record in here if record.cell.method.label in members)
        if chosen:
            check_protocol(chosen, remedy="Compare cells that were run with the same protocol.")
            found += _compare_here(store, chosen, asked, metric, resamples)
    if not found:
        raise UserError(f"{store.root}: no task and backbone has finished cells of both methods of a pair.")
    adjusted = stats.holm([each.p_value for each in found])
    return [replace(each, adjusted=p) for each, p in zip(found, adjusted, strict=True)]


def _compare_here(
    store: Store,
    records: Sequence[Record],
    pairs: Sequence[tuple[str, str]],
    metric: str | None,
    resamples: int,
) -> list[Comparison]:
    cell = records[0].cell
    scores = {each.label: each for each in read_scores(store, records, metric)}
    seeds = [_common_seeds(scores[first], scores[second]) for first, second in pairs]
    differences = [
        scores[first].of_seeds(common).minus(scores[second].of_seeds(common))
        for (first, second), common in zip(pairs, seeds, strict=True)
    ]
    return [
        Comparison(
            first,
            second,
            cell.task.name,
            cell.backbone.name,
            metric or cell.task.primary_metric,
            draws.interval(),
            draws.p_value(),
            draws.p_value(),
            common,
            scores[first].examples,
            difference.clusters,
            cell.task.higher_is_better,
        )
        for (first, second), common, difference, draws in zip(
            pairs, seeds, differences, resample(differences, resamples), strict=True
        )
    ]


def _common_seeds(first: MethodScores, second: MethodScores) -> tuple[int, ...]:
    common = tuple(seed for seed in first.seeds if seed in second.seeds)
    if not common:
        raise UserError(f"{first.label} and {second.label} have no seed in common; run both with the same.")
    return common


def _find_names(kind: str, asked: Sequence[str], records: Sequence[Record]) -> list[str]:
    """The names as the records spell them; capitals make no difference.

    Raises:
        UserError: no finished cell has such a name.
    """
    get = {
        "method": lambda record: record.cell.method.label,
        "task": lambda record: record.cell.task.name,
        "backbone": lambda record: record.cell.backbone.name,
    }[kind]
    known = {get(record).lower(): get(record) for record in records}
    for name in asked:
        if name.lower() not in known:
            raise UserError(f"no finished cell of {kind} '{name}'.{did_you_mean(name, known.values())}")
    return [known[name.lower()] for name in asked]
