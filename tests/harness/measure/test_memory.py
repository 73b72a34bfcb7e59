from __future__ import annotations

import pytest
import torch

from harness.measure.errors import MeasurementError
from harness.measure.memory import MIB, track_peak_memory

CUDA = torch.device("cuda")


@pytest.fixture
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Allocated bytes over time; stands for CUDA's allocator."""
    moments = [9 * MIB]

    def forget(device: torch.device) -> None:
        del moments[:-1]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forget)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: moments[-1])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: max(moments))
    return moments


def test_peak_is_measured_within_the_block(allocated: list[int]) -> None:
    allocated.append(2 * MIB)  # what was there before does not count
    with track_peak_memory(CUDA) as tracker:
        allocated += [7 * MIB, 3 * MIB]
    assert (tracker.result.baseline_mib, tracker.result.peak_mib) == (2, 7)
    assert "max_memory_allocated" in tracker.result.how


def test_reading_the_peak_inside_the_block_is_an_error(allocated: list[int]) -> None:
    with track_peak_memory(CUDA) as tracker, pytest.raises(MeasurementError, match="ended"):
        _ = tracker.result


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_other_devices_are_an_error(device: str) -> None:
    with pytest.raises(MeasurementError, match=device), track_peak_memory(torch.device(device)):
        pass
