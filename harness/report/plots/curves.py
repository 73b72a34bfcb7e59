"""Learning curves: training loss and validation metric by epoch, one line per method, a band over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from harness.report.plots.labels import End, gutter, label_ends
from harness.report.plots.style import Look, add_title, draw_chance, looks, new_figure, styled


@dataclass(frozen=True)
class Curve:
    """Contents of a cell's `curve.csv`: values by column and epoch, without empty entries."""

    epochs: tuple[int, ...]
    columns: Mapping[str, Mapping[int, float]]


Panel = Literal["loss", "metric"]

PANELS: tuple[tuple[Panel, ...], ...] = (("loss",), ("metric",))
"""The panels of learning curves, each alone."""


def curves_figure(
    curves: Mapping[str, Sequence[Curve]],
    metric: str,
    title: str,
    chance: float | None = None,
    panels: Sequence[Panel] = ("loss", "metric"),
) -> Figure | None:
    """Learning curves of all methods; None if no cell has a curve.

    curves: one curve per seed, by method label. chance: score of a trivial answer.
    """
    curves = {label: own for label, own in curves.items() if own}
    known = {"loss": ("train_loss", "Training loss"), "metric": (f"val_{metric}", f"Validation {metric} (%)")}
    wanted = [known[panel] for panel in panels]
    there = [
        (column, name)
        for column, name in wanted
        if any(column in curve.columns for own in curves.values() for curve in own)
    ]
    if not there:
        return None
    look = looks(list(curves))
    width, height = 4.3 * len(there), max(3.2, 0.9 + 0.14 * len(curves))
    right = gutter(list(curves))
    with styled():
        figure = new_figure(width, height)
        several = any(len(own) > 1 for own in curves.values())
        band = " (mean over seeds; band: lowest to highest)" if several else ""
        space = add_title(figure, f"{title}: learning curves{band}")
        axes = figure.subplots(1, len(there), squeeze=False)[0]
        figure.subplots_adjust(
            left=0.68 / width,
            right=1 - right / width,
            bottom=0.48 / height,
            top=1 - (0.1 + space) / height,
            wspace=(right + 0.7) / ((width - 0.68 - right - (len(there) - 1) * (right + 0.7)) / len(there)),
        )
        for axis, (column, name) in zip(axes, there, strict=True):
            _draw(axis, curves, column, look, chance if column != "train_loss" else None)
            axis.set_xlabel("Epoch")
            axis.set_ylabel(name)
    return figure


def _draw(
    axis: Axes,
    curves: Mapping[str, Sequence[Curve]],
    column: str,
    look: Mapping[str, Look],
    chance: float | None,
) -> None:
    ends: list[End] = []
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
            linewidth=1.3,
        )
        if max(map(len, by_epoch.values())) > 1:
            bottom, top = ([pick(by_epoch[epoch]) for epoch in epochs] for pick in (min, max))
            axis.fill_between(epochs, bottom, top, color=look[label].color, alpha=0.1, linewidth=0)
        ends.append(End(label, epochs[-1], means[-1], look[label].color))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    last = max((end.x for end in ends), default=1)
    room = 0.05 * last if last > 1 else 0.5
    axis.set_xlim(1 - room, last + room)
    if chance is not None:
        draw_chance(axis, chance)
    label_ends(axis, ends)
