"""Accuracy against what it costs: FLOPs, latency, updated parameters, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from harness.measure.latency import LatencySample, latency_ratio
from harness.records.record import Failure
from harness.report.plots.labels import place_labels
from harness.report.plots.style import GREY, Look, looks, new_figure, styled
from harness.report.tables import Table


@dataclass(frozen=True)
class Point:
    """A method's cost and score, each with its interval if known."""

    label: str
    cost: float
    score: float
    score_interval: tuple[float, float] | None = None
    cost_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Cost:
    """A cost axis.

    column: of the table's frame. logarithmic: for costs that span orders of magnitude. unit: divisor of the values.
    """

    column: str
    title: str
    logarithmic: bool = False
    unit: float = 1.0


def pareto_front(points: Sequence[Point], higher_is_better: bool = True) -> list[Point]:
    """Points that no other point dominates (is at least as cheap and as good, and better in one), by cost."""
    sign = 1 if higher_is_better else -1
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -sign * p.score, p.label)):
        if not front or sign * point.score > sign * front[-1].score:
            front.append(point)
    return front


def tradeoff_figure(table: Table) -> Figure | None:
    """One panel per cost for a table of one task; None if no cost was measured for two methods."""
    (task,) = table.tasks
    rows = table.frame.to_dict("records")
    largest = max((row["macs"] for row in rows if isinstance(row["macs"], float)), default=1.0)
    unit, size = ("G", 1e9) if largest >= 1e9 else ("M", 1e6)
    costs = [
        Cost("macs", f"Inference compute ({unit}MACs)", unit=size),
        Cost("latency_p50_ms", "Latency, batch 1 (ms, median)"),
        Cost("updated_parameters", "Updated parameters", logarithmic=True),
    ]
    panels = [(cost, _points(table, rows, task.key, cost)) for cost in costs]
    panels = [(cost, points) for cost, points in panels if len(points) > 1]
    if not panels:
        return None
    look = looks([row["method"] for row in rows])
    with styled():
        figure = new_figure(1.2 + 3.7 * len(panels), 4.1)
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axis, (cost, points) in zip(axes, panels, strict=True):
            _draw(axis, cost, points, look, task.higher_is_better)
        axes[0].set_ylabel(f"{task.header}: {task.metric} (%)")
        whiskers = ", whiskers 95 % intervals" if any(p.score_interval for p in panels[0][1]) else ""
        figure.suptitle(f"{table.title}: grey line Pareto front{whiskers}", fontsize=9.5, x=0.01, ha="left")
        figure.canvas.draw()
        for axis, (_, points) in zip(axes, panels, strict=True):
            _label(axis, points, look, pareto_front(points, task.higher_is_better))
    return figure


def _points(table: Table, rows: Sequence[dict[Any, Any]], key: str, cost: Cost) -> list[Point]:
    found = []
    for row in rows:
        score, price = row[key], row[cost.column]
        if not isinstance(score, float) or not isinstance(price, float):
            continue
        low, high = row.get(f"{key}_low"), row.get(f"{key}_high")
        found.append(
            Point(
                row["method"],
                price / cost.unit,
                score,
                None if low is None or high is None else (low, high),
                _median_interval(table, row) if cost.column == "latency_p50_ms" else None,
            )
        )
    return found


def _median_interval(table: Table, row: dict[Any, Any]) -> tuple[float, float] | None:
    """95 % interval of the median latency that the table shows."""
    for record in table.records:
        if record.cell.method.label == row["method"] and not isinstance(record.latency, Failure):
            for latency in record.latency:
                if latency.p50_ms == row["latency_p50_ms"]:
                    sample = LatencySample(latency.samples_ms, (), latency.device, latency.threads)
                    one = LatencySample((1.0,), (), latency.device, latency.threads)
                    found = latency_ratio(sample, one)
                    return found.low, found.high
    return None


def _draw(
    axis: Axes, cost: Cost, points: Sequence[Point], look: dict[str, Look], higher_is_better: bool
) -> None:
    front = pareto_front(points, higher_is_better)
    axis.plot(
        [p.cost for p in front],
        [p.score for p in front],
        color=GREY,
        linewidth=1.4,
        drawstyle="steps-post",
        zorder=1,
    )
    for point in points:
        own = look[point.label]
        axis.errorbar(
            point.cost,
            point.score,
            yerr=_whiskers(point.score, point.score_interval),
            xerr=_whiskers(point.cost, point.cost_interval),
            color=own.color,
            marker=own.marker,
            markersize=6.5,
            markerfacecolor=own.face,
            markeredgewidth=1.2,
            elinewidth=0.9,
            capsize=2,
            zorder=3,
        )
    axis.set_xlabel(cost.title)
    axis.margins(x=0.16, y=0.10)
    if cost.logarithmic:
        _logarithmic(axis, [p.cost for p in points])


def _whiskers(value: float, interval: tuple[float, float] | None) -> np.ndarray | None:
    if interval is None:
        return None
    return np.array([[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]])


def _logarithmic(axis: Axes, values: Sequence[float]) -> None:
    """Logarithmic axis with powers of ten, and 0 one step below if a method updates nothing."""
    positive = [value for value in values if value > 0]
    if not positive:
        return
    least, most = floor(log10(min(positive))), log10(max(positive))
    ticks = [10.0**power for power in range(least, int(most) + 2)]
    if len(positive) < len(values):
        axis.set_xscale("symlog", linthresh=10.0**least, linscale=0.6)
        axis.set_xlim(-(10.0**least) * 0.45, 10 ** (most + 0.5))
        ticks = [0.0, *ticks]
    else:
        axis.set_xscale("log")
        axis.set_xlim(10 ** (log10(min(positive)) - 0.5), 10 ** (most + 0.5))
    low, high = axis.get_xlim()
    shown = [tick for tick in ticks if low <= tick <= high]
    axis.set_xticks(shown, [_power(tick) for tick in shown])
    axis.minorticks_off()


def _power(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _label(axis: Axes, points: Sequence[Point], look: dict[str, Look], front: Sequence[Point]) -> None:
    """Write names beside the points. The figure must have been laid out."""
    figure = axis.get_figure(root=True)
    assert figure is not None
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    per_point = figure.dpi / 72
    at = [tuple(axis.transData.transform((p.cost, p.score))) for p in points]
    texts = [axis.text(0, 0, point.label, fontsize=8, color=look[point.label].color) for point in points]
    extents = [text.get_window_extent(renderer) for text in texts]
    obstacles = []
    for (x, y), point in zip(at, points, strict=True):
        reach = 4.5 * per_point
        obstacles.append((x - reach, y - reach, x + reach, y + reach))
        thin = 1.2 * per_point
        if point.score_interval is not None:
            low, high = (axis.transData.transform((point.cost, v))[1] for v in point.score_interval)
            obstacles.append((x - thin, low, x + thin, high))
        if point.cost_interval is not None:
            left, right = (axis.transData.transform((v, point.score))[0] for v in point.cost_interval)
            obstacles.append((left, y - thin, right, y + thin))
    for before, after in pairwise(front):
        (x, y), (u, v) = axis.transData.transform([(before.cost, before.score), (after.cost, after.score)])
        obstacles += [(x, y - 2, u, y + 2), (u - 2, min(y, v), u + 2, max(y, v))]
    box = axis.get_window_extent(renderer)
    placed = place_labels(
        at, [(e.width, e.height) for e in extents], (box.x0, box.y0, box.x1, box.y1), obstacles, per_point
    )
    back = axis.transData.inverted()
    for text, spot, (x, y), point in zip(texts, placed, at, points, strict=True):
        left, bottom, right, top = spot.box
        text.set_position(tuple(back.transform(((left + right) / 2, (bottom + top) / 2))))
        text.set(ha="center", va="center_baseline", zorder=4)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        if spot.far:
            nearest = (min(max(x, left), right), min(max(y, bottom), top))
            ends = back.transform([(x, y), nearest])
            axis.plot(ends[:, 0], ends[:, 1], color=look[point.label].color, linewidth=0.5, zorder=2)
