"""Learning curves: training loss and validation metric by epoch, one line per method, a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.plots.labels import spread
from harness.report.plots.style import Look, looks, new_figure, styled


@dataclass(frozen=True)
class Curve:
    """Contents of a cell's `curve.csv`: values by column and epoch, without empty entries."""

    epochs: tuple[int, ...]
    columns: Mapping[str, Mapping[int, float]]


def curves_figure(curves: Mapping[str, Sequence[Curve]], metric: str, title: str) -> Figure | None:
    """Learning curves of all methods; None if no cell has a curve.

    curves: one curve per seed, by method label.
    """
    curves = {label: own for label, own in curves.items() if own}
    wanted = [("train_loss", "Training loss"), (f"val_{metric}", f"Validation {metric} (%)")]
    there = [
        (column, name)
        for column, name in wanted
        if any(column in curve.columns for own in curves.values() for curve in own)
    ]
    if not there:
        return None
    look = looks(list(curves))
    with styled():
        figure = new_figure(0.6 + 4.7 * len(there), 3.6)
        axes = figure.subplots(1, len(there), squeeze=False)[0]
        for axis, (column, name) in zip(axes, there, strict=True):
            _draw(axis, curves, column, look)
            axis.set_xlabel("Epoch")
            axis.set_ylabel(name)
        several = any(len(own) > 1 for own in curves.values())
        band = " (mean over seeds; band: lowest to highest)" if several else ""
        figure.suptitle(f"{title}: learning curves{band}", fontsize=9.5, x=0.01, ha="left")
    return figure


def _draw(axis: Axes, curves: Mapping[str, Sequence[Curve]], column: str, look: Mapping[str, Look]) -> None:
    ends: list[tuple[str, int, float]] = []
    for label, own in curves.items():
        by_epoch: dict[int, list[float]] = {}
        for curve in own:
            for epoch, value in curve.columns.get(column, {}).items():
                by_epoch.setdefault(epoch, []).append(value)
        if not by_epoch:
            continue
        epochs = sorted(by_epoch)
        means = [float(np.mean(by_epoch[epoch])) for epoch in epochs]
        axis.plot(
            epochs,
            means,
            color=look[label].color,
            marker=look[label].marker,
            linestyle=look[label].dash,
            markersize=4,
            markerfacecolor=look[label].face,
            linewidth=1.3,
        )
        if max(map(len, by_epoch.values())) > 1:
            bottom, top = ([pick(by_epoch[epoch]) for epoch in epochs] for pick in (min, max))
            axis.fill_between(epochs, bottom, top, color=look[label].color, alpha=0.13, linewidth=0)
        ends.append((label, epochs[-1], means[-1]))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    last = max((epoch for _, epoch, _ in ends), default=1)
    room = 0.05 * last if last > 1 else 0.5
    axis.set_xlim(1 - room, last + room)
    low, high = axis.get_ylim()
    heights = spread([end for _, _, end in ends], (high - low) * 0.058, low, high)
    for (label, final_epoch, end), height in zip(ends, heights, strict=True):
        axis.annotate(
            label,
            (final_epoch, end),
            xytext=(1.03, height),
            textcoords=axis.get_yaxis_transform(),  # type: ignore[arg-type]
            fontsize=8,
            va="center",
            color=look[label].color,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.5,
                "color": look[label].color,
                "shrinkA": 0,
                "shrinkB": 2,
            },
            annotation_clip=False,
        )
