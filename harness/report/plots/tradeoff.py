"""Accuracy against what it costs: FLOPs, latency, updated parameters, with the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor, log10
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from harness.errors import UserError, did_you_mean
from harness.measure.latency import LatencySample, latency_ratio
from harness.records.record import Failure
from harness.report.plots.style import GREY, PAPER, Look, add_title, draw_chance, looks, new_figure, styled
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

    name: on the command line. column: of the table's frame. logarithmic: for costs that span orders of magnitude.
    unit: divisor of the values.
    """

    name: str
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


COSTS = (
    Cost("flops", "macs", "Inference compute"),
    Cost("latency", "latency_p50_ms", "Latency, batch 1 (ms, median)"),
    Cost("parameters", "updated_parameters", "Updated parameters", logarithmic=True),
)


def tradeoff_figure(table: Table, costs: Sequence[str] = (), chance: float | None = None) -> Figure | None:
    """One panel per cost for a table of one task; None if no cost was measured for two methods.

    costs: names of the costs to show, all by default. chance: score of a trivial answer.

    Raises:
        UserError: no such cost.
    """
    (task,) = table.tasks
    rows = table.frame.to_dict("records")
    panels = [(cost, _points(table, rows, task.key, cost)) for cost in _chosen(costs, rows)]
    panels = [(cost, points) for cost, points in panels if len(points) > 1]
    if not panels:
        return None
    labels = [
        label for label in table.frame["method"] if any(label == p.label for _, own in panels for p in own)
    ]
    look = looks(labels)
    width = 0.8 + (2.65 if len(panels) > 1 else 3.6) * len(panels)
    per_row = max(1, int((width - 0.3) / (0.35 + 0.068 * max(map(len, labels)))))
    legend = 0.19 * -(-len(labels) // per_row)
    height = 3.55 + legend
    with styled():
        figure = new_figure(width, height)
        whiskers = ", whiskers 95 % intervals" if any(p.score_interval for p in panels[0][1]) else ""
        title = add_title(figure, f"{table.title}: grey line Pareto front{whiskers}")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        figure.subplots_adjust(
            left=0.6 / width,
            right=1 - 0.12 / width,
            bottom=(0.62 + legend) / height,
            top=1 - (0.1 + title) / height,
            wspace=0.1,
        )
        for axis, (cost, points) in zip(axes, panels, strict=True):
            _draw(axis, cost, points, look, task.higher_is_better)
            if chance is not None:
                draw_chance(axis, chance, named=axis is axes[-1])
        axes[0].set_ylabel(f"{task.header}: {task.metric} (%)")
        marks = [
            Line2D([], [], color=look[each].color, marker=look[each].marker, linestyle="", markersize=6)
            for each in labels
        ]
        figure.legend(
            marks,
            labels,
            loc="lower center",
            ncols=min(per_row, len(labels)),
            fontsize=8.5,
            handletextpad=0.1,
            columnspacing=1.0,
            borderaxespad=0.2,
        )
    return figure


def _chosen(names: Sequence[str], rows: Sequence[dict[Any, Any]]) -> list[Cost]:
    """The costs by these names, compute in the unit that suits the largest."""
    known = {cost.name: cost for cost in COSTS}
    for name in names:
        if name not in known:
            raise UserError(f"--costs: no cost '{name}'.{did_you_mean(name, known)}")
    largest = max((row["macs"] for row in rows if isinstance(row["macs"], float)), default=1.0)
    unit, size = ("G", 1e9) if largest >= 1e9 else ("M", 1e6)
    compute = replace(COSTS[0], title=f"Inference compute ({unit}MACs)", unit=size)
    return [compute if name == compute.name else known[name] for name in names or known]


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
            markersize=7,
            markeredgecolor=PAPER,  # so that one marker on another can be told from it
            markeredgewidth=0.6,
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )
    axis.set_xlabel(cost.title)
    axis.margins(x=0.08, y=0.06)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], prune="upper"))
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
