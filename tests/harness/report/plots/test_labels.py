"""Placement of labels: no overlap if there is room, and the same places for the same input."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.plots.labels import Box, place_labels, spread

CANVAS: Box = (0, 0, 600, 400)


def overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def test_labels_of_nine_close_points_do_not_overlap() -> None:
    points = [(300.0 + 3 * k, 200.0 + 2 * (k % 3)) for k in range(9)]
    markers = [(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    placed = place_labels(points, [(60, 11)] * 9, CANVAS, markers)
    boxes = [each.box for each in placed]
    assert not any(overlap(a, b) for a, b in combinations(boxes, 2))
    assert not any(overlap(box, marker) for box in boxes for marker in markers)
    assert all(
        CANVAS[0] <= b[0] and b[2] <= CANVAS[2] and CANVAS[1] <= b[1] and b[3] <= CANVAS[3] for b in boxes
    )
    assert placed == place_labels(points, [(60, 11)] * 9, CANVAS, markers)


def test_single_label_is_beside_its_point_without_a_line() -> None:
    (alone,) = place_labels([(100, 100)], [(40, 10)], CANVAS)
    assert alone.box == (106, 95, 146, 105)
    assert not alone.far


def test_at_the_right_edge_a_label_goes_elsewhere() -> None:
    (alone,) = place_labels([(595, 100)], [(40, 10)], CANVAS)
    assert alone.box[2] <= 600
    assert not overlap(alone.box, (591, 96, 599, 104))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_spread_keeps_order_and_distance(wanted: list[float]) -> None:
    found = spread(wanted, 5, 0, 100)
    placed = sorted(found)
    assert all(b - a >= 5 - 1e-6 for a, b in pairwise(placed))
    assert placed[0] >= -1e-6
    assert placed[-1] <= 100 + 1e-6
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    assert [found[i] for i in order] == placed


def test_spread_keeps_distant_labels_and_centres_close_ones() -> None:
    assert spread([10, 50], 5, 0, 100) == [10, 50]
    assert spread([50, 50], 10, 0, 100) == [45, 55]
    assert spread([0, 0], 10, 0, 100) == [0, 10]
    # No room for three: they stand about the middle.
    assert spread([1, 1, 1], 10, 0, 10) == pytest.approx([-5, 5, 15])
