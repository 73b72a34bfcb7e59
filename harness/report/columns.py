"""Columns of a table as they are shown: headers, formatted numbers, and which column appears where."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from harness.errors import UserError, did_you_mean
from harness.report.tables import Table, TaskColumn, Value

Usual = Literal["everywhere", "files", "asked"]
"""Where a column appears by default: everywhere, only in files, or only if asked for."""

Kind = Literal["scores", "summary", "costs"]

BUSY = "‡"


@dataclass(frozen=True)
class Column:
    """A column as it is shown.

    key: its name for `--columns`. best: which end is printed bold. kind: where it goes if there is
    no room for a single table.
    """

    key: str
    header: str
    values: Sequence[Value]
    texts: Sequence[str]
    best: Literal["max", "min"] | None = None
    usual: Usual = "everywhere"
    kind: Kind = "costs"

    @property
    def bold(self) -> frozenset[int]:
        """Rows to print bold: those whose first number reads as the best one, unless all do."""
        numbers = [value for value in self.values if isinstance(value, (int, float))]
        if self.best is None or not numbers:
            return frozenset()
        read = [re.split("[ ±]", text)[0] for text in self.texts]
        best = read[list(self.values).index(max(numbers) if self.best == "max" else min(numbers))]
        rows = frozenset(row for row, text in enumerate(read) if text == best)
        return rows if len(rows) < len(numbers) else frozenset()


@dataclass(frozen=True)
class Selection:
    """Which columns to show.

    keys: names of columns, in this order; empty means the usual ones.
    intervals: also show the 95 % interval of each score.
    """

    keys: tuple[str, ...] = ()
    intervals: bool = False


def select(table: Table, selection: Selection, place: Literal["terminal", "file"]) -> list[Column]:
    """The columns to show, the method first.

    Raises:
        UserError: no such column.
    """
    columns = columns_of(table)
    known = {column.key: column for column in columns}
    for key in selection.keys:
        if key not in known:
            raise UserError(f"--columns: no column '{key}'.{did_you_mean(key, known)}")
    shown: tuple[Usual, ...] = ("everywhere",) if place == "terminal" else ("everywhere", "files")
    keys = selection.keys or [column.key for column in columns if column.usual in shown]
    if selection.intervals:
        keys = [each for key in keys for each in (key, f"{key}_interval") if each in known]
    return [columns[0], *(known[key] for key in dict.fromkeys(keys) if key != "method")]


def columns_of(table: Table) -> list[Column]:
    """All columns of a table, the method first."""
    rows: list[dict[Any, Any]] = table.frame.to_dict("records")
    labels = [row["method"] for row in rows]
    return [
        Column("method", "Method", [None] * len(rows), labels),
        *_parameters(rows),
        *(column for task in table.tasks for column in _scores(rows, task, len(table.tasks) == 1)),
        *_summary(rows, table.tasks),
        *_inference(rows),
        *_training(rows),
    ]


def _parameters(rows: Sequence[dict[Any, Any]]) -> list[Column]:
    keys = ("updated_parameters", "common_and_head_parameters")
    unit, size = _unit([row[key] for row in rows for key in keys], ("K", 1e3), ("M", 1e6), 5e4)
    return [
        _column(rows, "updated", f"Updated ({unit})", keys[0], _scaled_to(size)),
        replace(_column(rows, "common", f"Common+head ({unit})", keys[1], _scaled_to(size)), usual="files"),
    ]


def _scores(rows: Sequence[dict[Any, Any]], task: TaskColumn, alone: bool) -> list[Column]:
    header = task.metric.replace("_", " ").capitalize() if alone else task.header
    scores = _column(rows, task.task, header, task.key, _fixed, "max" if task.higher_is_better else "min")
    spreads = [row[f"{task.key}_sd"] for row in rows]
    texts = [
        text if spread is None else f"{text} ± {spread:.2f}"
        for text, spread in zip(scores.texts, spreads, strict=True)
    ]
    found = [replace(scores, texts=texts, kind="scores")]
    lows = [row.get(f"{task.key}_low") for row in rows]
    if any(low is not None for low in lows):
        highs = [row[f"{task.key}_high"] for row in rows]
        bounds = [
            "–" if low is None else f"{low:.2f} to {high:.2f}" for low, high in zip(lows, highs, strict=True)
        ]
        name = "95 % interval" if alone else f"{task.header} 95 % interval"
        found.append(Column(f"{task.task}_interval", name, lows, bounds, None, "asked", "scores"))
    return found


def _summary(rows: Sequence[dict[Any, Any]], tasks: Sequence[TaskColumn]) -> list[Column]:
    """Average, number of seeds, and difference from full tuning."""
    found = []
    if len(tasks) > 1:
        directions = {task.higher_is_better for task in tasks}
        best: Literal["max", "min"] = "max" if directions == {True} else "min"
        average = _column(
            rows, "average", "Average", "average", _fixed, best if len(directions) == 1 else None
        )
        found.append(replace(average, kind="summary"))
    several = len({row["seeds"] for row in rows}) > 1
    seeds = _column(rows, "seeds", "Seeds", "seeds", "{:.0f}".format)
    found.append(replace(seeds, usual="files" if several else "asked", kind="summary"))
    delta = _column(rows, "delta", "Δ full (points)", "delta_vs_full", _signed)
    texts = [
        text + ("*" if row.get("delta_significant") else "") + _bracket(row)
        for text, row in zip(delta.texts, rows, strict=True)
    ]
    found.append(replace(delta, texts=texts, usual=_unless_empty(delta, "everywhere"), kind="summary"))
    return found


def _bracket(row: dict[Any, Any]) -> str:
    """The interval of the difference from full tuning, if there is one."""
    low, high = row.get("delta_low"), row.get("delta_high")
    return "" if low is None or high is None else f" [{_signed(low)}, {_signed(high)}]"


def _inference(rows: Sequence[dict[Any, Any]]) -> list[Column]:
    unit, size = _unit([row["macs"] for row in rows], ("M", 1e6), ("G", 1e9), 1e9)
    compute_change = _column(rows, "flops_change", "ΔFLOPs (%)", "macs_change_percent", _signed)
    latency_change = _column(rows, "latency_change", "ΔLatency (%)", "latency_change_percent", _signed)
    return [
        _column(rows, "flops", f"FLOPs ({unit})†", "macs", _scaled_to(size), "min"),
        replace(compute_change, usual=_unless_empty(compute_change, "files")),
        _latency(rows),
        replace(latency_change, usual=_unless_empty(latency_change, "files")),
        *_decoding(rows),
    ]


def _decoding(rows: Sequence[dict[Any, Any]]) -> Iterator[Column]:
    """What a generative backbone's further tokens cost, and what is kept of the prompt for them."""
    if "token_macs" not in rows[0]:
        return
    unit, size = _unit([row["token_macs"] for row in rows], ("M", 1e6), ("G", 1e9), 1e9)
    for column in (
        _column(rows, "token_flops", f"Token FLOPs ({unit})†", "token_macs", _scaled_to(size), "min"),
        _column(rows, "token_latency", "Token p50 (ms)", "token_p50_ms", _short),
        _column(rows, "kv_cache", "KV cache (KiB)", "cache_kib", _short, "min"),
    ):
        yield replace(column, usual=_unless_empty(column, "everywhere"))


def _latency(rows: Sequence[dict[Any, Any]]) -> Column:
    """Median and 90th percentile. The best is bold only if all were measured together on a quiet machine."""
    together = len({row["latency_interleaved_id"] for row in rows if row["latency_interleaved_id"]}) <= 1
    comparable = together and not any(row["latency_busy"] for row in rows)
    column = _column(rows, "latency", "Latency p50 / p90 (ms)", "latency_p50_ms", _short)
    tails = [_text(row["latency_p90_ms"], _short) for row in rows]
    texts = [
        f"{p50} / {p90}{BUSY if row['latency_busy'] else ''}" if isinstance(value, float) else p50
        for value, p50, p90, row in zip(column.values, column.texts, tails, rows, strict=True)
    ]
    return replace(column, texts=texts, best="min" if comparable else None)


def _training(rows: Sequence[dict[Any, Any]]) -> list[Column]:
    """Memory, file size and what training took. Rates of separate runs are never bold, as they do not compare."""
    epochs = [_epochs(row) for row in rows]
    numbers = [row["training_epochs"] for row in rows]
    differ = len({text for text in epochs if text != "–"}) > 1
    share = _column(rows, "search_share", "Search share (%)", "search_share_percent", "{:.0f}".format)
    return [
        _column(rows, "memory", "Training memory (MiB)", "peak_training_mib", _short, "min"),
        _column(rows, "file", "Tuned file (MiB)", "tuned_file_mib", _short, "min"),
        Column("epochs", "Epochs", numbers, epochs, usual="everywhere" if differ else "asked"),
        replace(share, usual=_unless_empty(share, "files")),
        replace(
            _column(rows, "speed", "Training (ex/s)", "train_examples_per_second", _short), usual="asked"
        ),
    ]


def _epochs(row: dict[Any, Any]) -> str:
    """`5`, or `5 + 2.4` where a search trained for 2.4 epochs before; `5 + ?` if that is not recorded."""
    trained = _text(row["training_epochs"], _plain)
    if row["search_share_percent"] is None:
        return trained
    searched = row["search_epochs"]
    if searched == 0:
        return trained
    return f"{trained} + {'?' if searched is None else _text(searched, _plain)}"


def _column(
    rows: Sequence[dict[Any, Any]],
    key: str,
    header: str,
    source: str,
    form: Callable[[float], str],
    best: Literal["max", "min"] | None = None,
) -> Column:
    values = [row[source] for row in rows]
    return Column(key, header, values, [_text(value, form) for value in values], best)


def _unless_empty(column: Column, usual: Usual) -> Usual:
    return "asked" if all(value is None for value in column.values) else usual


def _text(value: Value, form: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    return value if isinstance(value, str) else form(value)


def _unit(
    values: Iterable[Value], small: tuple[str, float], large: tuple[str, float], least: float
) -> tuple[str, float]:
    """The large unit, unless the smallest number apart from zeros is below `least`."""
    numbers = [value for value in values if isinstance(value, float) and value]
    return large if not numbers or min(numbers) >= least else small


def _scaled_to(size: float) -> Callable[[float], str]:
    return lambda value: f"{value / size:.2f}" if value else "0"


def _fixed(value: float) -> str:
    return f"{value:.2f}"


def _signed(value: float) -> str:
    rounded = round(value, 2)
    return f"{rounded:+.2f}" if rounded else "0.00"


def _plain(value: float) -> str:
    return f"{value:.3g}"


def _short(value: float) -> str:
    """Three significant digits, or the whole part if that is longer."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
