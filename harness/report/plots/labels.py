"""Place labels without overlaps, by a deterministic greedy search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, pi, sin

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""


_DIRECTIONS = (0, 45, 315, 135, 225, 90, 270, 180, 22, 338, 158, 202, 68, 292, 112, 248)
"""Directions in degrees, in order of preference."""


_DISTANCES = (6.0, 11.0, 18.0, 27.0, 38.0, 52.0, 70.0)
"""Distances from a data point to its label's edge, in typographic points."""


@dataclass(frozen=True)
class Placed:
    """A placed label's box. far: whether it needs a line to its point."""

    box: Box
    far: bool


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    bounds: Box,
    obstacles: Sequence[Box] = (),
    scale: float = 1.0,
) -> list[Placed]:
    """Place each label near its point. All lengths are in canvas units.

    sizes: width and height of each label. bounds: allowed area. obstacles: boxes to keep clear, such as markers.
    scale: canvas units per typographic point. Labels of crowded points are placed first. A label without free
    room goes where it covers the least.
    """
    crowd = [sum(abs(x - u) + abs(y - v) < 80 * scale for u, v in points) for x, y in points]
    placed: dict[int, Placed] = {}
    for index in sorted(range(len(points)), key=lambda i: (-crowd[i], -points[i][1], points[i][0], i)):
        best: tuple[float, Placed] | None = None
        for box, distance in _candidates(points[index], sizes[index], scale):
            cost = 40 * _outside(box, bounds) + sum(_overlap(box, other.box) for other in placed.values()) * 4
            cost += sum(_overlap(box, other) for other in obstacles)
            if best is None or cost < best[0] - 1e-9:
                best = (cost, Placed(box, distance > _DISTANCES[1]))
            if cost == 0:
                break
        assert best is not None
        placed[index] = best[1]
    return [placed[index] for index in range(len(points))]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least `gap` apart, close to the wanted ones and in the same order, for labels at line ends.

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


def _candidates(
    point: tuple[float, float], size: tuple[float, float], scale: float
) -> list[tuple[Box, float]]:
    found = []
    width, height = size
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            across, up = cos(degrees * pi / 180), sin(degrees * pi / 180)
            # A side faces the point in the eight main directions, so the distance is to the nearest edge.
            x = point[0] + across * distance * scale + max(-1, min(1, 1.5 * across)) * width / 2
            y = point[1] + up * distance * scale + max(-1, min(1, 1.5 * up)) * height / 2
            found.append(((x - width / 2, y - height / 2, x + width / 2, y + height / 2), distance))
    return found


def _overlap(one: Box, other: Box) -> float:
    """Area of the intersection."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0


def _outside(box: Box, bounds: Box) -> float:
    """How far a box reaches beyond the bounds, in canvas units."""
    return (
        max(0.0, bounds[0] - box[0])
        + max(0.0, bounds[1] - box[1])
        + max(0.0, box[2] - bounds[2])
        + max(0.0, box[3] - bounds[3])
    )
