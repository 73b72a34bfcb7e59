"""Which devices and processes Fabric uses."""

from __future__ import annotations

import pytest

from harness.config.sources import make_settings
from harness.training.fabric import make_fabric


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_one_device_ignores_the_slurm_job_around_it(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric(make_settings(methods="lora", tasks="vqa", accelerator="cpu", precision=precision))
    assert (fabric.world_size, fabric.global_rank) == (1, 0)
