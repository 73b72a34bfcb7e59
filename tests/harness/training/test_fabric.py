"""Which devices and processes Fabric uses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.config.sources import make_settings
from harness.errors import UserError
from harness.training.fabric import check_devices, make_fabric


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_on_one_device_ignores_the_slurm_job_around_it(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    for name, value in {"SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "2"}.items():
        monkeypatch.setenv(name, value)
    fabric = make_fabric(make_settings(methods="lora", tasks="vqa", accelerator="cpu", precision=precision))
    assert (fabric.world_size, fabric.global_rank) == (1, 0)


@pytest.mark.parametrize(
    ("asked", "gpus", "message"),
    [
        ({"accelerator": "cuda"}, 0, "accelerator: cuda asked for, but torch finds no GPU."),
        ({"accelerator": "gpu"}, 0, "accelerator: gpu asked for, but torch finds no GPU."),
        ({"accelerator": "mps"}, 0, "accelerator: mps asked for, but torch finds none."),
        ({"devices": 4}, 2, "devices: 4 asked for, but torch finds 2 on this machine."),
    ],
)
def test_devices_that_are_not_there_are_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], gpus: int, message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError) as refusal:
        check_devices(make_settings(methods="lora", tasks="vqa", **asked))
    assert str(refusal.value) == message
    check_devices(make_settings(methods="lora", tasks="vqa", accelerator="cpu", devices=4))
