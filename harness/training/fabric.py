"""Lightning Fabric on the requested devices, in the requested precision."""

from __future__ import annotations

from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.strategies import DDPStrategy
from torch import nn

from harness.config import RunSettings
from harness.errors import UserError
from harness.training.ranks import RankEnvironment, Ranks


class Autocasting(MixedPrecision):
    """Mixed precision that does not convert inputs: autocast converts what each operator needs.

    Fabric's own would convert every float in a batch, and refuses frozen dataclasses.
    """

    def convert_input(self, data: Any) -> Any:
        """`data` itself."""
        return data


class UnwrappedDDP(DDPStrategy):
    """Fabric's data-parallel processes, without torch's wrapper around the model.

    The training loop sums gradients itself, once per optimiser step (`ranks.sum_gradients`). So micro-batches,
    recomputed activations, blocks that are skipped in some steps, and ranks without an example in the last step need
    no special case, and few parameters train, so that summing them during the backward pass would gain nothing.
    """

    def setup_module(self, module: nn.Module) -> Any:
        """`module` itself."""
        return module


def make_fabric(settings: RunSettings, ranks: Ranks | None = None) -> Fabric:
    """Fabric on one device, or as one of the `ranks`, in the requested precision.

    Raises:
        UserError: there are fewer devices than asked for, or another number of processes has met.
    """
    accelerator = settings.device.accelerator
    precision = settings.training.precision
    ranks = Ranks() if ranks is None else ranks
    # Named, because Fabric would otherwise take the tasks of a surrounding Slurm job for its processes.
    shared: dict[str, Any] = {"accelerator": accelerator, "devices": 1}
    environment = RankEnvironment(ranks)
    if ranks.world_size > 1:
        check_devices(settings)
        devices, nodes = settings.device.devices, settings.device.nodes
        shared |= {"devices": devices, "num_nodes": nodes, "strategy": UnwrappedDDP()}
    fabric = Fabric(**shared, precision=precision, plugins=[environment])
    chosen = fabric.strategy.precision
    if isinstance(chosen, MixedPrecision):
        autocasting = Autocasting(chosen.precision, fabric.device.type, chosen.scaler)
        if ranks.world_size > 1:
            shared["strategy"] = UnwrappedDDP()
        fabric = Fabric(**shared, plugins=[autocasting, environment])
    if ranks.world_size > 1:
        fabric.launch()
    if (fabric.world_size, fabric.global_rank) != (ranks.world_size, ranks.rank):
        raise UserError(
            f"devices: {ranks.world_size} processes were asked for, but {fabric.world_size} have met "
            f"(rank {fabric.global_rank} instead of {ranks.rank})."
        )
    return fabric


def visible_gpus(settings: RunSettings) -> int:
    """Number of GPUs that cells may use; 0 on another device."""
    return torch.cuda.device_count() if settings.device.accelerator in ("auto", "cuda", "gpu") else 0


def check_devices(settings: RunSettings) -> None:
    """Refuse what cannot be had.

    Raises:
        UserError: there are fewer devices than asked for, or no such device.
    """
    accelerator, devices = settings.device.accelerator, settings.device.devices
    gpus = visible_gpus(settings)
    if (
        accelerator in ("cuda", "gpu")
        and not gpus
        and not (accelerator == "gpu" and torch.backends.mps.is_available())
    ):
        raise UserError(f"accelerator: {accelerator} asked for, but torch finds no GPU.")
    if accelerator == "mps" and not torch.backends.mps.is_available():
        raise UserError("accelerator: mps asked for, but torch finds none.")
    if gpus and devices > gpus:
        raise UserError(f"devices: {devices} asked for, but torch finds {gpus} on this machine.")
    if devices > 1 and not gpus and (accelerator == "mps" or torch.backends.mps.is_available()):
        raise UserError("devices: mps is one device; choose accelerator cpu or devices 1.")
