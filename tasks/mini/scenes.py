"""Scenes for the tasks' splits: none occurs in pre-training, and each is in one split of one task only.

They are disjoint by construction. Pre-training moves things at most `PRETRAINING.jitter_pixels` from the middle of
their cell; every scene drawn here has a thing that is farther off. A hash of its things assigns each scene to one of
`OWNERS`. VQA, ScienceQA and POPE draw from all scenes, so nothing rules out a scene that they share with another task;
there are so many that the chance of a single one is about one in ten thousand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Set
from dataclasses import dataclass, replace

import numpy as np

from tasks.mini.world import CELL_SIZE, COLORS, PRETRAINING, SHAPES, TASK, Scene, Thing, pick, sample_scene

OWNERS = ("nlvr2", "snli_ve", "retrieval")
"""Tasks that divide all scenes among them."""

Things = frozenset[Thing]
"""The things of a scene, without an order."""


@dataclass(frozen=True)
class Theme:
    """A few colours and shapes. Scenes of one theme look alike: only reading words together distinguishes them."""

    colors: tuple[str, ...]
    shapes: tuple[str, ...]


def sample_theme(colors: int, shapes: int, rng: np.random.Generator) -> Theme:
    """A theme of this many different colours and shapes."""
    return Theme(_some(tuple(COLORS), colors, rng), _some(SHAPES, shapes, rng))


def new_scene(owner: str, theme: Theme, taken: Set[Things], rng: np.random.Generator) -> Scene:
    """A scene of the theme that belongs to `owner`, is beyond pre-training, and is not in `taken`."""
    while True:
        scene = _in_theme(sample_scene(rng, TASK), theme, rng)
        if beyond_pretraining(scene) and owner_of(scene) == owner and frozenset(scene.things) not in taken:
            return scene


def free_scene(taken: Set[Things], rng: np.random.Generator) -> Scene:
    """A scene beyond pre-training that is not in `taken`. As VQA's, it is drawn from all scenes, whoever owns them."""
    while True:
        scene = sample_scene(rng, TASK)
        if beyond_pretraining(scene) and frozenset(scene.things) not in taken:
            return scene


def beyond_pretraining(scene: Scene) -> bool:
    """True if a thing is farther from the middle of its cell than pre-training ever moves it."""
    middle = CELL_SIZE // 2
    return any(
        abs(place % CELL_SIZE - middle) > PRETRAINING.jitter_pixels
        for thing in scene.things
        for place in (thing.x, thing.y)
    )


def owner_of(scene: Scene) -> str:
    """The task of `OWNERS` that the scene belongs to."""
    things = sorted((t.shape, t.color, t.size, t.x, t.y) for t in scene.things)
    return OWNERS[hashlib.sha256(repr(things).encode()).digest()[0] % len(OWNERS)]


def _in_theme(scene: Scene, theme: Theme, rng: np.random.Generator) -> Scene:
    """The scene with each colour and shape replaced by one of the theme; things that shared one still share it."""
    colors = {color: pick(theme.colors, rng) for color in dict.fromkeys(t.color for t in scene.things)}
    shapes = {shape: pick(theme.shapes, rng) for shape in dict.fromkeys(t.shape for t in scene.things)}
    return Scene(tuple(replace(t, color=colors[t.color], shape=shapes[t.shape]) for t in scene.things))


def _some(items: tuple[str, ...], number: int, rng: np.random.Generator) -> tuple[str, ...]:
    return tuple(items[k] for k in rng.permutation(len(items))[:number].tolist())
