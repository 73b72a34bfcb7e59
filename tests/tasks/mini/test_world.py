from itertools import combinations

import numpy as np
import pytest

from tasks.mini.world import (
    MIN_DISTANCE,
    PRETRAINING,
    TASK,
    Layout,
    Thing,
    plural,
    relation_holds,
    sample_scene,
)


@pytest.mark.parametrize("layout", [PRETRAINING, TASK])
def test_things_are_in_distinct_cells_apart_and_inside(layout: Layout) -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        things = sample_scene(rng, layout).things
        assert layout.min_things <= len(things) <= layout.max_things
        assert len({(t.x // 16, t.y // 16) for t in things}) == len(things)
        assert all(5 < t.x < 59 and 5 < t.y < 59 for t in things)
        for a, b in combinations(things, 2):
            assert (a.x - b.x) ** 2 + (a.y - b.y) ** 2 >= MIN_DISTANCE**2


def test_same_seed_gives_the_same_scene() -> None:
    assert sample_scene(np.random.default_rng(7), TASK) == sample_scene(np.random.default_rng(7), TASK)


def test_repeat_makes_things_share_colours() -> None:
    def colors(repeat: float) -> float:
        rng = np.random.default_rng(1)
        layout = Layout(min_things=5, max_things=5, jitter_pixels=2, repeat=repeat)
        return float(np.mean([len({t.color for t in sample_scene(rng, layout).things}) for _ in range(300)]))

    assert colors(1.0) < colors(0.0) - 0.5


def test_relations_need_a_clear_margin() -> None:
    a, near, far = (Thing("circle", "red", "small", x, 20) for x in (10, 17, 18))
    assert not relation_holds(a, near, "left of")
    assert relation_holds(a, far, "left of")
    assert relation_holds(far, a, "right of")
    assert not relation_holds(a, far, "above")
    assert not relation_holds(a, far, "below")
    with pytest.raises(ValueError, match="unknown relation"):
        relation_holds(a, far, "beside")


@pytest.mark.parametrize("bad", [(0, 3, 2), (4, 3, 2), (1, 17, 2), (1, 3, 5)])
def test_impossible_layouts_are_refused(bad: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match=r"things|jitter"):
        Layout(*bad, repeat=0.0)


def test_the_plural_of_cross_takes_es() -> None:
    assert (plural("red cross"), plural("thing")) == ("red crosses", "things")
