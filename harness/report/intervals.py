"""Add confidence intervals and significance marks to tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis import stats
from harness.analysis.bootstrap import Draws, resample
from harness.analysis.scores import MethodScores, read_scores
from harness.analysis.significance import SIGNIFICANT, TEST
from harness.errors import UserError
from harness.records.record import Record
from harness.records.store import Store
from harness.registry import REFERENCE_METHOD
from harness.report.notes import Note, seeds_by_task
from harness.report.tables import Table, TaskColumn
from harness.report.tuning import tuning_sentence

TABLE_RESAMPLES = 2_000
"""Fewer than in `harness compare`, as tables are made after every run."""


ENOUGH_SEEDS = 6
"""With fewer, a difference must exceed 2.6 standard errors (5 seeds) to 12.7 (2 seeds) even before the correction."""


def with_intervals(table: Table, store: Store, resamples: int = TABLE_RESAMPLES) -> Table:
    """Add 95 % intervals of the scores and significance tests of the differences from full tuning.

    New columns of the frame: `<task>_low` and `<task>_high` after each score, `delta_low`, `delta_high`, `delta_p`
    (after Holm's correction over the table's methods) and `delta_significant`. Without predictions they are None,
    and a note says so.
    """
    draws: dict[str, dict[str, Draws]] = {}
    deltas: dict[str, list[Draws]] = {}
    notes: list[Note] = []
    sizes: list[str] = []
    shown = ("delta", *(f"{column.task}_interval" for column in table.tasks))
    for index, column in enumerate(table.tasks):
        members = [record for record in table.records if record.cell.task.name == column.task]
        try:
            scores = read_scores(store, members)
        except UserError as error:
            notes.append(Note(f"{column.task}: no intervals: {error}", (column.task,)))
            continue
        drawn = resample([each.ratios for each in scores], resamples, index)
        draws[column.key] = {each.label: own for each, own in zip(scores, drawn, strict=True)}
        if scores:
            named = f" ({column.task})" if len(table.tasks) > 1 else ""
            sizes.append(f"{scores[0].examples:,} examples in {scores[0].ratios.clusters:,} groups{named}")
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
        notes.insert(0, Note(_interval_note(table.records, sizes, resamples), shown))
    if tested:
        notes.insert(1, Note(_star_note(table.records, len(tested)), ("delta",)))
    if sentence := tuning_sentence(table.records, store):
        notes.append(Note(sentence))
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame[_beside(list(frame.columns), table.tasks)]
    frame = frame.astype(object).where(frame.notna(), None)
    return replace(table, frame=frame, notes=(*table.notes, *notes))


def _beside(columns: list[str], tasks: Sequence[TaskColumn]) -> list[str]:
    """The columns, each interval after the value it belongs to."""
    behind = {f"{task.key}_sd": [f"{task.key}_low", f"{task.key}_high"] for task in tasks}
    behind["delta_vs_full"] = ["delta_low", "delta_high", "delta_p", "delta_significant"]
    moved = {name for names in behind.values() for name in names}
    return [name for column in columns if column not in moved for name in (column, *behind.get(column, ()))]


def _interval_note(records: Sequence[Record], sizes: Sequence[str], resamples: int) -> str:
    once = all(most == 1 for _, most in seeds_by_task(records).values())
    over = "test examples" if once else "seeds and test examples"
    return f"Intervals: 95 % over {over}, two-level bootstrap, {resamples:,} resamples; {', '.join(sizes)}."


def _star_note(records: Sequence[Record], tested: int) -> str:
    """What a star means, and what its absence does not mean with so few seeds."""
    correction = f", Holm's correction over {tested} methods" if tested > 1 else ""
    text = f"* differs from full tuning at the 5 % level ({TEST}, two-sided{correction})."
    least = {task: counts[0] for task, counts in seeds_by_task(records).items()}
    once = [task for task, seeds in least.items() if seeds == 1]
    if once:
        named = "" if len(once) == len(least) else f" on {', '.join(once)}"
        text += f" One seed{named}: the variance of training is not included."
    seeds = min((each for each in least.values() if each > 1), default=ENOUGH_SEEDS)
    if seeds < ENOUGH_SEEDS:
        text += f" With {seeds} seeds only large differences get a star: no star does not mean no difference."
    return text


def _against_full(scores: Sequence[MethodScores], resamples: int, seed: int) -> dict[str, Draws]:
    full = next((each for each in scores if each.label == REFERENCE_METHOD), None)
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
    """Draws of the mean over tasks, whose examples and trainings are independent of each other."""
    size = min(len(each.values) for each in draws)
    values = np.mean([each.values[:size] for each in draws], axis=0)
    return Draws(float(np.mean([each.estimate for each in draws])), values)


def _bounds(key: str, draws: Draws | None) -> dict[str, Any]:
    interval = None if draws is None else draws.interval()
    return {
        f"{key}_low": None if interval is None else interval.low,
        f"{key}_high": None if interval is None else interval.high,
    }
