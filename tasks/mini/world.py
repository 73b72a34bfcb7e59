"""The content of a mini picture: a few coloured shapes on a 64 x 64 canvas of 4 x 4 cells.

Pixels, captions, questions and answers are all derived from a `Scene`, so the truth of a sentence is computed and
never guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

IMAGE_SIZE = 64
"""Side of the picture, in pixels."""
CELL_SIZE = 16
"""Side of a cell, in pixels. A cell is also one patch of the mini backbones."""
GRID = IMAGE_SIZE // CELL_SIZE
"""Cells along a side."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (222, 38, 38),
    "green": (44, 168, 60),
    "blue": (45, 92, 232),
    "yellow": (242, 224, 48),
    "purple": (152, 54, 196),
    "orange": (250, 138, 20),
    "white": (248, 248, 248),
    "brown": (124, 72, 32),
}
"""Name to RGB value (0-255) before any change of light."""
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "star", "cross", "heart")
SIZES: dict[str, tuple[int, int]] = {"small": (9, 11), "large": (15, 17)}
"""Name to smallest and largest drawn extent in pixels, inclusive."""
RELATIONS: tuple[str, ...] = ("left of", "right of", "above", "below")

CLEAR_MARGIN = 8
"""Pixels between two centres, along one axis, from which a spatial relation is indisputable."""
MIN_DISTANCE = 12
"""Smallest distance between two centres in pixels, so that no thing hides another."""

_BORDER = {
    "small": 6,
    "large": 9,
}  # smallest distance of a centre to the border, in pixels: nothing is cut off
_JITTER_TRIES = 4


@dataclass(frozen=True)
class Thing:
    """One shape; `x` (to the right) and `y` (downwards) are its centre in pixels."""

    shape: str
    color: str
    size: str
    x: int
    y: int


@dataclass(frozen=True)
class Scene:
    """The things in a picture, in no particular order."""

    things: tuple[Thing, ...]


@dataclass(frozen=True)
class Layout:
    """How scenes are composed.

    jitter_pixels: largest distance of a centre from the middle of its cell, along each axis.
    repeat: probability that a thing takes its colour or its shape from an earlier one.
    """

    min_things: int
    max_things: int
    jitter_pixels: int
    repeat: float

    def __post_init__(self) -> None:
        if not 1 <= self.min_things <= self.max_things <= GRID * GRID:
            raise ValueError(
                f"a scene has 1 to {GRID * GRID} things, got {self.min_things} to {self.max_things}"
            )
        if not 0 <= self.jitter_pixels <= 4:
            raise ValueError(f"jitter_pixels must be 0 to 4, got {self.jitter_pixels}")


PRETRAINING = Layout(min_things=1, max_things=5, jitter_pixels=2, repeat=0.35)
TASK = Layout(min_things=2, max_things=6, jitter_pixels=4, repeat=0.45)

_T = TypeVar("_T")


def pick(items: Sequence[_T], rng: np.random.Generator) -> _T:
    """A random one of `items`, all equally likely."""
    return items[int(rng.random() * len(items))]


def plural(noun: str) -> str:
    """`"red crosses"` for `"red cross"`."""
    return noun + ("es" if noun.endswith("ss") else "s")


def sample_scene(rng: np.random.Generator, layout: Layout) -> Scene:
    """A scene whose things are in distinct cells, at least `MIN_DISTANCE` apart and entirely in the picture."""
    count = int(rng.integers(layout.min_things, layout.max_things + 1))
    colors, sizes = tuple(COLORS), tuple(SIZES)
    things: list[Thing] = []
    for cell in rng.permutation(GRID * GRID)[:count].tolist():
        color, shape, size = pick(colors, rng), pick(SHAPES, rng), pick(sizes, rng)
        if things and rng.random() < layout.repeat:
            earlier = pick(things, rng)
            if rng.random() < 0.5:
                color = earlier.color
            else:
                shape = earlier.shape
        x, y = _place(cell, size, things, rng, layout.jitter_pixels)
        things.append(Thing(shape, color, size, x, y))
    return Scene(tuple(things))


def _place(
    cell: int, size: str, others: Sequence[Thing], rng: np.random.Generator, jitter: int
) -> tuple[int, int]:
    low, high = _BORDER[size], IMAGE_SIZE - _BORDER[size]
    row, column = divmod(cell, GRID)
    middle_x, middle_y = column * CELL_SIZE + CELL_SIZE // 2, row * CELL_SIZE + CELL_SIZE // 2
    for _ in range(_JITTER_TRIES):
        dx, dy = rng.integers(-jitter, jitter + 1, size=2).tolist()
        x, y = min(max(middle_x + dx, low), high), min(max(middle_y + dy, low), high)
        if all((x - o.x) ** 2 + (y - o.y) ** 2 >= MIN_DISTANCE**2 for o in others):
            return x, y
    # The middle of a cell is at least 12 px from any thing of another cell, which is moved by at most 4 px.
    return middle_x, middle_y


def relation_holds(a: Thing, b: Thing, relation: str, margin: int = CLEAR_MARGIN) -> bool:
    """True if `a` is left of, right of, above or below `b` by at least `margin` pixels between centres.

    Raises `ValueError` if `relation` is not one of `RELATIONS`.
    """
    match relation:
        case "left of":
            return b.x - a.x >= margin
        case "right of":
            return a.x - b.x >= margin
        case "above":
            return b.y - a.y >= margin
        case "below":
            return a.y - b.y >= margin
    raise ValueError(f"unknown relation '{relation}'; known: {', '.join(RELATIONS)}")
