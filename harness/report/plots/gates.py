"""Gates of a search over its updates: which arms (such as blocks) it chose, and when the choice settled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from harness.records.search_history import SearchTrace
from harness.report.plots.labels import spread
from harness.report.plots.style import GREY, OKABE_ITO, new_figure, styled


def gates_figure(trace: SearchTrace, title: str) -> Figure:
    """Each arm's gate after every update, above as lines, below as a map in the order of the model."""
    gates = np.array(trace.values)
    updates, number = gates.shape
    order = [name for name in trace.arms if name in trace.chosen]
    colors = dict(zip(order, _cycle(len(order)), strict=True))
    with styled():
        figure = new_figure(7.4, 3.4 + 0.17 * number)
        lines, chart = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.3 + 0.12 * number])
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
        for name, end, height in zip(
            trace.arms, last, spread(list(last), (high - low + 2 * room) * 0.062, low, high), strict=True
        ):
            lines.annotate(
                name,
                (updates - 1, float(end)),
                xytext=(1.03, height),
                textcoords=lines.get_yaxis_transform(),  # type: ignore[arg-type]
                fontsize=7.5,
                va="center",
                color=colors.get(name, "#555555"),
                fontweight="bold" if name in colors else "normal",
                arrowprops={"arrowstyle": "-", "linewidth": 0.4, "color": GREY, "shrinkA": 0, "shrinkB": 1},
                annotation_clip=False,
            )
        lines.axhline(0, color="#444444", linewidth=0.6)
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
                axis.axvline(update + 0.5, color="#444444", linewidth=0.7, linestyle=(0, (3, 2)))
                if axis is lines:
                    axis.text(
                        update + 0.7, high + room, f"epoch {epoch}", fontsize=7, va="top", color="#444444"
                    )
        figure.colorbar(image, ax=chart, pad=0.015, aspect=12).set_label("Gate", fontsize=8)
    return figure


def _cycle(number: int) -> Sequence[str]:
    chosen = OKABE_ITO[1:]
    return [chosen[index % len(chosen)] for index in range(number)]
