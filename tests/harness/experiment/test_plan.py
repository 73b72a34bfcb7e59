from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config.sources import make_settings
from harness.errors import UserError
from harness.experiment.plan import check_device, open_testbeds


def settings(**values: Any) -> Any:
    return make_settings(methods="lora", tasks="vqa", **values)


def test_what_the_machine_does_not_have_is_refused_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for accelerator in ("cuda", "mps", "gpu"):
        with pytest.raises(UserError, match=f"accelerator: there is no {accelerator}"):
            open_testbeds(settings(accelerator=accelerator))
    for accelerator in ("cpu", "auto"):
        with pytest.raises(UserError, match="precision: 16-mixed needs a GPU"):
            open_testbeds(settings(accelerator=accelerator, precision="16-mixed"))
        check_device(settings(accelerator=accelerator, precision="bf16-mixed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    check_device(settings(accelerator="cuda", precision="16-mixed"))
    with pytest.raises(UserError, match="16-mixed"):
        check_device(settings(accelerator="cpu", precision="16-mixed"))


def test_embedded_data_on_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=f"^{tmp_path}/cache: no space left on the disk"):
        open_testbeds(settings())
