"""Fabric on the device and in the precision that were asked for."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from harness.config import RunSettings


class Autocasting(MixedPrecision):
    """Mixed precision that leaves the inputs as they are: autocast converts what an operator wants converted.

    Fabric's own would convert every float in a batch, and refuses frozen dataclasses.
    """

    def convert_input(self, data: Any) -> Any:
        """`data` itself."""
        return data


def make_fabric(settings: RunSettings) -> Fabric:
    """Fabric on one device, with the precision that was asked for."""
    accelerator = settings.device.accelerator
    plain = Fabric(
        accelerator=accelerator,
        devices=1,
        precision=settings.training.precision,
    )
    chosen = plain.strategy.precision
    if not isinstance(chosen, MixedPrecision):
        return plain
    autocasting = Autocasting(chosen.precision, plain.device.type, chosen.scaler)
    return Fabric(accelerator=accelerator, devices=1, plugins=[autocasting])
