"""Labels at line ends: their order, and no overlap if there is room."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from harness.report.plots.labels import End, label_ends, spread
from harness.report.plots.style import new_figure


def test_labels_have_the_order_of_the_lines_and_do_not_overlap() -> None:
    figure = new_figure(4, 3)
    axis = figure.subplots()
    axis.set(xlim=(0, 10), ylim=(0, 1))
    ends = [End("a", 10, 0.5, "red"), End("b", 7, 0.52, "blue"), End("c", 10, 0.51, "green", bold=True)]
    label_ends(axis, ends)
    figure.canvas.draw()  # places the labels
    boxes = {text.get_text(): Text.get_window_extent(text) for text in axis.texts}
    assert boxes["a"].y0 < boxes["c"].y0 < boxes["b"].y0
    assert not any(one.overlaps(other) for one, other in combinations(boxes.values(), 2))
    assert all(box.x0 > axis.get_window_extent().x1 for box in boxes.values())
    # The leader of a line that ends early is level until the edge of the axis.
    (level,) = axis.lines
    assert list(level.get_xdata()) == [7, 10]
    assert list(level.get_ydata()) == [0.52, 0.52]


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
