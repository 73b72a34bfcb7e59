from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gemm import gemm_cycle, transformer_shapes

CPU = torch.device("cpu")


@given(tokens=st.integers(1, 300), width=st.integers(1, 64), blocks=st.integers(1, 12))
def test_shapes_are_those_of_a_transformer_block(tokens: int, width: int, blocks: int) -> None:
    shapes = transformer_shapes(tokens, width, 4 * width, blocks)
    assert sum(shape.macs for shape in shapes) == blocks * 12 * width**2 * tokens


def test_a_pass_multiplies_exactly_the_shapes() -> None:
    shapes = transformer_shapes(5, 8, 32, blocks=2)
    with torch.profiler.profile(record_shapes=True) as profile:
        gemm_cycle(shapes, CPU)()
    products = [e.input_shapes[:2] for e in profile.events() if e.name == "aten::linear"]
    block = [[[5, 8], [8, 8]]] * 4 + [[[5, 8], [32, 8]], [[5, 32], [8, 32]]]
    assert products == block * 2
