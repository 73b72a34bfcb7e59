"""Paper-style tables from records: one row per method, accuracy and costs, comparable cells only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from harness.analysis import stats
from harness.errors import UserError
from harness.measure.machine import BUSY_RATIO, disturbed
from harness.records.protocol import by_protocol, by_task, check_protocol, newest
from harness.records.record import Failure, Latency, Record
from harness.registry import REFERENCE_METHOD, built_in_names
from harness.report.notes import Note, notes_of

FAILED = "failed"


Value = float | str | None
"""A number, `FAILED`, or None if nothing was measured."""


@dataclass(frozen=True)
class TaskColumn:
    """A task of a table. The frame has its score in column `key`, the deviation over seeds in `<key>_sd`."""

    key: str
    task: str
    header: str
    metric: str
    higher_is_better: bool


@dataclass(frozen=True)
class Table:
    """A table of comparable cells of one backbone.

    frame: one row per method, values in full precision with units in the column names; None if nothing was
        measured, "failed" if the measurement failed.
    notes: sentences to print below the table, each with the columns that it is about.
    records: the records behind the table.
    """

    title: str
    frame: pd.DataFrame
    tasks: tuple[TaskColumn, ...]
    notes: tuple[Note, ...]
    records: tuple[Record, ...] = ()


def build_tables(records: Sequence[Record], all_protocols: bool = False) -> list[Table]:
    """One table per backbone, with a column of scores for each task.

    all_protocols: if a backbone's cells differ in protocol, make one table per task and protocol.

    Raises:
        UserError: `records` is empty, or protocols differ and `all_protocols` is not set.
    """
    if not records:
        raise UserError("no results to tabulate; run some cells first.")
    tables: list[Table] = []
    for backbone in dict.fromkeys(record.cell.backbone.name for record in records):
        chosen = [record for record in records if record.cell.backbone.name == backbone]
        try:
            check_protocol(chosen)
            groups = [("", chosen)]
        except UserError:
            if not all_protocols:
                raise
            groups = list(by_protocol(chosen))
        tables += [_build(backbone, distinction, group) for distinction, group in groups]
    return tables


def _build(backbone: str, distinction: str, records: Sequence[Record]) -> Table:
    kept = newest(records)
    tasks = tuple(_task_column(of_task[0]) for of_task in by_task(kept).values())
    latency = _Latencies(kept)
    rows: list[dict[str, Value]] = []
    for label in sorted({record.cell.method.label for record in kept}, key=lambda name: _rank(name, kept)):
        rows.append(_row([record for record in kept if record.cell.method.label == label], tasks, latency))
    reference = next((row for row in rows if row["method"] == REFERENCE_METHOD), None)
    score = "average" if len(tasks) > 1 else tasks[0].key
    for row in rows:
        full = reference or {}
        row["delta_vs_full"] = _difference(row[score], full.get(score))
        row["macs_change_percent"] = _change(row["macs"], full.get("macs") or row["untouched_macs"])
        if row["untouched_p50_ms"] is None and row["latency_interleaved_id"] == full.get(
            "latency_interleaved_id"
        ):
            row["untouched_p50_ms"] = full.get("latency_p50_ms")
        row["latency_change_percent"] = _change(row["latency_p50_ms"], row["untouched_p50_ms"])
    measured = {row["latency_interleaved_id"] for row in rows if row["latency_interleaved_id"]}
    benchmark = "+".join(sorted({record.data.benchmark for record in kept}))
    title = f"{', '.join(task.header for task in tasks)} on {backbone}"
    title += f" ({distinction})" if distinction else ""
    frame = pd.DataFrame(
        [{"table": title, "backbone": backbone, "benchmark": benchmark, **row} for row in rows], dtype=object
    )
    written = _DECODING if any(isinstance(row["token_macs"], float) for row in rows) else ()
    apart = {*_INTERNAL, *_DECODING, *_LAST}
    frame = frame[[*(c for c in frame.columns if c not in apart), *written, *_LAST]]
    notes = notes_of(kept, rows, len(records) - len(kept), len(measured) > 1)
    return Table(title, frame.astype(object).where(frame.notna(), None), tasks, notes, tuple(kept))


_INTERNAL = ("untouched_macs", "untouched_p50_ms")


_DECODING = ("token_macs", "token_p50_ms", "cache_kib")
"""Columns that only tables of generative backbones have."""


_LAST = (
    *("delta_vs_full", "macs", "macs_change_percent", "latency_p50_ms", "latency_p90_ms"),
    *("latency_change_percent", "latency_interleaved_id", "latency_busy"),
    *("peak_training_mib", "tuned_file_mib"),
    *("training_epochs", "search_epochs", "train_examples_per_second", "search_share_percent"),
)


def _task_column(record: Record) -> TaskColumn:
    task = record.cell.task
    header = f"{task.name} (mini)" if record.data.benchmark == "mini" else task.title
    return TaskColumn(
        f"{task.name}_{task.primary_metric}",
        task.name,
        header,
        task.primary_metric,
        task.higher_is_better,
    )


def _rank(label: str, records: Sequence[Record]) -> tuple[int, str]:
    name = next(record.cell.method.name for record in records if record.cell.method.label == label)
    order = built_in_names("methods")
    return (order.index(name) if name in order else len(order), label)


class _Latencies:
    """Chooses each record's batch-1 latency: of the measurement with the most records of its task and seed."""

    def __init__(self, records: Sequence[Record]) -> None:
        taking_part: Counter[tuple[str, int, str]] = Counter()
        for record in records:
            for group in {latency.group for latency in _single(record)}:
                taking_part[record.cell.task.name, record.cell.seed, group] += 1
        self._taking_part = taking_part

    def of(self, record: Record) -> Latency | None:
        """The chosen latency, the later one of a tie; None if batch 1 was not measured."""
        best: Latency | None = None
        for latency in _single(record):
            if best is None or self._rivals(record, latency) >= self._rivals(record, best):
                best = latency
        return best

    def untouched(self, record: Record) -> float | None:
        """p50 in ms of the untouched backbone in the chosen measurement; None if it took no part."""
        shown = self.of(record)
        reference = [
            latency
            for latency in record.full_latency
            if shown is not None
            and latency.batch_size == 1
            and latency.part != "token"
            and latency.group == shown.group
            and latency.execution == shown.execution
        ]
        return reference[-1].p50_ms if reference else None

    def token(self, record: Record) -> Latency | None:
        """That of a further token in the chosen measurement; None if there is none."""
        shown = self.of(record)
        if shown is None or isinstance(record.latency, Failure):
            return None
        like = {"part": "token", "batch_size": 1, "group": shown.group, "execution": shown.execution}
        found = [each for each in record.latency if all(getattr(each, k) == v for k, v in like.items())]
        return found[-1] if found else None

    def _rivals(self, record: Record, latency: Latency) -> int:
        return self._taking_part[record.cell.task.name, record.cell.seed, latency.group]


def is_busy(latency: Latency) -> bool:
    """Whether something else used the machine: the p90 is far above the median, or too few cores were left.

    Real examples of different sizes take different times on a quiet machine too, so their p90 shows nothing.
    """
    if disturbed(latency.others, latency.threads, latency.cores):
        return True
    return latency.examples is None and latency.p90_ms > BUSY_RATIO * latency.p50_ms


def _single(record: Record) -> list[Latency]:
    """Latencies at batch 1, those of a CUDA graph if there are any."""
    if isinstance(record.latency, Failure):
        return []
    single = [each for each in record.latency if each.batch_size == 1 and each.part != "token"]
    return [latency for latency in single if latency.execution == "graph"] or single


def _row(records: Sequence[Record], tasks: Sequence[TaskColumn], latency: _Latencies) -> dict[str, Value]:
    of_tasks = list(by_task(records).values())
    row: dict[str, Value] = {"method": records[0].cell.method.label}
    complete = len(of_tasks) == len(tasks)

    def over_tasks(get: Callable[[Record], Any]) -> Value:
        return _mean(
            [_mean([_value(r, get) for r in group]) for group in of_tasks], strict=True, all_of=complete
        )

    row["updated_parameters"] = over_tasks(lambda r: r.parameters and r.parameters.updated)
    row["common_and_head_parameters"] = over_tasks(
        lambda r: r.parameters and r.parameters.groups.common + r.parameters.groups.head
    )
    finished = []
    for task in tasks:
        group = next((g for g in of_tasks if _task_column(g[0]).key == task.key), [])
        scores = [record.primary for record in group if record.primary is not None]
        row[task.key] = _mean([_value(record, lambda r: r.primary) for record in group])
        row[f"{task.key}_sd"] = stats.sample_sd(scores)
        finished.append(len(scores))
    if len(tasks) > 1:
        row["average"] = _mean([row[task.key] for task in tasks], strict=True)
    # A task that has not been run is left out here; it shows as a gap in its own column.
    row["seeds"] = min((count for count in finished if count), default=0)
    row["macs"] = over_tasks(lambda r: _of(r.compute, "macs_total"))
    row["untouched_macs"] = over_tasks(lambda r: _of(r.full_compute, "macs_total"))

    def timed(key: str) -> Callable[[Record], Any]:
        return lambda r: r.latency if isinstance(r.latency, Failure) else _of(latency.of(r), key)

    row["latency_p50_ms"], row["latency_p90_ms"] = over_tasks(timed("p50_ms")), over_tasks(timed("p90_ms"))
    shown = [found for record in records if (found := latency.of(record)) is not None]
    row["latency_interleaved_id"] = " ".join(sorted({found.group for found in shown})) or None
    tokens = [found for record in records if (found := latency.token(record)) is not None]
    row["latency_busy"] = any(is_busy(found) for found in (*shown, *tokens)) if shown else None
    row["untouched_p50_ms"] = over_tasks(latency.untouched)
    row["token_macs"] = over_tasks(lambda r: _of(_of(r.compute, "decoding"), "token_macs"))
    row["cache_kib"] = over_tasks(lambda r: _scaled(_of(_of(r.compute, "decoding"), "cache_bytes"), 2**-10))
    row["token_p50_ms"] = over_tasks(lambda r: _of(latency.token(r), "p50_ms"))
    row["peak_training_mib"] = over_tasks(lambda r: _of(r.memory, "peak_training_mib"))
    row["tuned_file_mib"] = over_tasks(lambda r: _scaled(r.tuned_file_bytes, 2**-20))
    row["training_epochs"] = over_tasks(lambda r: _of(r.training, "epochs"))
    row["search_epochs"] = over_tasks(lambda r: _of(r.search, "epochs"))
    row["train_examples_per_second"] = over_tasks(lambda r: _of(r.training, "examples_per_second"))
    row["search_share_percent"] = over_tasks(lambda r: _scaled(_of(r.search, "share"), 100))
    return row


def _of(part: Any, key: str) -> Any:
    """Attribute `key` of a part; the part itself if it is a `Failure` or None."""
    return part if part is None or isinstance(part, Failure) else getattr(part, key)


def _scaled(value: Any, factor: float) -> Any:
    return value * factor if isinstance(value, (int, float)) else value


def _value(record: Record, get: Callable[[Record], Any]) -> Value:
    found = get(record)
    if isinstance(found, Failure) or (found is None and record.status == "failed"):
        return FAILED
    return None if found is None else float(found)


def _mean(values: Sequence[Value], strict: bool = False, all_of: bool = True) -> Value:
    """Mean of the numbers. strict: no mean if any value is missing or failed."""
    numbers = [value for value in values if isinstance(value, float)]
    if numbers and (not strict or (len(numbers) == len(values) and all_of)):
        return stats.mean(numbers)
    return FAILED if FAILED in values else None


def _difference(value: Value, reference: Value) -> Value:
    both = isinstance(value, float) and isinstance(reference, float)
    return value - reference if both else None  # type: ignore[operator]


def _change(value: Value, reference: Value) -> Value:
    """Change in percent of the reference."""
    if isinstance(value, float) and isinstance(reference, float) and reference:
        return 100 * (value - reference) / reference
    return None
