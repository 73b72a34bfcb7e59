from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from lightning_fabric import Fabric

from harness.backbones.base import Backbone
from harness.training.conversion import converted_once
from tests.support.folding import METHODS, adapted, das, streams_of, tiny_vilt, tokens_after


def fabric(precision: str) -> Fabric:
    return Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]


@pytest.fixture(params=["vilt", "meter"])
def fresh(request: pytest.FixtureRequest, make_meter: Callable[..., Backbone]) -> Callable[[], Backbone]:
    return tiny_vilt if request.param == "vilt" else make_meter  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["full", "adapter", "parallel", "parallel without norm", "das"])
def test_outputs_under_autocast_stay_the_same_to_the_last_bit(
    name: str, fresh: Callable[[], Backbone]
) -> None:
    backbone = fresh()
    method = das(backbone) if name == "das" else METHODS[name]()
    adapted(backbone, method)
    method.finalize(backbone)
    streams = streams_of(backbone, 3, "text")
    weights = copy.deepcopy(backbone.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        expected = tokens_after(backbone, streams)
        with converted_once(fabric("bf16-mixed"), backbone):
            assert torch.bfloat16 in {parameter.dtype for parameter in backbone.blocks.parameters()}
            found = tokens_after(backbone, streams)
    for stream, hidden in expected.items():
        assert torch.equal(found[stream], hidden)
    assert all(torch.equal(tensor, weights[key]) for key, tensor in backbone.state_dict().items())


def test_nothing_is_converted_in_full_precision(fresh: Callable[[], Backbone]) -> None:
    backbone = adapted(fresh(), METHODS["full"]())
    METHODS["full"]().finalize(backbone)
    with converted_once(fabric("32-true"), backbone):
        assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}
