"""Which differences between methods are more than chance: paired tests over seeds and clustered examples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from harness import stats
from harness.bootstrap import RESAMPLES, Draws, resample
from harness.errors import UserError, did_you_mean
from harness.record import Record
from harness.scores import MethodScores, read_scores
from harness.stats import Interval
from harness.store import Store
from harness.tables import Table, TaskColumn, check_protocol, newest

TEST = "paired two-level bootstrap"
TABLE_RESAMPLES = 2_000
"""For tables, which are made after every run."""
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Comparison:
    """`first − second` in points of a metric, on the same examples with the same seeds.

    p_value: two-sided; adjusted: after Holm's correction over all comparisons made together.
    clusters: groups of examples that were drawn together.
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
        """At the 5 % level, after correction."""
        return self.adjusted < SIGNIFICANT


def compare(
    store: Store,
    pairs: Sequence[tuple[str, str]],
    *,
    tasks: Sequence[str] = (),
    backbones: Sequence[str] = (),
    metric: str | None = None,
    resamples: int = RESAMPLES,
) -> list[Comparison]:
    """Test each pair of method labels on every task and backbone that has both; empty choices mean all.

    Raises:
        UserError: a label, task or backbone that is not there, cells of different protocols, no cell to
            compare, or predictions that do not fit (see `scores.read_scores`).
    """
    records = [record for record in store.records() if record.primary is not None]
    _check_names("method", [label for pair in pairs for label in pair], records)
    _check_names("task", tasks, records)
    _check_names("backbone", backbones, records)
    for first, second in pairs:
        if first == second:
            raise UserError(f"{first} and {second}: a method is not compared with itself.")
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
            check_protocol(chosen, remedy="Compare cells that were run alike.")
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


def _check_names(kind: str, asked: Sequence[str], records: Sequence[Record]) -> None:
    get = {
        "method": lambda record: record.cell.method.label,
        "task": lambda record: record.cell.task.name,
        "backbone": lambda record: record.cell.backbone.name,
    }[kind]
    known = sorted({get(record) for record in records})
    for name in asked:
        if name not in known:
            raise UserError(f"no finished cell of {kind} '{name}'.{did_you_mean(name, known)}")


def with_intervals(table: Table, store: Store, resamples: int = TABLE_RESAMPLES) -> Table:
    """The table with 95 % intervals of its scores and tests of its differences from full tuning.

    Adds to the frame: `<task>_low`, `<task>_high` beside each score; `delta_low`, `delta_high`, `delta_p` (after
    Holm's correction over the table's methods) and `delta_significant`. Without predictions they stay empty and
    a note says so.
    """
    draws: dict[str, dict[str, Draws]] = {}
    deltas: dict[str, list[Draws]] = {}
    notes: list[str] = []
    sizes: list[str] = []
    for index, column in enumerate(table.tasks):
        members = [record for record in table.records if record.cell.task.name == column.task]
        try:
            scores = read_scores(store, members)
        except UserError as error:
            notes.append(f"{column.task}: no intervals: {error}")
            continue
        drawn = resample([each.ratios for each in scores], resamples, index)
        draws[column.key] = {each.label: own for each, own in zip(scores, drawn, strict=True)}
        if scores:
            sizes.append(f"{scores[0].examples} examples in {scores[0].ratios.clusters} groups")
        for label, own in _against_full(scores, resamples, index).items():
            deltas.setdefault(label, []).append(own)
    tested = {label: _average(own) for label, own in deltas.items() if len(own) == len(table.tasks)}
    p_values = dict(zip(tested, stats.holm([own.p_value() for own in tested.values()]), strict=True))
    rows: list[dict[str, Any]] = []
    for cells in table.frame.to_dict("records"):
        row: dict[str, Any] = {str(key): value for key, value in cells.items()}
        label = row["method"]
        for column in table.tasks:
            row |= _bounds(column.key, draws.get(column.key, {}).get(label))
        row |= _bounds("delta", tested.get(label))
        row["delta_p"] = p_values.get(label)
        row["delta_significant"] = p_values[label] < SIGNIFICANT if label in p_values else None
        rows.append(row)
    if draws:
        notes.insert(0, _interval_note(rows, sizes, resamples))
    if tested:
        seldom = "" if all(row["seeds"] != 1 for row in rows) else " With one seed its chance is not in it."
        notes.insert(
            1,
            f"* differs from full tuning at the 5 % level: {TEST} on the same examples and seeds, two-sided, "
            f"Holm's correction over {len(tested)} methods.{seldom}",
        )
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame[_beside(list(frame.columns), table.tasks)]
    frame = frame.astype(object).where(frame.notna(), None)
    return replace(table, frame=frame, notes=(*table.notes, *notes))


def _beside(columns: list[str], tasks: Sequence[TaskColumn]) -> list[str]:
    """The columns, intervals behind what they are of."""
    behind = {f"{task.key}_sd": [f"{task.key}_low", f"{task.key}_high"] for task in tasks}
    behind["delta_vs_full"] = ["delta_low", "delta_high", "delta_p", "delta_significant"]
    moved = {name for names in behind.values() for name in names}
    return [name for column in columns if column not in moved for name in (column, *behind.get(column, ()))]


def _interval_note(rows: Sequence[dict[str, Any]], sizes: Sequence[str], resamples: int) -> str:
    over = "test examples" if all(row["seeds"] == 1 for row in rows) else "seeds and test examples"
    return (
        f"95 % intervals over {over}: two-level bootstrap, {resamples} resamples, "
        f"{'; '.join(dict.fromkeys(sizes))}."
    )


def _against_full(scores: Sequence[MethodScores], resamples: int, seed: int) -> dict[str, Draws]:
    full = next((each for each in scores if each.label == "full"), None)
    if full is None:
        return {}
    labels, differences = [], []
    for each in scores:
        common = tuple(seed for seed in each.seeds if seed in full.seeds)
        if each is not full and common:
            labels.append(each.label)
            differences.append(each.of_seeds(common).minus(full.of_seeds(common)))
    return dict(zip(labels, resample(differences, resamples, seed), strict=True))


def _average(draws: Sequence[Draws]) -> Draws:
    """Of the tasks' means: their examples and trainings are independent of each other."""
    size = min(len(each.values) for each in draws)
    values = np.mean([each.values[:size] for each in draws], axis=0)
    return Draws(float(np.mean([each.estimate for each in draws])), values)


def _bounds(key: str, draws: Draws | None) -> dict[str, Any]:
    interval = None if draws is None else draws.interval()
    return {
        f"{key}_low": None if interval is None else interval.low,
        f"{key}_high": None if interval is None else interval.high,
    }
