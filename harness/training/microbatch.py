"""Split a batch into parts that fit into memory, with the gradient of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.training.seeds import random_states, restore_random_states
from methods.base import TrainingPart
from tasks.base import Batch, Task

Regularizer = Callable[[TrainingPart], Tensor | None]


@dataclass
class MicroBatches:
    """How many examples go through the model together.

    size: examples in a forward and backward pass; None: the whole batch.
    halves: halve the size when the device runs out of memory, and try the batch again.
    """

    size: int | None = None
    halves: bool = False

    @classmethod
    def from_setting(cls, micro_batch: int | Literal["auto"] | None) -> Self:
        """From the value of the setting `micro_batch`."""
        return cls(halves=True) if micro_batch == "auto" else cls(micro_batch)

    def resume(self, size: int | None) -> None:
        """Take over the size that an interrupted run has found."""
        if self.halves:
            self.size = size

    def backward(
        self,
        fabric: Fabric,
        model: nn.Module,
        task: Task[Any],
        batch: Batch,
        regularizer: Regularizer | None = None,
        total: int | None = None,
    ) -> Tensor:
        """Set the parameters' gradients, which must be None, to those of the batch's loss; returns the loss.

        The loss of a part with n of N examples has weight n / N, as `Task.loss` is a mean over examples. The
        regulariser is weighted in the same way, so that it counts once.

        total: N, if other processes have the rest of the examples; by default those of the batch.
        """
        if batch.targets is None:
            raise ValueError("a training batch has no targets")

        def run() -> Tensor:
            losses = []
            for part in self._parts(batch):
                part = part.to(fabric.device)
                logits = model(part)
                targets = part.targets
                assert targets is not None
                loss = task.loss(logits, targets)
                added = None
                if regularizer is not None:
                    losses_of = partial(_losses, task, logits.detach(), targets)
                    labels_of = partial(_labels, task, part)
                    added = regularizer(TrainingPart(len(part), losses_of, labels_of))
                weight = len(part) / (total or len(batch))
                minimised = loss if added is None else loss + added
                fabric.backward(minimised if weight == 1 else weight * minimised)
                losses.append(loss.detach() if weight == 1 else weight * loss.detach())
            return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

        return self._retried(run, fabric.device, model, len(batch))

    def forward(self, fabric: Fabric, model: nn.Module, batch: Batch, answer: bool = False) -> Tensor:
        """Logits of the batch, or what the task predicts from, without gradient."""

        def run() -> Tensor:
            logits = [model(part.to(fabric.device), answer=answer) for part in self._parts(batch)]
            return torch.cat(logits) if len(logits) > 1 else logits[0]

        return self._retried(run, fabric.device, model, len(batch))

    def _parts(self, batch: Batch) -> Iterator[Batch]:
        return iter([batch]) if self.size is None else batch.split(self.size)

    def _retried(
        self, run: Callable[[], Tensor], device: torch.device, model: nn.Module, examples: int
    ) -> Tensor:
        """`run`, again with half the size as long as the device runs out of memory."""
        while True:
            before = random_states(device) if self.halves else None
            try:
                return run()
            except torch.OutOfMemoryError:
                size = min(examples, self.size or examples)
                if before is None or size == 1:
                    raise
            # Not within the handler: the error's traceback holds on to the activations.
            self.size = (size + 1) // 2
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.empty_cache()
            restore_random_states(before, device)


def _labels(task: Task[Any], part: Batch) -> Sequence[str] | None:
    """The text of each example's label; None if the task has none."""
    targets = part.targets_on_host()
    assert targets is not None
    return task.label_texts(targets)


@torch.no_grad()
def _losses(task: Task[Any], logits: Tensor, targets: Tensor) -> Tensor:
    """The task's loss of each example `(B,)`."""
    rows = len(logits) // len(targets)
    each = zip(logits.split(rows), targets.split(1), strict=True)
    return torch.stack([task.loss(own, target) for own, target in each])
