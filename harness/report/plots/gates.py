"""Gates of a search over its updates: which arms (such as blocks) it chose, and when the choice settled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.records.search_history import SearchTrace
from harness.report.plots.labels import End, gutter, label_ends
from harness.report.plots.style import COLORS, GREY, INK, new_figure, styled


def gates_figure(trace: SearchTrace, title: str) -> Figure:
    """Each arm's gate after every update, above as lines, below as a map in the order of the model."""
    gates = np.array(trace.values)
    updates, number = gates.shape
    order = [name for name in trace.arms if name in trace.chosen]
    colors = dict(zip(order, _cycle(len(order)), strict=True))
    with styled():
        width, height = 7.4, 3.4 + 0.17 * number
        left, right = gutter(trace.arms), max(0.9, gutter(trace.arms))
        bottom = 0.5 / height
        figure = new_figure(width, height)
        lines, chart = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.3 + 0.12 * number])
        figure.subplots_adjust(
            left=max(0.6, left) / width,
            right=1 - right / width,
            bottom=bottom,
            top=1 - 0.35 / height,
            hspace=0.06,
        )
        for column, name in enumerate(trace.arms):
            lines.plot(
                gates[:, column],
                color=colors.get(name, GREY),
                linewidth=1.9 if name in colors else 0.8,
                zorder=3 if name in colors else 2,
            )
        last = gates[-1]
        low, high = float(gates.min()), float(gates.max())
        room = (high - low) * 0.06 or 0.1
        lines.set_ylim(low - room, high + room)
        ends = [
            End(name, updates - 1, float(end), colors.get(name, "#555555"), name in colors)
            for name, end in zip(trace.arms, last, strict=True)
        ]
        lines.axhline(0, color=INK, linewidth=0.6)
        lines.set_ylabel(f"Gate (high: {trace.outcome})")
        names = ", ".join(trace.chosen)
        lines.set_title(f"{title}: {trace.outcome} in the end {names} (bold)", loc="left")
        reach = float(np.abs(gates).max()) or 1.0
        image = chart.imshow(
            gates.T, aspect="auto", cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest"
        )
        chart.grid(visible=False)
        chart.set_yticks(range(number), trace.arms, fontsize=7)
        for text in chart.get_yticklabels():
            if text.get_text() in colors:
                text.set(fontweight="bold", color=colors[text.get_text()])
        chart.set_xlabel("Update of the gates")
        for axis in (lines, chart):
            for update, epoch in trace.epoch_starts[1:]:
                axis.axvline(update + 0.5, color=INK, linewidth=0.7, linestyle=(0, (3, 2)))
                if axis is lines:
                    axis.text(update + 0.7, high + room, f"epoch {epoch}", fontsize=7, va="top", color=INK)
        bar = figure.add_axes((1 - (right - 0.12) / width, bottom, 0.12 / width, chart.get_position().height))
        figure.colorbar(image, cax=bar).set_label("Gate", fontsize=8)
        label_ends(lines, ends)
    return figure


def _cycle(number: int) -> Sequence[str]:
    chosen = COLORS[1:]
    return [chosen[index % len(chosen)] for index in range(number)]
