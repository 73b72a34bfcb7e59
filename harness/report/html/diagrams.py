"""Small SVG drawings of one cell: the model's blocks, the gates of its search, and its learning curve."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from PIL import Image

from harness.records.search_history import SearchTrace
from harness.report.html.templating import fill

_WIDTH, _HEIGHT, _GAP, _EACH_ROW = 66, 34, 16, 6

_EACH_ARM = 16
"""Height of a row of gates in pixels."""


@dataclass(frozen=True)
class _Box:
    """Position and size of a drawn block, in pixels."""

    name: str
    skipped: bool
    left: int
    top: int
    width: int = _WIDTH
    height: int = _HEIGHT

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def center(self) -> float:
        return self.left + self.width / 2

    @property
    def middle(self) -> float:
        return self.top + self.height / 2


@dataclass(frozen=True)
class _Stream:
    """The line of text below a stream's first row."""

    name: str
    blocks: int
    skipped: int
    y: int


@dataclass(frozen=True)
class _Point:
    """A metric's value after an epoch, with its position in pixels."""

    epoch: int
    value: float
    x: float
    y: float


def block_diagram(blocks: Sequence[str], skipped: Sequence[str]) -> Markup:
    """The blocks of each stream from left to right, 6 per row. Skipped blocks are dashed, their shortcut is drawn.

    A block's name is its stream, a dot and its index (`joint.3`).
    """
    streams: dict[str, list[str]] = {}
    for block in blocks:
        streams.setdefault(block.partition(".")[0], []).append(block)
    rows = [
        (stream, names[start : start + _EACH_ROW])
        for stream, names in streams.items()
        for start in range(0, len(names), _EACH_ROW)
    ]
    row_height = _HEIGHT + 44
    boxes, texts = [], []
    for number, (stream, names) in enumerate(rows):
        top = 26 + number * row_height
        boxes += [
            _Box(name, name in skipped, 12 + place * (_WIDTH + _GAP), top) for place, name in enumerate(names)
        ]
        if number == 0 or rows[number - 1][0] != stream:
            gone = sum(block in skipped for block in streams[stream])
            texts.append(_Stream(stream, len(streams[stream]), gone, top + _HEIGHT + 30))
    return fill(
        "blocks.svg.j2",
        width=12 + max(len(names) for _, names in rows) * (_WIDTH + _GAP),
        height=26 + len(rows) * row_height,
        label=f"{len(blocks)} blocks; skipped: {', '.join(skipped) or 'none'}",
        gap=_GAP,
        boxes=boxes,
        streams=texts,
    )


def small_curve(values: Mapping[int, float], name: str) -> Markup:
    """A metric by epoch, with its first and last value."""
    epochs = sorted(values)
    low, high = min(values.values()), max(values.values())
    span = (high - low) or 1.0
    reach = (epochs[-1] - epochs[0]) or 1
    points = [
        _Point(
            epoch,
            values[epoch],
            x=36 + 190 * (epoch - epochs[0]) / reach,
            y=62 - 48 * (values[epoch] - low) / span,
        )
        for epoch in epochs
    ]
    ends = points if len(points) == 1 else [points[0], points[-1]]
    return fill("curve.svg.j2", name=name, points=points, ends=ends)


def gate_map(trace: SearchTrace) -> Markup:
    """Each arm's gate after every update as a row of colours, from purple (negative) to orange (positive)."""
    gates = np.array(trace.values)
    reach = float(np.abs(gates).max()) or 1.0
    colors = colormaps["PuOr_r"](0.5 + gates.T / (2 * reach), bytes=True)[..., :3]
    content = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(colors)).save(content, "PNG", optimize=True)
    updates, left, width = len(gates), 10 + 7 * max(map(len, trace.arms)), 360
    return fill(
        "gates.svg.j2",
        label=f"Gates of {len(trace.arms)} arms over {updates} updates; {trace.outcome}: {', '.join(trace.chosen)}",
        left=left,
        width=width,
        height=_EACH_ARM * len(trace.arms),
        row=_EACH_ARM,
        uri=f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}",
        arms=[(name, name in trace.chosen) for name in trace.arms],
        epochs=[(left + width * (update + 0.5) / updates, epoch) for update, epoch in trace.epoch_starts[1:]],
        updates=updates,
        reach=reach,
    )
