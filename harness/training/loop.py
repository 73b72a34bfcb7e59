"""The training loop, as plain functions over Lightning Fabric."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.training.conversion import converted_once
from harness.training.microbatch import MicroBatches, Regularizer
from harness.training.ranks import gather, stop_together, sum_gradients, total_of
from tasks.base import Batch, Example, Prediction, Share, Task
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
    loss_sum: sum of the losses of the epoch's steps so far, of this process's examples.
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
    regularizer: Regularizer | None = None,
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
        (examples,) = total_of(fabric, [len(batch)])
        if examples:  # else all were left out
            if before_step is not None:
                before_step(state.epoch, state.step)
            if len(batch):
                loss = micro.backward(fabric, model, task, batch, regularizer, int(examples))
                state.loss_sum = state.loss_sum + loss.float()
            sum_gradients(fabric, model)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.schedule.step()
            if after_step is not None:
                after_step(state.epoch, state.step)
            state.cost.steps += 1
            state.cost.examples += int(examples)
        state.step += 1
        count_time()
        on_boundary()
        started = time.perf_counter()
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
    count_time()
    (loss_sum,) = total_of(fabric, [float(state.loss_sum)])
    return loss_sum / max(1, len(batches))


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
    """Per-example predictions in evaluation mode, ordered by example id; those of all ranks on rank 0.

    partial: saved scores from which an interrupted evaluation resumes, for tasks that evaluate whole splits.

    Raises:
        StopRequestedError: a signal asked this or another rank to stop; all ranks stop at the same batch.
        RuntimeError: an example was predicted by two ranks.
    """
    with converted_once(fabric, model):
        return _predict(
            fabric, model, task, batches, on_batch, partial, MicroBatches() if micro is None else micro
        )


def _predict(
    fabric: Fabric,
    model: nn.Module,
    task: Task[Any],
    batches: Batches,
    on_batch: Callable[[int], None] | None,
    partial: PartialScores | None,
    micro: MicroBatches,
) -> list[Prediction]:
    model.eval()

    def logits_of(batch: Batch) -> Tensor:
        stop_together(fabric)
        return micro.forward(fabric, model, batch, answer=True).float().cpu()

    def gathered(value: Any) -> list[Any]:
        stop_together(fabric, done=True)
        return gather(fabric, value)

    if task.evaluates_splits:
        if fabric.world_size == 1:
            return task.evaluate(logits_of, batches, on_batch or (lambda count: None), partial)
        share = Share(fabric.global_rank, fabric.world_size, gathered)
        return task.evaluate(logits_of, batches, on_batch or (lambda count: None), partial, share)
    own: list[Prediction] = []
    batches.device = fabric.device
    for batch in batches:
        own += task.predict(logits_of(batch), batches.examples_of(batch))
        if on_batch is not None:
            on_batch(len(batch))
    predictions = [prediction for part in gathered(own) for prediction in part]
    if len({prediction["id"] for prediction in predictions}) < len(predictions):
        raise RuntimeError("an example was predicted by two ranks")
    return sorted(predictions, key=lambda prediction: str(prediction["id"]))


@torch.inference_mode()
def mean_loss(
    fabric: Fabric, model: nn.Module, task: Task[Any], batch: Batch, micro: MicroBatches | None = None
) -> float:
    """The task's loss on one batch, of all ranks together, in the model's current mode."""
    if batch.targets is None and len(batch):
        raise ValueError("the batch has no targets")
    loss = 0.0
    if batch.targets is not None:
        logits = (MicroBatches() if micro is None else micro).forward(fabric, model, batch)
        loss = float(task.loss(logits, batch.targets.to(logits.device)))
    if fabric.world_size == 1:
        return loss
    weighted, examples = total_of(fabric, [len(batch) * loss, len(batch)])
    return weighted / examples
