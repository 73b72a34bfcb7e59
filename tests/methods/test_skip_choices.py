"""Rules that choose blocks to skip, on hand-made blocks and losses."""

from __future__ import annotations

from math import cos, radians, sin
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from harness.backbones.block import BlockInput, BlockOutput, Tokens
from methods.skip_choices import (
    alternate_blocks,
    block_influences,
    closest_runs,
    last_blocks,
    random_blocks,
    remove_greedily,
    run_distances,
    shares,
)


def names(**streams: int) -> Any:
    """A backbone of which only names are known."""
    blocks = tuple(f"{stream}.{i}" for stream, count in streams.items() for i in range(count))
    return SimpleNamespace(stream_names=tuple(streams), block_names=blocks)


VILT, METER = names(joint=12), names(text=6, image=6)


class Turn(nn.Module):
    """Turns two-dimensional states by an angle in degrees."""

    def __init__(self, name: str, angle: float) -> None:
        super().__init__()
        self.name = name
        c, s = cos(radians(angle)), sin(radians(angle))
        self.matrix = torch.tensor([[c, -s], [s, c]])

    def forward(self, inputs: BlockInput) -> BlockOutput:
        return inputs.result(inputs.asking @ self.matrix.T)


class Turning:
    """A trainer whose model turns its tokens; the first token by twice the angles of a batch's mask."""

    def __init__(self, angles: list[float]) -> None:
        blocks = nn.ModuleList(Turn(f"joint.{i}", angle) for i, angle in enumerate(angles))
        self.backbone = names(joint=len(angles))
        self.backbone.blocks = blocks
        self.backbone.pooled_token_only = True

    def loss(self, batch: Tokens) -> float:
        assert not self.backbone.pooled_token_only
        tokens = batch
        for block in self.backbone.blocks:
            tokens = block(BlockInput(tokens)).tokens
        return 0.0


@pytest.mark.parametrize(("skip", "expected"), [(1, [0, 1]), (4, [2, 2]), (5, [2, 3])])
def test_odd_block_is_taken_from_the_image_stream(skip: int, expected: list[int]) -> None:
    assert shares(skip, 2) == expected


def test_last_blocks_can_exclude_the_final_one() -> None:
    assert last_blocks(VILT, 2, keep_final=False) == ("joint.10", "joint.11")
    assert last_blocks(VILT, 2, keep_final=True) == ("joint.9", "joint.10")
    assert last_blocks(METER, 3, keep_final=False) == ("text.5", "image.4", "image.5")
    assert last_blocks(METER, 4, keep_final=True) == ("text.3", "text.4", "image.3", "image.4")


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (1, [6]),
        (2, [3, 9]),
        (4, [1, 4, 7, 10]),
        (6, [1, 3, 5, 7, 9, 11]),
        (11, [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]),
    ],
)
def test_alternate_blocks_are_evenly_spaced(skip: int, expected: list[int]) -> None:
    assert alternate_blocks(VILT, skip) == tuple(f"joint.{i}" for i in expected)


def test_random_sets_depend_on_their_number_only() -> None:
    first, again, other = (random_blocks(VILT, 4, draw) for draw in (3, 3, 4))
    assert first == again != other
    assert [int(name.split(".")[1]) for name in first] == sorted({int(name.split(".")[1]) for name in first})
    drawn = {random_blocks(VILT, 1, draw) for draw in range(200)}
    assert len(drawn) == 12


def test_block_influence_is_one_minus_the_cosine_over_real_tokens() -> None:
    trainer: Any = Turning([60.0, 90.0, 0.0])
    mask = torch.tensor([0.0, 0.0, torch.finfo(torch.float32).min]).view(1, 1, 1, 3)
    hidden = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [0.0, 0.0]]])  # of a token without direction: cosine 0
    found = block_influences(trainer, [Tokens(hidden, mask), Tokens(hidden, mask)])
    assert found == pytest.approx({"joint.0": 0.5, "joint.1": 1.0, "joint.2": 0.0}, abs=1e-6)
    assert trainer.backbone.pooled_token_only
    assert not any(block._forward_hooks for block in trainer.backbone.blocks)


def test_distance_of_a_run_is_the_angle_between_its_input_and_output() -> None:
    trainer: Any = Turning([30.0, 60.0, -45.0, 10.0])
    hidden = torch.tensor([[[2.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    (found,) = run_distances(trainer, [Tokens(hidden)], 2)
    expected = {"joint.0": 90 / 180, "joint.1": 15 / 180, "joint.2": 35 / 180}
    assert found == pytest.approx(expected, abs=1e-6)
    assert closest_runs([found], 2, trainer.backbone) == ("joint.1", "joint.2")


def test_runs_of_two_streams_are_chosen_separately() -> None:
    text, image = {"text.0": 0.2, "text.1": 0.1}, {"image.0": 0.1, "image.4": 0.1}
    assert closest_runs([text, image], 4, METER) == ("text.1", "text.2", "image.0", "image.1")
    assert closest_runs([image], 1, METER) == ("image.0",)


def test_greedy_removal_depends_on_earlier_removals() -> None:
    """Alone block 1 is cheapest; with it gone, block 2 is dear and block 0 cheap."""
    losses = {(0,): 3.0, (1,): 1.0, (2,): 2.0, (0, 1): 4.0, (1, 2): 9.0}
    backbone = names(joint=3)
    backbone.blocks = [SimpleNamespace(skip=False) for _ in range(3)]

    class Trainer:
        def __init__(self) -> None:
            self.backbone = backbone

        def loss(self, batch: Tensor) -> float:
            return losses[tuple(i for i, block in enumerate(backbone.blocks) if block.skip)] + float(batch)

    trainer: Any = Trainer()
    rounds = remove_greedily(trainer, [torch.tensor(0.0), torch.tensor(1.0)], 2)
    assert rounds == [{"joint.0": 3.5, "joint.1": 1.5, "joint.2": 2.5}, {"joint.0": 4.5, "joint.2": 9.5}]
