"""The training loop, as plain functions over Lightning Fabric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.process import REQUESTS
from harness.training.microbatch import MicroBatches
from tasks.base import Batch, Example, Prediction, Task
from tasks.resumable_scores import PartialScores


class Batches(Protocol):
    """Training or evaluation batches; the order depends on the epoch."""

    wait_seconds: float
    examples: Sequence[Example]
    device: torch.device
    """Where batches are delivered: set it before an iteration, so that they are copied ahead."""

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Set the epoch, which determines the order of the next iteration; it begins at batch `start`."""

    def examples_of(self, batch: Batch) -> list[Example]:
        """The examples of a batch, in its order."""

    def __iter__(self) -> Iterator[Batch]: ...

    def __len__(self) -> int: ...


@dataclass
class Cost:
    """Cost of training so far. seconds, wait_seconds: in training steps, of which waiting for data."""

    seconds: float = 0.0
    examples: int = 0
    wait_seconds: float = 0.0
    steps: int = 0


@dataclass
class State:
    """Everything that changes during training and must be restored to resume it.

    epoch, step: optimiser steps are done up to this step of this epoch, both from 0.
    loss_sum: sum of the losses of the epoch's steps so far.
    """

    model: nn.Module
    optimizer: Any
    schedule: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0
    step: int = 0
    loss_sum: float | Tensor = 0.0
    cost: Cost = field(default_factory=Cost)

    def next_epoch(self) -> None:
        """Move to the first step of the next epoch."""
        self.epoch += 1
        self.step = 0
        self.loss_sum = 0.0


StepCallback = Callable[[int, int], None]


def train_epoch(
    fabric: Fabric,
    state: State,
    task: Task[Any],
    batches: Batches,
    before_step: StepCallback | None = None,
    after_step: StepCallback | None = None,
    regularizer: Callable[[], Tensor | None] | None = None,
    micro: MicroBatches | None = None,
    on_boundary: Callable[[], None] = lambda: None,
) -> float:
    """Train the rest of the epoch, from `state.step`; returns the epoch's mean training loss per step.

    The epoch counter is left as it is: see `State.next_epoch`. before_step, after_step: called with (epoch, step).

    regularizer: its value is added to the loss that is minimised, once for every optimiser step.
    on_boundary: called after each step, when `state` is complete and may be saved. Its time is not counted.
    """
    model, optimizer = state.model, state.optimizer
    micro = MicroBatches() if micro is None else micro
    model.train()
    batches.set_epoch(state.epoch, state.step)
    batches.device = fabric.device
    waited = batches.wait_seconds
    started = time.perf_counter()

    def count_time() -> None:
        nonlocal waited, started
        now = time.perf_counter()
        state.cost.seconds += now - started
        state.cost.wait_seconds += batches.wait_seconds - waited
        waited, started = batches.wait_seconds, now

    for batch in batches:
        if before_step is not None:
            before_step(state.epoch, state.step)
        loss = micro.backward(fabric, model, task, batch, regularizer)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        state.loss_sum = state.loss_sum + loss.float()
        if after_step is not None:
            after_step(state.epoch, state.step)
        state.step += 1
        state.cost.steps += 1
        state.cost.examples += len(batch)
        count_time()
        on_boundary()
        started = time.perf_counter()
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    count_time()
    return float(state.loss_sum) / max(1, len(batches))


@torch.inference_mode()
def predict(
    fabric: Fabric,
    model: nn.Module,
    task: Task[Any],
    batches: Batches,
    on_batch: Callable[[int], None] | None = None,
    partial: PartialScores | None = None,
    micro: MicroBatches | None = None,
) -> list[Prediction]:
    """Per-example predictions in evaluation mode, ordered by example id.

    partial: saved scores from which an interrupted evaluation resumes, for tasks that evaluate whole splits.

    Raises:
        StopRequestedError: a signal asked to stop.
    """
    model.eval()
    micro = MicroBatches() if micro is None else micro

    def logits_of(batch: Batch) -> Tensor:
        REQUESTS.check()
        return micro.forward(fabric, model, batch).float().cpu()

    if task.evaluates_splits:
        return task.evaluate(logits_of, batches, on_batch or (lambda count: None), partial)
    predictions: list[Prediction] = []
    batches.device = fabric.device
    for batch in batches:
        predictions += task.predict(logits_of(batch), batches.examples_of(batch))
        if on_batch is not None:
            on_batch(len(batch))
    return sorted(predictions, key=lambda prediction: str(prediction["id"]))


@torch.inference_mode()
def mean_loss(
    fabric: Fabric, model: nn.Module, task: Task[Any], batch: Batch, micro: MicroBatches | None = None
) -> float:
    """The task's loss on one batch, in the model's current mode."""
    if batch.targets is None:
        raise ValueError("the batch has no targets")
    logits = (MicroBatches() if micro is None else micro).forward(fabric, model, batch)
    return float(task.loss(logits, batch.targets.to(logits.device)))
