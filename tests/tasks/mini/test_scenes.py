from __future__ import annotations

import numpy as np
import pytest

from tasks.mini.scenes import OWNERS, beyond_pretraining, new_scene, owner_of, sample_theme
from tasks.mini.world import PRETRAINING, Scene, Thing, sample_scene


def test_no_pretraining_scene_counts_as_beyond_pretraining() -> None:
    rng = np.random.default_rng(0)
    assert not any(beyond_pretraining(sample_scene(rng, PRETRAINING)) for _ in range(2000))


@pytest.mark.parametrize(
    ("x", "y", "beyond"), [(8, 8, False), (10, 6, False), (11, 8, True), (24, 21, True), (58, 40, False)]
)
def test_a_scene_is_beyond_pretraining_if_a_thing_is_farther_off_than_pretraining_moves_it(
    x: int, y: int, beyond: bool
) -> None:
    still = Thing("circle", "red", "small", 40, 40)
    assert beyond_pretraining(Scene((still, Thing("star", "blue", "small", x, y)))) == beyond


@pytest.mark.parametrize("owner", OWNERS)
def test_new_scenes_belong_to_the_owner_follow_the_theme_and_are_not_taken(owner: str) -> None:
    rng = np.random.default_rng(1)
    theme = sample_theme(2, 3, rng)
    taken: set[frozenset[Thing]] = set()
    for _ in range(40):
        scene = new_scene(owner, theme, taken, rng)
        assert owner_of(scene) == owner
        assert owner_of(Scene(scene.things[::-1])) == owner  # in any order
        assert beyond_pretraining(scene)
        assert {thing.color for thing in scene.things} <= set(theme.colors)
        assert {thing.shape for thing in scene.things} <= set(theme.shapes)
        assert frozenset(scene.things) not in taken
        taken.add(frozenset(scene.things))


def test_a_theme_has_different_colors_and_shapes() -> None:
    theme = sample_theme(4, 6, np.random.default_rng(2))
    assert len(set(theme.colors)) == 4
    assert len(set(theme.shapes)) == 6
