"""The training loop, as plain functions over Lightning Fabric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

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
    """Everything that must be restored to resume training after an epoch."""

    model: nn.Module
    optimizer: Any
    schedule: torch.optim.lr_scheduler.LRScheduler
    epoch: int = 0
    cost: Cost = field(default_factory=Cost)


StepCallback = Callable[[int, int], None]


def train_epoch(
    fabric: Fabric,
    state: State,
    task: Task[Any],
    batches: Batches,
    before_step: StepCallback | None = None,
    after_step: StepCallback | None = None,
    regularizer: Callable[[], Tensor | None] | None = None,
) -> float:
    """One epoch; returns the task's mean training loss per step. Callbacks get (epoch, step), from 0.

    regularizer: called at every step; its value is added to the loss that is minimised.
    """
    model, optimizer = state.model, state.optimizer
    model.train()
    batches.set_epoch(state.epoch)
    batches.device = fabric.device
    total = torch.zeros((), device=fabric.device)
    waited = batches.wait_seconds
    started = time.perf_counter()
    seen = 0
    for step, batch in enumerate(batches):
        if before_step is not None:
            before_step(state.epoch, step)
        batch = batch.to(fabric.device)
        logits = model(batch)
        if batch.targets is None:
            raise ValueError("a training batch has no targets")
        loss = task.loss(logits, batch.targets)
        added = None if regularizer is None else regularizer()
        fabric.backward(loss if added is None else loss + added)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.schedule.step()
        total += loss.detach()
        seen += len(batch)
        if after_step is not None:
            after_step(state.epoch, step)
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    mean_loss = float(total) / max(1, len(batches))
    state.cost.seconds += time.perf_counter() - started
    state.cost.examples += seen
    state.cost.steps += len(batches)
    state.cost.wait_seconds += batches.wait_seconds - waited
    state.epoch += 1
    return mean_loss


@torch.inference_mode()
def predict(
    fabric: Fabric,
    model: nn.Module,
    task: Task[Any],
    batches: Batches,
    on_batch: Callable[[int], None] | None = None,
    partial: PartialScores | None = None,
) -> list[Prediction]:
    """Per-example predictions in evaluation mode, ordered by example id.

    partial: saved scores from which an interrupted evaluation resumes, for tasks that evaluate whole splits.
    """
    model.eval()

    def logits_of(batch: Batch) -> Tensor:
        logits: Tensor = model(batch.to(fabric.device)).float().cpu()
        return logits

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
def mean_loss(fabric: Fabric, model: nn.Module, task: Task[Any], batch: Batch) -> float:
    """The task's loss on one batch, in the model's current mode."""
    batch = batch.to(fabric.device)
    if batch.targets is None:
        raise ValueError("the batch has no targets")
    return float(task.loss(model(batch), batch.targets))
