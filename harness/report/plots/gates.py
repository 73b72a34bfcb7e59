"""DAS's gates over its search: which blocks become redundant, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from matplotlib.figure import Figure

from harness.records.record import Record
from harness.report.plots.labels import spread
from harness.report.plots.style import GREY, OKABE_ITO, new_figure, styled


@dataclass(frozen=True)
class Search:
    """A search as its record tells it.

    blocks: names in order. skipped: the names chosen. gates: `(U + 1, N)`, the first row before any update.
    epoch_starts: updates at which an epoch begins, and the epoch's number from 1.
    """

    blocks: tuple[str, ...]
    skipped: tuple[str, ...]
    gates: np.ndarray
    epoch_starts: tuple[tuple[int, int], ...]


def read_search(record: Record) -> Search | None:
    """None for a method that has no gates, and for a search without an update."""
    found = record.search
    if found is None or not isinstance(found.history, list) or not found.history:
        return None
    gates, skipped = found.decision.get("gates"), found.decision.get("skipped")
    updates = cast(list[dict[str, Any]], found.history)
    if not isinstance(gates, dict) or not isinstance(skipped, list) or "gates" not in updates[0]:
        return None
    blocks = tuple(gates)
    rows = np.array([[0.0] * len(blocks), *(update["gates"] for update in updates)])
    epochs = [int(update["epoch"]) for update in updates]
    starts = [
        (index, epoch + 1) for index, epoch in enumerate(epochs) if index == 0 or epoch != epochs[index - 1]
    ]
    return Search(blocks, tuple(map(str, skipped)), rows, tuple(starts))


def gates_figure(search: Search, title: str) -> Figure:
    """Above, each block's gate after every update; below, the same as a map, blocks in the order of the model."""
    updates, number = search.gates.shape
    order = [name for name in search.blocks if name in search.skipped]
    colors = dict(zip(order, _cycle(len(order)), strict=True))
    with styled():
        figure = new_figure(7.4, 3.4 + 0.17 * number)
        lines, chart = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 0.3 + 0.12 * number])
        for column, name in enumerate(search.blocks):
            lines.plot(
                search.gates[:, column],
                color=colors.get(name, GREY),
                linewidth=1.9 if name in colors else 0.8,
                zorder=3 if name in colors else 2,
            )
        last = search.gates[-1]
        low, high = float(search.gates.min()), float(search.gates.max())
        room = (high - low) * 0.06 or 0.1
        lines.set_ylim(low - room, high + room)
        for name, end, height in zip(
            search.blocks, last, spread(list(last), (high - low + 2 * room) * 0.062, low, high), strict=True
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
        lines.set_ylabel("Gate (high: skip)")
        names = ", ".join(search.skipped)
        lines.set_title(f"{title}: skipped in the end {names} (bold)", loc="left")
        reach = float(np.abs(search.gates).max()) or 1.0
        image = chart.imshow(
            search.gates.T, aspect="auto", cmap="PuOr_r", vmin=-reach, vmax=reach, interpolation="nearest"
        )
        chart.grid(visible=False)
        chart.set_yticks(range(number), search.blocks, fontsize=7)
        for text in chart.get_yticklabels():
            if text.get_text() in colors:
                text.set(fontweight="bold", color=colors[text.get_text()])
        chart.set_xlabel("Update of the gates")
        for axis in (lines, chart):
            for update, epoch in search.epoch_starts[1:]:
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
