"""Tables on a terminal. A table that is too wide is split into several; no number is ever cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_BETWEEN = 2
"""Blanks between two columns."""


@dataclass(frozen=True)
class Shown:
    """A column of text. bold: rows to print bold. left: aligned to the left, as words are."""

    header: str
    texts: Sequence[str]
    bold: frozenset[int] = frozenset()
    left: bool = False

    @property
    def width(self) -> int:
        """Characters; headers may break between words, texts may not."""
        return max(map(len, (*self.texts, *self.header.split())))


def room_of(console: Console) -> float:
    """Characters per line; unlimited in a file or pipe."""
    return console.width if console.is_terminal else math.inf


def width_of(columns: Sequence[Shown]) -> int:
    """Width of the columns side by side, in characters."""
    return sum(column.width + _BETWEEN for column in columns) - _BETWEEN


def split(columns: Sequence[Shown], room: float) -> list[list[Shown]]:
    """Tables that fit into `room` one by one, each beginning with the first column."""
    first, *others = columns
    parts = [[first]]
    for column in others:
        if len(parts[-1]) > 1 and width_of([*parts[-1], column]) > room:
            parts.append([first])
        parts[-1].append(column)
    return parts


def print_columns(columns: Sequence[Shown], console: Console) -> None:
    """Print columns side by side, the first one aligned to the left."""
    from rich import box
    from rich.segment import SegmentLines
    from rich.table import Table
    from rich.text import Text

    for part in split(columns, room_of(console)):
        grid = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
        for index, column in enumerate(part):
            header = Text(column.header)
            grid.add_column(
                header, justify="right" if index and not column.left else "left", width=column.width
            )
        for row in range(len(part[0].texts)):
            grid.add_row(*(Text(each.texts[row], "bold" if row in each.bold else "") for each in part))
        options = console.options.update(width=width_of(part))
        console.print(
            SegmentLines(console.render_lines(grid, options), new_lines=True), end="", soft_wrap=True
        )
        console.print()
