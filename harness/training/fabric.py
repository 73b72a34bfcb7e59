"""Lightning Fabric on the requested device, in the requested precision."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments import LightningEnvironment

from harness.config import RunSettings


class Autocasting(MixedPrecision):
    """Mixed precision that does not convert inputs: autocast converts what each operator needs.

    Fabric's own would convert every float in a batch, and refuses frozen dataclasses.
    """

    def convert_input(self, data: Any) -> Any:
        """`data` itself."""
        return data


def make_fabric(settings: RunSettings) -> Fabric:
    """Fabric on one device, in the requested precision."""
    accelerator = settings.device.accelerator
    # Named, because Fabric would otherwise take the tasks of a surrounding Slurm job for its processes.
    environment = LightningEnvironment()
    plain = Fabric(
        accelerator=accelerator,
        devices=1,
        precision=settings.training.precision,
        plugins=[environment],
    )
    chosen = plain.strategy.precision
    if not isinstance(chosen, MixedPrecision):
        return plain
    autocasting = Autocasting(chosen.precision, plain.device.type, chosen.scaler)
    return Fabric(accelerator=accelerator, devices=1, plugins=[autocasting, environment])
