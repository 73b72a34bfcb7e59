"""Scenes for the tasks' splits: in no pre-training, each in one split of one task only.

Disjoint by construction: pre-training moves things at most `PRETRAINING.jitter_pixels` from the middle of their
cell, and every scene drawn here has something that lies farther off; and a hash of its things gives each scene
to one of `OWNERS`. VQA draws from all scenes: that it shares none with the others is not by construction, but
there are so many that the chance of a single shared one is about one in ten thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from tasks.mini.world import CELL_SIZE, COLORS, PRETRAINING, SHAPES, TASK, Scene, Thing, pick, sample_scene

OWNERS = ("nlvr2", "snli_ve", "retrieval")
"""Tasks that share out all scenes between them."""

Things = frozenset[Thing]
"""A scene without an order."""


@dataclass(frozen=True)
class Theme:
    """A few colours and shapes. Scenes of one theme look alike, so that reading words together is what tells."""

    colors: tuple[str, ...]
    shapes: tuple[str, ...]


def sample_theme(colors: int, shapes: int, rng: np.random.Generator) -> Theme:
    """So many different colours and shapes."""
    return Theme(_some(tuple(COLORS), colors, rng), _some(SHAPES, shapes, rng))


def new_scene(owner: str, theme: Theme, taken: Set[Things], rng: np.random.Generator) -> Scene:
    """A scene of the theme that is the owner's, in no pre-training, and not in `taken`."""
    while True:
        scene = _in_theme(sample_scene(rng, TASK), theme, rng)
        if beyond_pretraining(scene) and owner_of(scene) == owner and frozenset(scene.things) not in taken:
            return scene


def beyond_pretraining(scene: Scene) -> bool:
    """Whether something lies farther from the middle of its cell than pre-training ever moves it."""
    middle = CELL_SIZE // 2
    return any(
        abs(place % CELL_SIZE - middle) > PRETRAINING.jitter_pixels
        for thing in scene.things
        for place in (thing.x, thing.y)
    )


def owner_of(scene: Scene) -> str:
    """The one of `OWNERS` whose scene it is."""
    things = sorted((t.shape, t.color, t.size, t.x, t.y) for t in scene.things)
    return OWNERS[hashlib.sha256(repr(things).encode()).digest()[0] % len(OWNERS)]


def _in_theme(scene: Scene, theme: Theme, rng: np.random.Generator) -> Scene:
    """Each colour and shape exchanged for one of the theme's; what was alike stays alike."""
    colors = {color: pick(theme.colors, rng) for color in dict.fromkeys(t.color for t in scene.things)}
    shapes = {shape: pick(theme.shapes, rng) for shape in dict.fromkeys(t.shape for t in scene.things)}
    return Scene(tuple(replace(t, color=colors[t.color], shape=shapes[t.shape]) for t in scene.things))


def _some(items: tuple[str, ...], number: int, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(items[k] for k in rng.permutation(len(items))[:number].tolist())
