"""The trainer that a method's search uses: it trains a super-network and serves held-out batches for rewards."""

from __future__ import annotations

import copy
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.backbones.base import Backbone
from harness.config import ResolvedTraining
from harness.process import REQUESTS
from harness.training.blocks import optimized_blocks
from harness.training.checkpoint import Saving, restore_training, training_state
from harness.training.loop import Batches, Cost, State, mean_loss, train_epoch
from harness.training.microbatch import MicroBatches
from harness.training.model import TaskModel
from harness.training.optim import build_optimizer, build_schedule
from harness.training.ranks import broadcast, gather, stop_together
from methods.base import Memory
from tasks.base import Batch, Example, Task

StepCallback = Callable[[int, int], None]


def cut(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Split into two disjoint parts, about `1 − share` and `share` of the groups; a group is never divided."""
    kept: list[Example] = []
    held: list[Example] = []
    for example in examples:
        key = hashlib.sha256(f"{seed}:{example.group}".encode()).digest()
        (held if int.from_bytes(key[:7]) < share * 2**56 else kept).append(example)
    return kept, held


@dataclass
class FabricSearchTrainer:
    """`methods.base.SearchTrainer` over a Fabric training loop.

    rewards_part: the training part, without augmentation; `training_batch` comes from it.
    saved: the state last passed to `save` in an interrupted run; the search resumes from it.
    save: called with everything needed to resume: tensors and plain values only.
    """

    fabric: Fabric
    task: Task[Any]
    backbone: Backbone
    head: nn.Module
    training_part: Batches
    rewards_part: Batches
    held_out_part: Batches | None
    training: ResolvedTraining
    learning_rate: float
    head_learning_rate: float
    generator: torch.Generator
    on_step: Callable[[int], None] = lambda examples: None
    saved: Mapping[str, Any] | None = None
    save: Callable[[dict[str, Any]], None] = lambda state: None
    save_minutes: float = math.inf
    restoring: Callable[[], AbstractContextManager[object]] = nullcontext
    """Entered while `saved` is restored."""
    encoding: Callable[[Backbone], AbstractContextManager[object]] = nullcontext
    """Context entered for training, once it is known what trains; it decides how the backbone encodes."""
    micro: MicroBatches = field(default_factory=MicroBatches)

    def __post_init__(self) -> None:
        self.cost = Cost()
        self._started = time.perf_counter()
        self._seconds_before = 0.0 if self.saved is None else float(self.saved["seconds"])
        self._held_out: Iterator[Batch] | None = None
        self._held_out_epoch = 0
        self._held_out_taken = 0
        self._first_held_out: Batch | None = None
        self._first_training: Batch | None = None
        self._model: nn.Module | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in an epoch of the search."""
        return len(self.training_part)

    @property
    def seconds(self) -> float:
        """Duration of the search in seconds, interrupted runs included."""
        return self._seconds_before + time.perf_counter() - self._started

    def train(
        self,
        epochs: int,
        before_step: StepCallback,
        after_step: StepCallback,
        memory: Memory | None = None,
    ) -> None:
        """Train what requires gradient, the head and the common parameters for `epochs`.

        With a `memory`, the state is saved every `save_minutes`, after every epoch and on a signal's request; an
        interrupted search resumes from the last saved state.
        """
        for parameter in [*self.backbone.common_parameters(), *self.head.parameters()]:
            parameter.requires_grad_(True)
        model = TaskModel(self.task, self.backbone, self.head)
        optimizer = build_optimizer(model, self.training, self.learning_rate, self.head_learning_rate)
        schedule = build_schedule(optimizer, epochs * len(self.training_part), self.training.warmup)
        wrapped, wrapped_optimizer = self.fabric.setup(model, optimizer)
        self._model = wrapped
        state = State(wrapped, wrapped_optimizer, schedule, cost=self.cost)

        def stepped(epoch: int, step: int) -> None:
            after_step(epoch, step)
            wrapped.train()
            self.on_step(self.training.batch_size)

        if memory is not None and self.saved is not None:
            self._restore(self.saved, model, state, memory)
            self.on_step(
                state.epoch * len(self.training_part.examples) + state.step * self.training.batch_size
            )
        saving = None
        if memory is not None:
            kept = memory
            saving = Saving(
                self.fabric, self.save_minutes, lambda: self.save(self._everything(model, state, kept))
            )
        with self.encoding(self.backbone), optimized_blocks(self.backbone, self.training):
            while state.epoch < epochs:
                train_epoch(
                    self.fabric,
                    state,
                    self.task,
                    self.training_part,
                    before_step,
                    stepped,
                    micro=self.micro,
                    on_boundary=REQUESTS.check if saving is None else saving,
                )
                state.next_epoch()
                if saving is not None:
                    saving.now()

    def _everything(self, model: nn.Module, state: State, memory: Memory) -> dict[str, Any]:
        return {
            "memory": memory.state(),
            "training": training_state(model, state, self.fabric),
            "seconds": self.seconds,
            "held_out": [self._held_out_epoch, self._held_out_taken],
            "draws": self.generator.get_state(),
            "micro_batch": self.micro.size,
        }

    def _restore(self, saved: Mapping[str, Any], model: nn.Module, state: State, memory: Memory) -> None:
        with self.restoring():
            memory.restore(saved["memory"])
            self._find_held_out(*saved["held_out"])
            self.generator.set_state(saved["draws"])
            self.micro.resume(saved["micro_batch"])
            restore_training(saved["training"], model, state, self.fabric)
        self.cost = state.cost

    def _find_held_out(self, epoch: int, taken: int) -> None:
        """Move to the position in the held-out part after `taken` batches of round `epoch`."""
        if self.held_out_part is None or not epoch:
            return
        self._held_out_epoch = epoch - 1
        self._turn_held_out(taken)

    def _turn_held_out(self, start: int = 0) -> None:
        assert self.held_out_part is not None
        self.held_out_part.device = self.fabric.device
        self.held_out_part.set_epoch(self._held_out_epoch, start)
        self._held_out_epoch += 1
        self._held_out_taken = start
        self._held_out = iter(self.held_out_part)

    def held_out_batch(self, fresh: bool = True) -> Batch:
        """The next batch of the held-out part; if not `fresh`, always the first one."""
        if self.held_out_part is None:
            raise ValueError("this search has no held-out part")
        if not fresh:
            if self._first_held_out is None:
                part = copy.copy(self.held_out_part)
                part.set_epoch(0)
                self._first_held_out = next(iter(part))
            return self._first_held_out
        batch = next(self._held_out, None) if self._held_out is not None else None
        if batch is None:
            self._turn_held_out()
            assert self._held_out is not None
            batch = next(self._held_out)
        self._held_out_taken += 1
        return batch

    def training_batch(self) -> Batch:
        """The first batch of the training part without augmentation, the same at every call."""
        if self._first_training is None:
            part = copy.copy(self.rewards_part)
            part.set_epoch(0)
            self._first_training = next(iter(part))
        return self._first_training

    def loss(self, batch: Batch, training_mode: bool = False) -> float:
        """The task's loss on `batch` without gradient, by default in evaluation mode."""
        model = self._wrapped()
        model.train(training_mode)
        return mean_loss(self.fabric, model, self.task, batch, self.micro)

    @torch.no_grad()
    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the head reads, and the negative gradient of the task's loss at outputs of 0; of all ranks' examples."""
        stop_together(self.fabric)
        model = self._wrapped()
        # A search calls this thousands of times, and setting the mode goes through all modules.
        if model.training:
            model.eval()
        read: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
        found = None
        try:
            if batch.targets is not None:
                outputs = self.micro.forward(self.fabric, model, batch)
                features = torch.cat(read).flatten(0, -2).float()
                targets = _gradient(self.task, outputs, batch.targets).reshape(len(features), -1)
                found = features.cpu(), targets.cpu()
        finally:
            handle.remove()
        parts = [part for part in broadcast(self.fabric, gather(self.fabric, found)) if part is not None]
        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])

    def _wrapped(self) -> nn.Module:
        """The model as last trained; before that, the backbone and the head as they are."""
        if self._model is None:
            self._model = self.fabric.setup_module(TaskModel(self.task, self.backbone, self.head))
        return self._model


def _gradient(task: Task[Any], outputs: Tensor, targets: Tensor) -> Tensor:
    """The negative gradient of the loss at outputs of 0, in float32: of labels, one-hot vectors minus a constant."""
    with torch.enable_grad():
        zeros = torch.zeros_like(outputs, dtype=torch.float32).requires_grad_()
        (gradient,) = torch.autograd.grad(task.loss(zeros, targets.to(zeros.device)), zeros)
    return -gradient
