"""Columns of text on a terminal of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from harness.report.terminal import Shown, print_columns, split, width_of

COLUMNS = [
    Shown("method", ["full", "lora"]),
    Shown("updated", ["111,002,880", "294,912"]),
    Shown("of the head", ["1,000", "2,000"], frozenset({1})),
]


def test_headers_are_wrapped_but_numbers_are_not() -> None:
    assert [column.width for column in COLUMNS] == [6, 11, 5]
    assert width_of(COLUMNS) == 6 + 2 + 11 + 2 + 5


@pytest.mark.parametrize(("room", "expected"), [(26, [3]), (25, [2, 2]), (19, [2, 2]), (1, [2, 2])])
def test_each_part_begins_with_the_first_column(room: int, expected: list[int]) -> None:
    parts = split(COLUMNS, room)
    assert [len(part) for part in parts] == expected
    assert all(part[0] is COLUMNS[0] for part in parts)


@pytest.mark.parametrize("width", [10, 19, 26, 80])
def test_no_number_is_cut(width: int) -> None:
    out = io.StringIO()
    print_columns(COLUMNS, Console(file=out, width=width, force_terminal=True, color_system=None))
    text = out.getvalue()
    for column in COLUMNS:
        assert all(number in text for number in column.texts)
    assert max(map(len, text.splitlines())) <= max(width, width_of(COLUMNS[:2]))
