import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tasks.mini.render import PLAIN, TEXTURED, Style, render
from tasks.mini.world import COLORS, SHAPES, TASK, Scene, Thing, sample_scene

FLAT = Style(background=(40.0, 40.0))


@pytest.mark.parametrize("style", [PLAIN, TEXTURED])
def test_pictures_are_rgb_bytes_and_follow_the_seed(style: Style) -> None:
    scene = sample_scene(np.random.default_rng(0), TASK)
    first, again, other = (render(scene, style, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    assert first.flags.c_contiguous
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("color", COLORS)
def test_a_filled_thing_has_its_color_at_its_centre(color: str) -> None:
    scene = Scene((Thing("square", color, "large", 24, 40),))
    picture = render(scene, FLAT, np.random.default_rng(0))
    assert tuple(picture[40, 24].tolist()) == COLORS[color]
    assert tuple(picture[24, 40].tolist()) == (40, 40, 40)


@pytest.mark.parametrize(("size", "low", "high"), [("small", 9, 11), ("large", 15, 17)])
def test_sizes_are_extents_in_pixels(size: str, low: int, high: int) -> None:
    picture = render(Scene((Thing("circle", "white", size, 32, 32),)), FLAT, np.random.default_rng(0))
    row = (picture[32, :, 0].astype(float) - 40) / (248 - 40)
    assert low - 1 <= row.sum() <= high + 1


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_differs_from_the_others(shape: str) -> None:
    def drawn(name: str) -> np.ndarray:
        scene = Scene((Thing(name, "white", "small", 32, 32),))
        return render(scene, FLAT, np.random.default_rng(0)).astype(float)

    others = [drawn(name) for name in SHAPES if name != shape]
    assert all(
        np.abs(drawn(shape) - other).sum() / (3 * 208) > 8 for other in others
    )  # difference in whole pixels


def test_hollow_things_show_the_background_inside() -> None:
    scene = Scene((Thing("circle", "red", "large", 32, 32),))
    picture = render(scene, replace(FLAT, outline=1.0), np.random.default_rng(0))
    assert tuple(picture[32, 32].tolist()) == (40, 40, 40)
    assert np.any(np.all(picture == COLORS["red"], axis=-1))


def test_clutter_and_gradient_change_an_empty_picture() -> None:
    empty = Scene(())
    assert len(np.unique(render(empty, FLAT, np.random.default_rng(0)))) == 1
    for style in (replace(FLAT, clutter=4), replace(FLAT, gradient=50.0), replace(FLAT, texture=10.0)):
        assert any(len(np.unique(render(empty, style, np.random.default_rng(s)))) > 5 for s in range(4))


BACKGROUNDS = """
import hashlib
import numpy as np
from tasks.mini.render import TEXTURED, _background
rng = np.random.default_rng(0)
print(hashlib.sha256(b"".join(_background(TEXTURED, rng).tobytes() for _ in range(50))).hexdigest())
"""


def test_pictures_do_not_depend_on_the_kernels_that_blas_chooses() -> None:
    """numpy's matrix products round differently with the kernels for an older processor."""
    digests = [
        subprocess.run(
            [sys.executable, "-c", BACKGROUNDS],
            env={**os.environ, **kernels},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for kernels in ({}, {"OPENBLAS_CORETYPE": "Nehalem"})
    ]
    assert len(digests[0]) > 64
    assert digests[0] == digests[1]
