"""Labels of every patch of a mini picture, for the dense objectives of pre-training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tasks.mini.world import CELL_SIZE, COLORS, GRID, SHAPES, SIZES, Scene

COLOR_INDEX = {name: index for index, name in enumerate(COLORS, start=1)}
SHAPE_INDEX = {name: index for index, name in enumerate(SHAPES, start=1)}
SIZE_INDEX = {name: index for index, name in enumerate(SIZES, start=1)}


def patch_labels(scene: Scene) -> NDArray[np.int64]:
    """Colour, shape and size of the thing whose centre is in each 16 x 16 patch.

    Returns `(16, 3)` int64, patches in raster order, indices from 1; all 0 for a patch without a centre. A thing
    that extends into a neighbouring patch is not counted there.
    """
    labels = np.zeros((GRID * GRID, 3), np.int64)
    for thing in scene.things:
        patch = thing.y // CELL_SIZE * GRID + thing.x // CELL_SIZE
        labels[patch] = COLOR_INDEX[thing.color], SHAPE_INDEX[thing.shape], SIZE_INDEX[thing.size]
    return labels
