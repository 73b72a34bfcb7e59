from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.measure.gemm import GemmShape, gemm_cycle, gemm_rate, transformer_shapes

CPU = torch.device("cpu")


@given(tokens=st.integers(1, 300), width=st.integers(1, 64), blocks=st.integers(1, 12))
def test_shapes_are_those_of_a_transformer_block(tokens: int, width: int, blocks: int) -> None:
    shapes = transformer_shapes(tokens, width, 4 * width, blocks)
    assert sum(shape.macs for shape in shapes) == blocks * 12 * width**2 * tokens


def test_rate_is_macs_of_a_pass_over_its_median_time() -> None:
    ticks = iter(range(100))
    shapes = [GemmShape(2, 3, 5, count=4), GemmShape(7, 5, 3)]
    # every reading of the clock is a second after the last: a pass takes 1 s
    assert gemm_rate(shapes, 3.0, clock=lambda: float(next(ticks))) == 4 * 30 + 105


def test_a_pass_multiplies_exactly_the_shapes() -> None:
    shapes = transformer_shapes(5, 8, 32, blocks=2)
    with torch.profiler.profile(record_shapes=True) as profile:
        gemm_cycle(shapes, CPU)()
    products = [e.input_shapes[:2] for e in profile.events() if e.name == "aten::linear"]
    block = [[[5, 8], [8, 8]]] * 4 + [[[5, 8], [32, 8]], [[5, 32], [8, 32]]]
    assert products == block * 2
