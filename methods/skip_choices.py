"""How baselines of block skipping choose: by position, by what blocks do to hidden states, or by the loss."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput
from methods.base import SearchTrainer
from methods.skipping import by_stream, skip_only


def shares(skip: int, streams: int) -> list[int]:
    """`skip` divided among the streams as evenly as possible; later streams get what is left over."""
    return [(skip + index) // streams for index in range(streams)]


def random_blocks(backbone: Backbone, skip: int, draw: int) -> tuple[str, ...]:
    """A set drawn uniformly from all sets of `skip` blocks. It depends on `draw` only."""
    names = backbone.block_names
    chosen = random.Random(draw).sample(range(len(names)), skip)
    return tuple(names[index] for index in sorted(chosen))


def last_blocks(backbone: Backbone, skip: int, keep_final: bool) -> tuple[str, ...]:
    """The last blocks of each stream, equally many; with `keep_final` those before the final block."""
    chosen: list[str] = []
    streams = by_stream(backbone)
    for names, number in zip(streams, shares(skip, len(streams)), strict=True):
        end = len(names) - int(keep_final)
        chosen += names[max(0, end - number) : end]
    return tuple(chosen)


def alternate_blocks(backbone: Backbone, skip: int) -> tuple[str, ...]:
    """Evenly spaced blocks of each stream, equally many: of n blocks those at ⌊(2i + 1) n / 2k⌋, i = 0 … k − 1."""
    chosen: list[str] = []
    streams = by_stream(backbone)
    for names, number in zip(streams, shares(skip, len(streams)), strict=True):
        chosen += [names[(2 * i + 1) * len(names) // (2 * number)] for i in range(number)]
    return tuple(chosen)


def lowest(scores: Mapping[str, float], number: int) -> list[str]:
    """The candidates with the lowest scores; of equal ones the earlier."""
    return sorted(scores, key=lambda name: scores[name])[:number]


def block_influences(trainer: SearchTrainer, batches: Sequence[Any]) -> dict[str, float]:
    """Block influence of every block of the pretrained backbone (ShortGPT, arXiv:2403.03853, equation 1).

    It is 1 − the cosine similarity of a block's input and its output, averaged over all tokens that are not padding.
    """
    sums: dict[str, float] = defaultdict(float)
    tokens: dict[str, int] = defaultdict(int)

    def observe(name: str, inputs: BlockInput, output: BlockOutput) -> None:
        similarity = cosine(inputs.tokens.hidden, output.tokens.hidden)
        mask = inputs.tokens.mask
        real = torch.ones_like(similarity) if mask is None else (mask[:, 0, 0] == 0).float()
        sums[name] += float((similarity * real).sum())
        tokens[name] += int(real.sum())

    with _observed(trainer.backbone, observe):
        for batch in batches:
            trainer.loss(batch)
    return {name: 1 - sums[name] / tokens[name] for name in trainer.backbone.block_names}


def run_distances(trainer: SearchTrainer, batches: Sequence[Any], skip: int) -> list[dict[str, float]]:
    """For each stream, how far every run of consecutive blocks moves the pooled token, by the run's first block.

    The distance is arccos(cosine similarity) / π between the run's input and its output, averaged over examples
    (Gromov et al., arXiv:2403.17887, equation 6, there at a text's last token). `skip` is divided among the streams
    as in `shares`. A stream of which nothing is skipped has no entry.
    """
    streams = by_stream(trainer.backbone)
    before: dict[str, list[Tensor]] = defaultdict(list)
    after: dict[str, list[Tensor]] = defaultdict(list)

    def observe(name: str, inputs: BlockInput, output: BlockOutput) -> None:
        before[name].append(inputs.tokens.hidden[:, 0].cpu())
        after[name].append(output.tokens.hidden[:, 0].cpu())

    with _observed(trainer.backbone, observe):
        for batch in batches:
            trainer.loss(batch)

    def distance(first: str, last: str) -> float:
        similarity = cosine(torch.cat(before[first]), torch.cat(after[last])).clamp(-1, 1)
        return float(similarity.arccos().mean()) / pi

    return [
        {names[i]: distance(names[i], names[i + number - 1]) for i in range(len(names) - number + 1)}
        for names, number in zip(streams, shares(skip, len(streams)), strict=True)
        if number
    ]


def closest_runs(distances: Sequence[Mapping[str, float]], skip: int, backbone: Backbone) -> tuple[str, ...]:
    """The blocks of each stream's run with the smallest of `run_distances`."""
    chosen: list[str] = []
    streams = by_stream(backbone)
    found = iter(distances)
    for names, number in zip(streams, shares(skip, len(streams)), strict=True):
        if number:
            start = names.index(lowest(next(found), 1)[0])
            chosen += names[start : start + number]
    return tuple(chosen)


def remove_greedily(trainer: SearchTrainer, batches: Sequence[Any], skip: int) -> list[dict[str, float]]:
    """In a trained super-network, skip the block whose removal gives the lowest loss, `skip` times.

    Returns:
        For each round, the mean loss over `batches` after the removal of each block that is left.
    """
    backbone = trainer.backbone
    names = backbone.block_names
    removed: list[int] = []
    rounds: list[dict[str, float]] = []
    for _ in range(skip):
        losses: dict[str, float] = {}
        for index in range(len(names)):
            if index in removed:
                continue
            skip_only(backbone, [*removed, index])
            losses[names[index]] = sum(trainer.loss(batch) for batch in batches) / len(batches)
        rounds.append(losses)
        removed.append(names.index(lowest(losses, 1)[0]))
    return rounds


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine similarity along the last dimension, in float32."""
    return torch.cosine_similarity(first.float(), second.float(), dim=-1)


@contextmanager
def _observed(backbone: Backbone, observe: Any) -> Iterator[None]:
    """While active, `observe(name, inputs, output)` is called after every block, with all tokens."""
    pooled_only, backbone.pooled_token_only = backbone.pooled_token_only, False

    def hook(block: nn.Module, arguments: tuple[BlockInput], output: BlockOutput) -> None:
        observe(str(block.name), arguments[0], output)

    handles = [block.register_forward_hook(hook) for block in backbone.blocks]
    try:
        yield
    finally:
        backbone.pooled_token_only = pooled_only
        for handle in handles:
            handle.remove()
