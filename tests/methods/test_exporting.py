from __future__ import annotations

import pytest

from methods.exporting import reduction_factor


@pytest.mark.parametrize("width", [128, 768])
def test_the_library_gets_every_size_of_bottleneck(width: int) -> None:
    for size in range(1, width + 1):
        assert int(width // reduction_factor(width, size)) == size
