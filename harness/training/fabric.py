"""Fabric on the device and in the precision that were asked for."""

from __future__ import annotations

from typing import Any

from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision

from harness.experiment.plan import Testbed


class Autocasting(MixedPrecision):
    """Mixed precision that leaves the inputs as they are: autocast converts what an operator wants converted.

    Fabric's own would convert every float in a batch, and refuses frozen dataclasses.
    """

    def convert_input(self, data: Any) -> Any:
        """`data` itself."""
        return data


def make_fabric(testbed: Testbed) -> Fabric:
    """Fabric on one device, with the precision that was asked for."""
    request = testbed.request
    plain = Fabric(
        accelerator=request.accelerator,
        devices=1,
        precision=request.precision,  # type: ignore[arg-type]
    )
    chosen = plain.strategy.precision
    if not isinstance(chosen, MixedPrecision):
        return plain
    autocasting = Autocasting(chosen.precision, plain.device.type, chosen.scaler)
    return Fabric(accelerator=request.accelerator, devices=1, plugins=[autocasting])
