"""Inputs and outputs of blocks: the tokens whose result is wanted, and blocks that return fewer tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from harness.backbones.block import BlockInput, BlockOutput, Tokens, run_block
from harness.backbones.meter.model import MeterBackbone
from tests.support.small_vilt import mini

Maker = Callable[..., MeterBackbone]


class Halving(nn.Module):
    """Merges neighbouring tokens after the first into their mean."""

    def __init__(self, name: str, stream: str) -> None:
        super().__init__()
        self.name, self.stream = name, stream

    def forward(self, inputs: BlockInput) -> BlockOutput:
        tokens = inputs.tokens
        rest = tokens.hidden[:, 1:]
        pairs = rest[:, : rest.shape[1] // 2 * 2].unflatten(1, (-1, 2)).mean(dim=2)
        hidden = torch.cat([tokens.hidden[:, :1], pairs], dim=1)
        sizes = torch.full(hidden.shape[:2], 2.0)
        sizes[:, 0] = 1
        return BlockOutput(Tokens(hidden, text_length=1, sizes=sizes))


def test_leading_tokens_keep_their_mask_and_sizes() -> None:
    hidden, mask = torch.arange(12.0).view(1, 4, 3), torch.arange(4.0).view(1, 1, 1, 4)
    first = Tokens(hidden, mask, text_length=3, sizes=torch.tensor([[1.0, 2.0, 3.0, 4.0]])).first(2)
    assert torch.equal(first.hidden, hidden[:, :2])
    assert first.mask is not None
    assert first.mask.flatten().tolist() == [0, 1]
    assert first.text_length == 2
    assert first.sizes is not None
    assert first.sizes.tolist() == [[1, 2]]


def test_wanted_tokens_are_equal_to_those_computed_with_all_tokens() -> None:
    backbone = mini()
    tokens = Tokens(torch.randn(2, 7, backbone.width, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        whole = run_block(backbone.blocks[0], BlockInput(tokens)).tokens.hidden
        part = run_block(backbone.blocks[0], BlockInput(tokens, queries=3)).tokens.hidden
    torch.testing.assert_close(part, whole[:, :3])


def test_later_blocks_run_on_the_remaining_tokens() -> None:
    backbone = mini()
    inputs = backbone.example_inputs(1, 6, (64, 64), torch.Generator().manual_seed(1))
    seen: list[tuple[int, float | None]] = []

    def note(_module: nn.Module, args: tuple[BlockInput]) -> None:
        tokens = args[0].tokens
        seen.append((len(tokens), None if tokens.sizes is None else float(tokens.sizes.sum())))

    for index in (4, 5, 6):
        backbone.blocks[index].register_forward_pre_hook(note)
    backbone.blocks[5] = Halving("joint.5", "joint")
    with torch.no_grad():
        pooled = backbone(inputs)
    before = 6 + 1 + (64 // 16) ** 2
    assert seen == [(before, None), (1 + (before - 1) // 2, 1 + 2 * ((before - 1) // 2))]
    assert pooled.shape == (1, backbone.width)


def test_a_text_layer_may_reduce_the_image_tokens(make_meter: Maker) -> None:
    backbone = make_meter()

    class Pruning(nn.Module):
        name, stream = "text.0", "text"

        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, inputs: BlockInput) -> BlockOutput:
            assert inputs.context is not None
            return BlockOutput(self.block(inputs).tokens, context=inputs.context.first(2))

    backbone.blocks[0] = Pruning(backbone.blocks[0])
    streams = backbone.encode(backbone.example_inputs(2, 5, (32, 32), torch.Generator().manual_seed(1)))
    with torch.no_grad():
        after = backbone.run_blocks(streams)
    assert {name: len(tokens) for name, tokens in after.items()} == {"text": 5, "image": 2}


@pytest.mark.parametrize("queries", [1, 2])
def test_output_of_a_block_that_ignores_queries_is_cut(queries: int) -> None:
    class Everything(nn.Module):
        def forward(self, inputs: BlockInput) -> BlockOutput:
            return BlockOutput(inputs.tokens)

    tokens = Tokens(torch.randn(1, 4, 3), sizes=torch.ones(1, 4))
    output = run_block(Everything(), BlockInput(tokens, queries=queries)).tokens
    assert torch.equal(output.hidden, tokens.hidden[:, :queries])
    assert output.sizes is not None
    assert output.sizes.shape == (1, queries)
