"""Labels at the ends of lines, without overlaps and with leaders that do not cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

LABEL_SIZE = 8.0
"""In typographic points."""

_CHARACTER = 0.063
"""Mean width of a letter of a label, in inches."""


@dataclass(frozen=True)
class End:
    """The end of a line and its label."""

    label: str
    x: float
    y: float
    color: str
    bold: bool = False


def gutter(labels: Sequence[str]) -> float:
    """Room in inches that labels need to the right of an axis."""
    return 0.2 + _CHARACTER * max(map(len, labels), default=0)


def label_ends(axis: Axes, ends: Sequence[End]) -> None:
    """Write each line's label to the right of the axis, with a leader to the line's end.

    A leader is level up to the edge of the axis. From there the labels have the order of the lines, so leaders do not
    cross. The axis must have its final size and limits.
    """
    figure = axis.get_figure(root=True)
    assert figure is not None
    low, high = axis.get_ylim()
    right = axis.get_xlim()[1]
    box = axis.get_window_extent()
    width, height = box.width / figure.dpi, box.height / figure.dpi
    gap = (high - low) * 1.25 * LABEL_SIZE / 72 / height
    heights = spread([end.y for end in ends], gap, low, high)
    gap_in_axes = 0.12 / width
    for end, position in zip(ends, heights, strict=True):
        if end.x < right:
            axis.plot([end.x, right], [end.y, end.y], color=end.color, linewidth=0.5, linestyle=":", zorder=1)
        axis.annotate(
            end.label,
            (1.0, end.y),
            xycoords=axis.get_yaxis_transform(),
            xytext=(1.0 + gap_in_axes, position),
            textcoords=axis.get_yaxis_transform(),  # type: ignore[arg-type]
            fontsize=LABEL_SIZE,
            fontweight="bold" if end.bold else "normal",
            va="center",
            color=end.color,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.5,
                "color": end.color,
                "shrinkA": 0,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, close to the wanted ones and in the same order.

    Labels that are too close are spread evenly around their mean. Positions leave the range `low` to `high` only if
    it has no room for all.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    runs: list[tuple[float, int]] = []  # each run of labels: its centre and their number
    for index in order:
        centre, count = min(max(wanted[index], low), high), 1
        while runs and runs[-1][0] + gap * (runs[-1][1] - 1) / 2 + gap > centre - gap * (count - 1) / 2:
            before, number = runs.pop()
            centre = (before * number + centre * count) / (number + count)
            count += number
            half = gap * (count - 1) / 2
            centre = min(max(centre, low + half), high - half) if high - low >= 2 * half else (low + high) / 2
        runs.append((centre, count))
    positions = [centre + gap * (k - (count - 1) / 2) for centre, count in runs for k in range(count)]
    result = [0.0] * len(wanted)
    for index, position in zip(order, positions, strict=True):
        result[index] = position
    return result
