"""Costs of single examples, for a model that skips a block if the text is short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.block import BlockInput, BlockOutput, run_block
from harness.backbones.vilt.model import ViltBackbone
from harness.measure.flops import count_forward
from harness.measure.per_example import chosen_examples, count_examples, summarize
from tasks.base import Batch, Example
from tests.support.measured_models import classifier

LENGTHS = (3, 9, 3, 10)


class ForLongTexts(nn.Module):
    """Runs the block only if there are more than `tokens` tokens."""

    def __init__(self, block: nn.Module, tokens: int) -> None:
        super().__init__()
        self.name, self.stream, self.block, self.tokens = block.name, block.stream, block, tokens

    def forward(self, inputs: BlockInput) -> BlockOutput:
        return (
            run_block(self.block, inputs) if len(inputs.tokens) > self.tokens else BlockOutput(inputs.tokens)
        )


class OnePass:
    images_per_example = 1

    def forward(self, backbone: ViltBackbone, head: nn.Module, batch: Batch) -> Tensor:
        result: Tensor = head(backbone(batch.inputs[0]))
        return result


def macs(backbone: ViltBackbone, head: nn.Module, length: int) -> int:
    return count_forward(OnePass(), backbone, head, None, image_size=(64, 64), text_length=length).macs_total


def test_each_example_costs_the_blocks_it_runs_through(tiny: ViltBackbone) -> None:
    head: Any = classifier(32, 64, 5).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [
        Batch((tiny.example_inputs(1, length, (64, 64), generator),), None, (str(index),))
        for index, length in enumerate(LENGTHS)
    ]
    whole = [macs(tiny, head, length) for length in LENGTHS]
    task: Any = OnePass()
    assert count_examples(task, tiny, head, (), batches) == whole
    tiny.blocks[1] = ForLongTexts(tiny.blocks[1], 20)  # 3 tokens and 17 of the image are not more than that
    tokens, width, inner = 20, 32, 64
    block = tokens * (4 * width * width + 2 * width * inner) + 2 * tokens * tokens * width
    counted = count_examples(task, tiny, head, (), batches)
    assert [before - after for before, after in zip(whole, counted, strict=True)] == [block, 0, block, 0]


def test_summary_has_mean_and_percentiles() -> None:
    found = summarize([10 * step for step in range(11)], [200] * 11)
    assert (found.mean, found.p10, found.p90, found.n, found.untouched_mean) == (50, 10, 90, 11, 200)


@pytest.mark.parametrize("count", [3, 100])
def test_choice_of_examples_does_not_depend_on_their_order(count: int) -> None:
    examples = [Example(str(index), "text", (Path("a.png"),), None, "g") for index in range(20)]
    chosen = chosen_examples(examples, count)
    assert chosen_examples(examples[::-1], count) == chosen
    assert len({example.id for example in chosen}) == min(count, 20)
    assert chosen != examples[:count]
