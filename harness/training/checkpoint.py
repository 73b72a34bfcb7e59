"""Checkpoints: tuned weights and training states, saved in regular intervals and restored."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from harness.errors import UserError, one_line
from harness.files import write_atomically
from harness.process import REQUESTS
from harness.training.loop import Cost, State
from harness.training.ranks import gather, highest, total_of
from harness.training.seeds import random_states, restore_random_states

_DIGEST_BYTES = 32


class DamagedCheckpointError(UserError):
    """A checkpoint is damaged, or belongs to another model."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: cannot be used ({reason}); delete it and run again.")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that train, by name, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_tuned_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tuned parameters back; the names must be exactly those that train.

    Raises:
        KeyError: names are missing or unknown.
        ValueError: a shape or a type of number differs.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(wanted) != set(tensors):
        different = sorted(set(wanted) ^ set(tensors))
        raise KeyError(f"{len(different)} names differ, first: {different[0]}")
    for name, parameter in wanted.items():
        if tensors[name].shape != parameter.shape or tensors[name].dtype != parameter.dtype:
            found = f"{tensors[name].dtype} {tuple(tensors[name].shape)}"
            raise ValueError(f"{name} is {found}, expected {parameter.dtype} {tuple(parameter.shape)}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def training_state(model: nn.Module, state: State, fabric: Fabric) -> dict[str, Any]:
    """Everything training needs to resume after a step: tensors and plain values only. Rank 0's is complete.

    model: the one that `state` holds, before Fabric wrapped it.
    """
    (loss_sum,) = total_of(fabric, [float(state.loss_sum)])
    return {
        "tuned": tuned_state(model),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "epoch": state.epoch,
        "step": state.step,
        "loss_sum": loss_sum,
        "cost": asdict(state.cost),
        "precision": fabric.strategy.precision.state_dict(),  # scale of the loss in 16 bits
        "random": gather(fabric, random_states(fabric.device)),
    }


def restore_training(saved: Mapping[str, Any], model: nn.Module, state: State, fabric: Fabric) -> None:
    """Restore what `training_state` returned, torch's global random generators included.

    A rank that did not exist when it was saved keeps its generators as they are.

    Raises:
        KeyError: other parameters train than did when it was saved.
    """
    load_tuned_state(model, saved["tuned"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    fabric.strategy.precision.load_state_dict(saved["precision"])
    state.epoch, state.step = saved["epoch"], saved["step"]
    # A float32 tensor, so that the sum continues with the same rounding.
    mine = state.step > 0 and fabric.global_rank == 0
    state.loss_sum = torch.tensor(saved["loss_sum"], device=fabric.device) if mine else 0.0
    state.cost = Cost(**saved["cost"])
    if fabric.global_rank < len(saved["random"]):
        restore_random_states(saved["random"][fabric.global_rank], fabric.device)


def save_checkpoint(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Write a SHA-256 and torch's format, whole or not at all.

    Through memory, as torch's own writer does not report that a disk is full.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    saved = buffer.getvalue()
    write_atomically(checkpoint, hashlib.sha256(saved).digest() + saved)


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given, on the CPU; no pickled code is run.

    Raises:
        DamagedCheckpointError: the file cannot be read, or is not what was written.
    """
    try:
        content = checkpoint.read_bytes()
    except OSError as error:
        raise DamagedCheckpointError(checkpoint, error.strerror or "unreadable") from error
    digest, saved = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(saved).digest() != digest:
        raise DamagedCheckpointError(checkpoint, "its checksum differs")
    try:
        found: dict[str, Any] = torch.load(io.BytesIO(saved), map_location="cpu", weights_only=True)
    except Exception as error:  # other versions of torch may raise anything
        raise DamagedCheckpointError(checkpoint, one_line(error)) from error
    return found


@contextmanager
def restoring(checkpoint: Path) -> Iterator[None]:
    """Turn exceptions within the block into a `DamagedCheckpointError`: the content does not fit."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise DamagedCheckpointError(checkpoint, one_line(error)) from error


def set_aside(checkpoint: Path) -> Path:
    """Rename a damaged file to `<name>.damaged`, replacing an earlier one; returns the new path."""
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    checkpoint.replace(aside)
    return aside


class Saving:
    """Saves the state whenever `minutes` have passed, and when a signal has asked for it.

    save: writes the current state; called on all ranks.
    """

    def __init__(self, fabric: Fabric, minutes: float, save: Callable[[], None]) -> None:
        self._fabric = fabric
        self._seconds = 60 * minutes
        self._save = save
        self._last = time.monotonic()

    def __call__(self) -> None:
        """Called after a step, when the state is complete; all ranks do the same.

        Raises:
            StopRequestedError: a signal asked to stop; the state is saved.
        """
        due = REQUESTS.save or time.monotonic() - self._last >= self._seconds
        save, stop = highest(self._fabric, [due, REQUESTS.stop])
        REQUESTS.stop = bool(stop)
        if save or stop:
            self.now()
        REQUESTS.check()

    def now(self) -> None:
        """Save in any case."""
        self._save()
        self._last = time.monotonic()
        REQUESTS.save = False
