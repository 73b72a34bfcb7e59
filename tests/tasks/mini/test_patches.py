import numpy as np

from tasks.mini.patches import patch_labels
from tasks.mini.world import PRETRAINING, Scene, Thing, sample_scene


def test_labels_of_a_hand_made_scene() -> None:
    scene = Scene((Thing("circle", "red", "small", 15, 8), Thing("heart", "brown", "large", 16, 55)))
    expected = np.zeros((16, 3), np.int64)
    expected[0] = 1, 1, 1  # x = 15 is still in the first column
    expected[13] = 8, 6, 2  # x = 16 is in the second, y = 55 in the last row
    labels = patch_labels(scene)
    assert labels.dtype == np.int64
    assert np.array_equal(labels, expected)


def test_every_thing_has_a_patch_of_its_own() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = sample_scene(rng, PRETRAINING)
        assert np.count_nonzero(patch_labels(scene).all(axis=1)) == len(scene.things)
