"""Tuned weights and training states, saved and restored."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.errors import UserError
from harness.files import write_atomically
from harness.training.loop import Cost, State


def tuned_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that train, by name, on the CPU."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_tuned_state(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put tuned parameters back; the names must be exactly those that train.

    Raises:
        KeyError: names are missing or unknown.
    """
    wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if set(wanted) != set(tensors):
        different = sorted(set(wanted) ^ set(tensors))
        raise KeyError(f"{len(different)} names differ, first: {different[0]}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(tensors[name])


def training_state(model: nn.Module, state: State) -> dict[str, Any]:
    """What training needs to resume after an epoch: tensors and plain values only.

    model: the one that `state` holds, before Fabric wrapped it.
    """
    return {
        "tuned": tuned_state(model),
        "optimizer": state.optimizer.state_dict(),
        "schedule": state.schedule.state_dict(),
        "epoch": state.epoch,
        "cost": asdict(state.cost),
        "random": torch.random.get_rng_state(),
    }


def restore_training(saved: Mapping[str, Any], model: nn.Module, state: State) -> None:
    """Put back what `training_state` gave, torch's global random generator included.

    Raises:
        KeyError: other parameters train than did when it was saved.
    """
    load_tuned_state(model, saved["tuned"])
    state.optimizer.load_state_dict(saved["optimizer"])
    state.schedule.load_state_dict(saved["schedule"])
    state.epoch = saved["epoch"]
    state.cost = Cost(**saved["cost"])
    torch.random.set_rng_state(saved["random"])


def save_checkpoint(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Written whole or not at all; through memory, as torch's own writer hides that a disk is full.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_atomically(checkpoint, buffer.getvalue())


def load_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """What `save_checkpoint` was given; no pickled code is run.

    Raises:
        UserError: the file is not what was written.
    """
    try:
        found: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    except Exception as error:  # the reader trips over broken bytes in many ways
        raise UserError(f"{checkpoint}: cannot be read; delete it and run again.") from error
    return found
