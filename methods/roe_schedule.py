"""The three stages in which RoE is trained, as a function of the step, and what its blocks share in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

NOTCHES = 200
"""Temperature and bias change this many times during training, as in the public code (every 0.5 %)."""

Stage = Literal["adapters", "routers", "all"]


@dataclass(frozen=True)
class Phase:
    """How blocks are mixed at one moment of training.

    adapters: random blocks are skipped, the routers are not read. routers: the mixture is soft, with a bias for
    running the block. all: the mixture is soft, without a bias.

    skip: probability of skipping in the first stage. bias: added to the first logit, which is for running the block.
    temperature: of the softmax over the two logits.
    """

    stage: Stage = "all"
    skip: float = 0.0
    bias: float = 0.0
    temperature: float = 1.0


class ScheduleOptions(Protocol):
    """The options of the schedule; `methods.roe.RoEOptions` explains them."""

    @property
    def sparsity(self) -> float: ...

    @property
    def adapter_stage(self) -> float: ...

    @property
    def router_stage(self) -> float: ...

    @property
    def temperature(self) -> float: ...

    @property
    def cooling(self) -> float: ...

    @property
    def bias_decay(self) -> float: ...


def initial_bias(sparsity: float) -> float:
    """The bias with which two logits from U[0, 1] skip with this probability: P = (1 − bias)² / 2."""
    return 1.0 - float((2 * sparsity) ** 0.5)


def phase_at(step: int, total: int, options: ScheduleOptions) -> Phase:
    """The phase of an optimiser step, from 0 to `total` − 1."""
    first = options.adapter_stage * total
    second = first + options.router_stage * total
    if step < first:
        return Phase("adapters", skip=options.sparsity)
    notches = int((step - first) * NOTCHES / total)
    temperature = options.temperature * options.cooling**notches
    if step < second:
        bias = initial_bias(options.sparsity) * options.bias_decay**notches
        return Phase("routers", bias=bias, temperature=temperature)
    return Phase("all", temperature=temperature)


@dataclass
class Routing:
    """What the routed blocks of one backbone share.

    phase: of training; before the first step a soft mixture.
    passes: for each forward pass in training since the last call of `skipped`, the weights `(B,)` of skipping, by
        block. watched: for each pass in evaluation, which rows `(B,)` ran each block; None: not kept.
    """

    phase: Phase = Phase()
    passes: list[dict[int, Tensor]] = field(default_factory=list)
    watched: list[dict[int, Tensor]] | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Routing:
        """A copy without what a pass has left, whose tensors cannot be copied."""
        return Routing(self.phase)

    def begin(self, training: bool) -> None:
        """A forward pass begins."""
        if training:
            self.passes.append({})
        elif self.watched is not None:
            self.watched.append({})

    def weigh(self, logits: Tensor) -> Tensor:
        """The weights `(B, 2)` of running and of skipping, from the router's logits.

        In the first stage they are random, and on the CPU: to find out who runs a block, nothing waits for a GPU.
        """
        phase = self.phase
        if phase.stage == "adapters":
            skip = torch.rand(len(logits)) < phase.skip
            return torch.stack([~skip, skip], dim=1).to(logits.dtype)
        biased = torch.stack([logits[:, 0] + phase.bias, logits[:, 1]], dim=1)
        return (biased / phase.temperature).softmax(dim=1)

    def note_weights(self, index: int, skipping: Tensor) -> None:
        """Keep a block's weights of skipping. A pass that is repeated in the backward pass is not kept again."""
        if self.passes:
            self.passes[-1][index] = skipping

    def note_route(self, index: int, runs: Tensor) -> None:
        """Keep which rows ran a block."""
        if self.watched:
            self.watched[-1][index] = runs

    def skipped(self) -> list[Tensor]:
        """For each pass, the mean weight of skipping over the blocks, `(rows,)`; [] in the first stage.

        What is kept of the passes is dropped.
        """
        passes, self.passes = self.passes, []
        if self.phase.stage == "adapters":
            return []
        return [torch.stack(list(each.values())).mean(dim=0) for each in passes if each]
