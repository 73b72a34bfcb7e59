"""Which blocks a model can do without, judged by its features before anything is trained.

Blocks are left out of the pretrained model, and what its head would read is compared with the answers by centred kernel
alignment (Cortes et al., JMLR 2012; Kornblith et al., arXiv:1905.00414). That takes forward passes only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from math import comb
from typing import Any

import torch
from torch import Tensor

from harness.backbones.base import Backbone
from harness.backbones.block import BlockInput, BlockOutput
from harness.backbones.inputs import Inputs, Streams
from methods.bandit import Bandit
from methods.base import SearchTrainer

ROWS = 320
"""What the head reads is compared for so many examples (in retrieval: pairs) at least."""

SETS = 512
"""Sets of blocks that are compared, at most."""


def alignment(features: Tensor, targets: Tensor) -> float:
    """Centred kernel alignment of features `(N, D)`, each of them standardised, and targets `(N, C)`; from 0 to 1.

    With the linear kernels K and L of N examples it is `⟨K, L⟩ / (‖K‖ ‖L‖)`. If the targets are a loss's gradients, the
    first step of gradient descent on a linear head lowers the loss in proportion to `⟨K, L⟩`.
    """
    features, targets = features.double(), targets.double()
    features = (features - features.mean(0)) / features.std(0, unbiased=False).clamp_min(1e-6)
    targets = targets - targets.mean(0)
    norms = (features.T @ features).norm() * (targets.T @ targets).norm()
    return float((features.T @ targets).square().sum() / norms) if norms > 0 else 0.0


def alignments(
    trainer: SearchTrainer, batches: Sequence[Any], sets: Sequence[tuple[int, ...]]
) -> list[float]:
    """The alignment with each set of blocks, given by their indices, left out of the trainer's backbone.

    Sets that begin alike should follow each other: only what comes after the first difference is computed anew.
    """
    found: list[float] = []
    with _left_out(trainer.backbone) as passes:
        for chosen in sets:
            parts = []
            for number, batch in enumerate(batches):
                passes.begin(number, chosen)
                parts.append(trainer.features(batch))
            features, targets = zip(*parts, strict=True)
            found.append(alignment(torch.cat(features), torch.cat(targets)))
    return found


def alignment_gates(trainer: SearchTrainer, number: int) -> list[float]:
    """For each block, what leaving it out with others, `number` in all, adds to the alignment; the mean is 0.

    All sets of blocks are tried, or `SETS` drawn with the trainer's generator where there are more.
    """
    batches: list[Any] = []
    rows = 0
    while rows < ROWS:
        batches.append(trainer.held_out_batch())
        rows += len(trainer.features(batches[-1])[0])
    blocks = len(trainer.backbone.blocks)
    if comb(blocks, number) <= SETS:
        sets = list(combinations(range(blocks), number))
    else:
        sets = sorted(Bandit(blocks, number, trainer.generator).draw_distinct(SETS))
    return main_effects(alignments(trainer, batches, sets), sets, blocks)


def main_effects(values: Sequence[float], sets: Sequence[tuple[int, ...]], arms: int) -> list[float]:
    """What being in a set adds to its value, for each of `arms`: least squares without interactions; the mean is 0."""
    member = torch.zeros(len(sets), arms, dtype=torch.float64)
    for row, chosen in zip(member, sets, strict=True):
        row[list(chosen)] = 1.0
    value = torch.tensor(values, dtype=torch.float64)
    found = torch.linalg.pinv(member - member.mean(0)) @ (value - value.mean())
    return (found - found.mean()).tolist()


def best_spread(gates: Sequence[float], streams: Sequence[str], number: int) -> tuple[int, ...]:
    """The set with the highest sum of gates, from which each pair of neighbours takes one standard deviation.

    gates, streams: of each block, in order. Neighbours are consecutive blocks of a stream. Of equal sets the first is
    returned.
    """
    penalty = float(torch.tensor(gates, dtype=torch.float64).std(unbiased=False))
    # The best set of so many of the blocks seen so far, by whether it contains the last of them.
    best: dict[tuple[int, bool], tuple[float, tuple[int, ...]]] = {(0, False): (0.0, ())}
    for index, gate in enumerate(gates):
        beside = index > 0 and streams[index] == streams[index - 1]
        longer: dict[tuple[int, bool], tuple[float, tuple[int, ...]]] = {}
        for (count, last), (value, chosen) in best.items():
            taken = value + gate - (penalty if last and beside else 0.0)
            for key, candidate in (
                ((count + 1, True), (taken, (*chosen, index))),
                ((count, False), (value, chosen)),
            ):
                if key[0] <= number and (key not in longer or candidate[0] > longer[key][0]):
                    longer[key] = candidate
        best = longer
    complete = [found for (count, _), found in best.items() if count == number]
    return max(complete, key=lambda found: found[0])[1]


@dataclass
class _Passes:
    """Forward passes that return what a block returned in the batch's last pass, if nothing before it has changed.

    kept: by batch, block or encoder, and call within a pass: the blocks left out before it, and the result.
    """

    batch: int = 0
    chosen: frozenset[int] = frozenset()
    so_far: tuple[int, ...] = ()
    calls: dict[object, int] = field(default_factory=lambda: defaultdict(int))
    kept: dict[tuple[int, object, int], tuple[tuple[int, ...], Any]] = field(default_factory=dict)

    def begin(self, batch: int, chosen: Sequence[int]) -> None:
        """Announce a pass over a batch, given by its number, that leaves out these blocks."""
        self.batch, self.chosen = batch, frozenset(chosen)
        self.so_far = ()
        self.calls.clear()

    def encode(self, compute: Callable[[Inputs], Streams], backbone: Backbone, inputs: Inputs) -> Streams:
        self.so_far = ()
        return self._again("encoder", partial(compute, inputs))

    def run(
        self, index: int, forward: Callable[[BlockInput], BlockOutput], inputs: BlockInput
    ) -> BlockOutput:
        if index in self.chosen:
            self.so_far += (index,)
            return inputs.result(inputs.asking)
        return self._again(index, partial(forward, inputs))

    def _again(self, place: object, compute: Callable[[], Any]) -> Any:
        key = self.batch, place, self.calls[place]
        self.calls[place] += 1
        if key not in self.kept or self.kept[key][0] != self.so_far:
            self.kept[key] = self.so_far, compute()
        return self.kept[key][1]


@contextmanager
def _left_out(backbone: Backbone) -> Iterator[_Passes]:
    """While active, the backbone's passes are those that are announced."""
    passes = _Passes()
    encoder = backbone.encoder
    compute = backbone.encode if encoder is None else partial(encoder, backbone)
    backbone.encoder = partial(passes.encode, compute)
    blocks = list(backbone.blocks)
    for index, block in enumerate(blocks):
        block.forward = partial(passes.run, index, block.forward)  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        backbone.encoder = encoder
        for block in blocks:
            del block.forward
