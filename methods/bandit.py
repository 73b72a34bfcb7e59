"""A bandit with gates over arms of which several are chosen at once, and what a search with it remembers.

The gates' update is that of DAS (Wu et al., NeurIPS 2023, arXiv:2309.01479).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import comb, exp
from typing import Any

import torch
from torch import Tensor

from methods.base import Trace


class Bandit:
    """Gates over `blocks` arms of which `skip` are pulled at once; a high gate means skip."""

    def __init__(self, blocks: int, skip: int, generator: torch.Generator) -> None:
        self.blocks = blocks
        self.skip = skip
        self.gates = torch.zeros(blocks, dtype=torch.float64)
        self._generator = generator

    @property
    def probabilities(self) -> Tensor:
        """`sigmoid(gate)` of each block."""
        return torch.sigmoid(self.gates)

    def draw(self) -> tuple[int, ...]:
        """`skip` blocks without replacement, weighted by the gates' sigmoids; ascending."""
        drawn = torch.multinomial(self.probabilities, self.skip, generator=self._generator)
        return tuple(sorted(drawn.tolist()))

    def draw_distinct(self, sets: int) -> list[tuple[int, ...]]:
        """`sets` different draws."""
        if sets > comb(self.blocks, self.skip):
            raise ValueError(f"there are only {comb(self.blocks, self.skip)} sets, {sets} asked for")
        found: dict[tuple[int, ...], None] = {}
        while len(found) < sets:
            found[self.draw()] = None
        return list(found)

    def update(self, sets: list[tuple[int, ...]], rewards: list[float]) -> None:
        """g_i += (R_k − mean R) · p_i · (1 − p_i) for every i in set k, with p from before the update."""
        slope = self.probabilities * (1 - self.probabilities)
        baseline = sum(rewards) / len(rewards)
        for chosen, gained in zip(sets, rewards, strict=True):
            for index in chosen:
                self.gates[index] += (gained - baseline) * slope[index]

    def best(self) -> tuple[int, ...]:
        """The blocks with the highest gates (ties: the earlier block), ascending."""
        order = sorted(range(self.blocks), key=lambda i: (-float(self.gates[i]), i))
        return tuple(sorted(order[: self.skip]))


@dataclass(frozen=True)
class Update:
    """One update of the gates: the sets of arms compared, their losses and rewards, the gates after it.

    epoch, step: of the search, both from 0.
    """

    epoch: int
    step: int
    sets: list[list[str]]
    losses: list[float]
    rewards: list[float]
    gates: list[float]


class Findings:
    """The bandit's gates and the updates that led to them (`methods.base.Memory`)."""

    def __init__(self, bandit: Bandit) -> None:
        self.bandit = bandit
        self.updates: list[Update] = []

    def state(self) -> dict[str, Any]:
        """Gates and updates; the bandit draws from the trainer's generator, which the trainer saves."""
        return {"gates": self.bandit.gates.clone(), "history": [asdict(update) for update in self.updates]}

    def restore(self, state: dict[str, Any]) -> None:
        """Resume from these."""
        self.bandit.gates = state["gates"].clone()
        self.updates = [Update(**update) for update in state["history"]]


def reward_of(losses: list[float], kind: str) -> list[float]:
    """Rewards of the sampled sets: exp(−loss), or −loss standardised among them."""
    if kind == "exponential":
        return [exp(-loss) for loss in losses]
    mean = sum(losses) / len(losses)
    deviation = (sum((loss - mean) ** 2 for loss in losses) / len(losses)) ** 0.5
    return [0.0 if deviation == 0 else (mean - loss) / deviation for loss in losses]


def trace_gates(
    arms: Sequence[str], updates: Sequence[Update], chosen: Sequence[str], outcome: str
) -> Trace | None:
    """The gates over a search, which begin at 0; None for a search without an update."""
    if not updates:
        return None
    epochs = [update.epoch for update in updates]
    starts = tuple(
        (index, epoch + 1) for index, epoch in enumerate(epochs) if index == 0 or epoch != epochs[index - 1]
    )
    values = ((0.0,) * len(arms), *(tuple(update.gates) for update in updates))
    return Trace(tuple(arms), values, tuple(chosen), starts, outcome)
