"""Blocks that reduce tokens are deployed folded, and give what the trained ones give."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch

from harness.backbones.base import Backbone
from harness.registry import build_method
from harness.specs import parse_specs
from methods.reducing_meter import FoldedReducingMeterBlock
from methods.reducing_vilt import FoldedReducingViltBlock
from tests.support.folding import adapted, streams_of, tiny_vilt, tokens_after

SPECS = (
    "tome[r=2]",
    "pumer[layers=0+1,prune=0.3,merge=0.3]",
    "pumer[layers=0+1,prune=0.3,merge=0.3,variant=published]",
    "lora+tome[r=1]",
    "parallel+tome[r=1]",
    "adapter+tome[r=1]",
)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("stream", ["joint", "image"])
@torch.no_grad()
def test_deployed_form_equals_the_trained_one(
    spec: str, stream: str, make_meter: Callable[..., Backbone]
) -> None:
    method = build_method(parse_specs(spec)[0])
    backbone = adapted(tiny_vilt() if stream == "joint" else make_meter(), method)
    deployed = copy.deepcopy(backbone)
    method.finalize(deployed)
    assert any(
        isinstance(block, FoldedReducingViltBlock | FoldedReducingMeterBlock) for block in deployed.blocks
    )
    assert all("Folded" in type(block).__name__ for block in deployed.blocks)
    for padded in (None, "text", "image"):
        for queries in (None, 1):
            streams = streams_of(backbone, 3, padded)
            expected = tokens_after(backbone, streams, queries)
            found = tokens_after(deployed, streams, queries)
            if queries is None:
                assert expected[stream].shape[1] < streams[stream].hidden.shape[1]
            for name, states in expected.items():
                torch.testing.assert_close(found[name], states, atol=1e-5, rtol=1e-5)
